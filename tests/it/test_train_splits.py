"""Which rows train and which are held out: by class, in folds; weights of classes; rows mixed with one another; batches made ahead."""
import json
import os
import signal
import time

import numpy as np
from PIL import Image

import tap
from trains import DIGITS, SPEC, Folder, changed


def rows(f, counts=(90, 9), seed=0):
    """Two classes of two numbers each, far from evenly many, the rare ones at the end."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], counts)
    np.save(f.at("x.npy"), (rng.normal(size=(len(y), 2)) + y[:, None] * 1.5).astype(np.float32))
    np.save(f.at("y.npy"), y)


PLAIN = {
    "model": {"input_shape": [2], "layers": [{"type": "Dense", "units": 2, "activation": "softmax"}]},
    "data": {"train": {"x": "x.npy", "y": "y.npy"}},
    "compile": {"optimizer": {"type": "adam", "learning_rate": 0.05}, "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy", "confusion_matrix"]},
    "fit": {"epochs": 4, "batch_size": 8, "seed": 1},
}


def metrics(f, output="out"):
    return json.loads(f.read(output, "metrics.json"))


def test_a_stratified_split_holds_out_of_each_class_its_share():
    with Folder() as f:
        rows(f)
        f.train(changed(PLAIN, data__test_split=1 / 3, fit__stratify=True, fit__validation_split=0.5))
        m = metrics(f)
        assert [sum(row) for row in m["test"]["confusion_matrix"]] == [30, 3], m["test"]
        assert m["train_rows"] == m["validation_rows"] == 33
        _, err = f.train(changed(PLAIN, fit__stratify=True, data__train={"x": "x.npy", "y": "x.npy"}, compile={"loss": "mse"},
                                 fit__validation_split=0.5), rc=1)
        assert "stratify" in err and "one class a row" in err, err


def test_balanced_weights_let_the_rare_class_speak():
    with Folder() as f:
        rows(f, (400, 20))
        spec = changed(PLAIN, data__test={"x": "x.npy", "y": "y.npy"}, fit__epochs=12)
        f.train(spec, "plain")
        f.train(changed(spec, fit__class_weight="balanced"), "balanced")
        plain, balanced = (metrics(f, o)["test"]["confusion_matrix"][1][1] for o in ("plain", "balanced"))
        assert balanced > plain + 3, (plain, balanced)
        _, err = f.train(changed(spec, fit__class_weight="equal"), rc=1)
        assert '"balanced"' in err, err


FOLDS = changed(SPEC, data={"train": {"x": DIGITS, "target": 64, "header": False}, "preprocess": [{"type": "Normalization", "axis": None}]},
                fit={"epochs": 2, "batch_size": 32, "seed": 3, "folds": 4, "stratify": True, "callbacks": [{"type": "EarlyStopping", "restore_best_weights": True}]})


def test_folds_look_at_every_row_once():
    with Folder() as f:
        f.train(FOLDS)
        m = metrics(f)
        assert [r["fold"] for r in m["folds"]] == [1, 2, 3, 4] and [(e["fold"], e["epoch"]) for e in m["epochs"]][:3] == [(1, 1), (1, 2), (2, 1)]
        values = [r["accuracy"] for r in m["folds"]]
        assert len(set(values)) > 1 and min(values) > 0.7, values
        assert abs(m["cross_validation"]["accuracy"]["mean"] - np.mean(values)) < 1e-9
        assert abs(m["cross_validation"]["accuracy"]["std"] - np.std(values, ddof=1)) < 1e-9
        assert m["train_rows"] + m["validation_rows"] == 1797 and 445 <= m["validation_rows"] <= 453, m["validation_rows"]
        for wrong, words in ((changed(FOLDS, fit__validation_split=0.1), ("fit.folds", "validation_split")), (changed(FOLDS, fit__folds=950), ("950", "1797"))):
            _, err = f.train(wrong, rc=1)
            assert all(w in err for w in words), err


def test_a_fold_that_was_killed_goes_on_and_ends_in_the_same_bytes():
    with Folder() as f:
        spec = changed(FOLDS, fit__epochs=25, fit__checkpoint_steps=7, fit__callbacks=[{"type": "EarlyStopping", "patience": 20, "restore_best_weights": True}])
        f.train(spec, "whole")
        kills = 0
        for attempt in range(6):
            p = f.start(spec, "killed")
            begun = time.monotonic()
            while p.poll() is None and time.monotonic() - begun < 0.5 + attempt * 0.4:
                time.sleep(0.02)
            if p.poll() is None:
                p.send_signal(signal.SIGKILL)
                kills += 1
            p.communicate()
            if p.returncode == 0:
                break
        if not os.path.exists(f.at("killed", "model.onnx")):
            f.train(spec, "killed")
        assert kills, "it was too fast to be killed"
        assert f.read("whole", "model.onnx") == f.read("killed", "model.onnx")
        for r, s in zip(metrics(f, "whole")["folds"], metrics(f, "killed")["folds"]):
            assert r == s


def test_mixed_rows_train_with_mixed_targets():
    with Folder() as f:
        spec = changed(SPEC, data__augment=[{"type": "MixUp", "alpha": 0.4, "probability": 0.5}, {"type": "CutMix", "alpha": 1.0}],
                       compile__loss="categorical_crossentropy", fit__epochs=8)
        f.train(spec, "one", "--threads", "1")
        f.train(spec, "two", "--threads", "2")
        assert f.read("one", "model.onnx") == f.read("two", "model.onnx")
        assert metrics(f, "one")["test"]["accuracy"] > 0.9, metrics(f, "one")["test"]
        plain = changed(spec, data__augment=[])
        f.train(plain, "plain")
        assert metrics(f, "plain")["epochs"][-1]["loss"] < metrics(f, "one")["epochs"][-1]["loss"]  # mixtures are harder to name
        _, err = f.train(changed(spec, compile__loss="sparse_categorical_crossentropy"), rc=1)
        assert "MixUp" in err and "categorical_crossentropy" in err, err


def test_pictures_read_ahead_of_their_steps_train_the_same_model():
    with Folder() as f:
        rng = np.random.default_rng(3)
        for label in ("a", "b"):
            os.makedirs(f.at("set", label))
            for i in range(40):
                Image.fromarray((rng.integers(0, 120, (12, 10, 3)) + (100 if label == "b" else 0)).astype(np.uint8)).save(f.at("set", label, f"{i}.png"))
        spec = changed(SPEC, model__input_shape=[8, 8, 3], data={"train": {"x": "set"}, "preprocess": [{"type": "Rescaling", "scale": 1 / 255}],
                                                                "augment": ["RandomFlip", {"type": "RandomRotation", "factor": 0.1}]},
                       fit={"epochs": 4, "batch_size": 16, "validation_split": 0.25, "stratify": True, "seed": 2})
        spec["model"]["layers"][-1]["units"] = 2
        f.train(spec, "memory")
        f.train(changed(spec, data__memory_mb=0), "files")
        assert f.read("memory", "model.onnx") == f.read("files", "model.onnx")
        with open(f.at("set", "a", "0.png"), "wb") as broken:
            broken.write(b"\x89PNG\r\n\x1a\n cut")
        _, err = f.train(changed(spec, data__memory_mb=0), "broken", rc=1)
        assert "a/0.png" in err and not os.path.exists(f.at("broken", "model.onnx")), err


tap.main(globals())
