"""evaluate: quern evaluate and the job: the figures of a training found again, confusion, other outputs, what is refused."""
import gzip
import json
import os
import subprocess

import numpy as np

import jobs
import tap
from server import CLEAN, Server
from trains import DIGITS, Folder, SPEC, changed


def evaluate(*options, rc=0):
    p = subprocess.run([tap.QUERN, "evaluate", *options], capture_output=True, text=True, timeout=60, env=dict(CLEAN, HOME="/nonexistent"))
    assert p.returncode == rc, p
    return json.loads(p.stdout) if "--json" in options and rc == 0 else p


def digits():
    with gzip.open(DIGITS, "rt") as g:
        table = np.loadtxt(g, delimiter=",", dtype=np.float32)
    return table[:, :64].reshape(-1, 8, 8, 1), table[:, 64].astype(np.int64)


def test_it_finds_what_training_found():
    x, y = digits()
    with Folder() as f:
        for name, rows in (("train", slice(0, 1200)), ("test", slice(1200, None))):
            np.save(f.at(f"{name}-x.npy"), x[rows])
            np.save(f.at(f"{name}-y.npy"), y[rows])
        sets = {n: {"x": f"{n}-x.npy", "y": f"{n}-y.npy"} for n in ("train", "test")}
        spec = changed(data__train=sets["train"], fit__epochs=3, compile__metrics=["accuracy", {"type": "top_k_categorical_accuracy", "k": 2}, "auc"])
        spec["data"]["test"] = sets["test"]
        del spec["data"]["test_split"]
        f.train(spec)
        want = json.loads(f.read("out", "metrics.json"))["test"]
        r = evaluate("--model", f.at("out"), "--data", f.at("spec.json"), "--metrics", "accuracy,auc", "--json")
        assert r["rows"] == 597 and abs(r["metrics"]["accuracy"] - want["accuracy"]) < 1e-9 and abs(r["metrics"]["auc"] - want["auc"]) < 1e-6, (r, want)
        matrix = np.array(r["confusion_matrix"])
        assert (matrix.sum(1) == np.bincount(y[1200:], minlength=10)).all() and abs(np.trace(matrix) / 597 - want["accuracy"]) < 1e-9
        # Logits: the model's output is no probability, its pipeline makes one of it.
        logits = changed(spec, compile__loss={"type": "SparseCategoricalCrossentropy", "from_logits": True})
        logits["model"]["layers"] = SPEC["model"]["layers"][:-1] + [{"type": "Dense", "units": 10}]
        f.train(logits, "logits")
        want = json.loads(f.read("logits", "metrics.json"))["test"]
        r = evaluate("--model", f.at("logits"), "--data", json.dumps({k: f.at(v) for k, v in sets["test"].items()}), "--json")
        assert abs(r["metrics"]["accuracy"] - want["accuracy"]) < 1e-9, (r, want)
        out = evaluate("--model", f.at("out"), "--data", f.at("spec.json"), "--set", "train").stdout
        assert out.startswith("1200 rows in ") and "accuracy 0." in out and out.count("\n") == 13, out


def test_numbers_and_labels():
    rng = np.random.default_rng(3)
    with Folder() as f:
        x = rng.normal(size=(300, 4)).astype(np.float32)
        y = x @ np.array([1, -2, 3, 0.5], np.float32) + 1
        np.save(f.at("x.npy"), x)
        np.save(f.at("y.npy"), y.astype(np.float32))
        f.train({"model": {"input_shape": [4], "layers": [{"type": "Dense", "units": 1}]}, "data": {"train": {"x": "x.npy", "y": "y.npy"}},
                 "compile": {"optimizer": {"type": "sgd", "learning_rate": 0.1}, "loss": "mse"}, "fit": {"epochs": 30}}, "line")
        r = evaluate("--model", f.at("line"), "--data", json.dumps({"x": f.at("x.npy"), "y": f.at("y.npy")}), "--json")
        assert r["metrics"]["r2_score"] > 0.99999 and r["metrics"]["mean_squared_error"] < 1e-4 and "confusion_matrix" not in r, r
        with open(f.at("animals.csv"), "w") as o:
            o.write("a,b,what\n" + "".join(f"{a:.3f},{b:.3f},{'cat' if a > b else 'dog'}\n" for a, b in x[:, :2]))
        f.train({"model": {"input_shape": [2], "layers": [{"type": "Dense", "units": 2, "activation": "softmax"}]},
                 "data": {"train": {"x": "animals.csv", "target": "what"}}, "compile": {"optimizer": {"type": "adam", "learning_rate": 0.1},
                 "loss": "sparse_categorical_crossentropy"}, "fit": {"epochs": 20}}, "animals")
        with open(f.at("dogs.csv"), "w") as o:  # alone they would be class 0
            o.write("a,b,what\n-1,1,dog\n-2,2,dog\n")
        r = evaluate("--model", f.at("animals"), "--data", f.at("dogs.csv"), "--target", "what", "--json")
        assert r["metrics"]["accuracy"] == 1 and r["labels"] == ["cat", "dog"] and r["confusion_matrix"] == [[0, 0], [0, 2]], r
        with open(f.at("birds.csv"), "w") as o:
            o.write("a,b,what\n-1,1,bird\n")
        assert "bird" in evaluate("--model", f.at("animals"), "--data", f.at("birds.csv"), "--target", "what", rc=1).stderr


def test_pictures_go_through_the_pipeline():
    from PIL import Image
    rng = np.random.default_rng(1)
    with Folder() as f:
        for label, level in (("dark", 60), ("light", 190)):
            os.makedirs(f.at("pictures", label))
            for i in range(20):
                Image.fromarray(rng.integers(level - 40, level + 40, (12, 10, 3)).astype(np.uint8)).save(f.at("pictures", label, f"{i}.png"))
        f.train(changed(model={"input_shape": [6, 6, 3], "layers": [{"type": "GlobalAveragePooling2D"}, {"type": "Dense", "units": 2, "activation": "softmax"}]},
                        data={"train": {"x": "pictures"}, "preprocess": [{"type": "Normalization"}]},
                        compile__optimizer={"type": "sgd", "learning_rate": 0.5}, fit={"epochs": 30, "batch_size": 8}))
        r = evaluate("--model", f.at("out"), "--data", f.at("pictures"), "--json")
        assert r["rows"] == 40 and r["metrics"]["accuracy"] == 1 and r["labels"] == ["dark", "light"] and r["confusion_matrix"] == [[20, 0], [0, 20]], r
        os.rename(f.at("pictures", "light"), f.at("pictures", "bright"))
        assert 'bright/0.png: the model has no label "bright"' in evaluate("--model", f.at("out"), "--data", f.at("pictures"), rc=1).stderr


def test_text_and_sounds():
    rng = np.random.default_rng(2)
    good, bad, rest = "fine lovely great".split(), "dull awful poor".split(), "film the a plot actor".split()
    with Folder() as f:
        with open(f.at("reviews.csv"), "w") as o:
            o.write("text,mood\n")
            for i in range(120):
                mood = ("bad", "good")[i % 2]
                o.write(" ".join(rng.permutation([*rng.choice(rest, 4), str(rng.choice(good if i % 2 else bad))])) + f",{mood}\n")
        f.train({"model": {"input_shape": [8], "layers": [{"type": "Embedding", "input_dim": 40, "output_dim": 8}, {"type": "GlobalAveragePooling1D"},
                                                          {"type": "Dense", "units": 2, "activation": "softmax"}]},
                 "data": {"train": {"x": "reviews.csv", "fields": ["text"], "target": "mood"}, "preprocess": [{"type": "TextVectorization", "max_tokens": 40}]},
                 "compile": {"optimizer": {"type": "adam", "learning_rate": 0.05}, "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
                 "fit": {"epochs": 20}}, "mood")
        r = evaluate("--model", f.at("mood"), "--data", json.dumps({"x": f.at("reviews.csv"), "fields": ["text"], "target": "mood"}), "--json")
        assert r["rows"] == 120 and r["metrics"]["accuracy"] == 1 and r["labels"] == ["bad", "good"], r
        for label, hertz in (("low", 300), ("high", 1500)):
            os.makedirs(f.at("tones", label))
            for i in range(8):
                t = np.arange(4000) / 8000
                tone(f.at("tones", label, f"{i}.wav"), 0.5 * np.sin(2 * np.pi * hertz * t * rng.uniform(0.9, 1.1)) + 0.01 * rng.normal(size=4000))
        f.train({"model": {"input_shape": [24, 16], "layers": [{"type": "Flatten"}, {"type": "Dense", "units": 2, "activation": "softmax"}]},
                 "data": {"train": {"x": "tones"}, "preprocess": [{"type": "MelSpectrogram", "sampling_rate": 8000, "fft_length": 256, "sequence_stride": 160,
                                                                   "num_mel_bins": 16}]},
                 "compile": {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}, "fit": {"epochs": 30, "batch_size": 4}}, "pitch")
        r = evaluate("--model", f.at("pitch"), "--data", f.at("tones"), "--json")
        assert r["rows"] == 16 and r["metrics"]["accuracy"] == 1 and r["labels"] == ["high", "low"], r


def tone(path, samples):
    import wave
    with wave.open(path, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(8000)
        w.writeframes((samples * 32000).astype("<i2").tobytes())


def test_the_job_and_what_it_refuses():
    x, y = digits()
    with Folder() as f, Server() as s:
        np.save(f.at("x.npy"), x[:100])
        np.save(f.at("y.npy"), y[:100])
        np.save(f.at("short.npy"), y[:99])
        np.save(f.at("eleven.npy"), y[:100] + 1)
        x[40, 3, 3] = np.nan
        np.save(f.at("nan.npy"), x[:100])
        f.train(changed(fit__epochs=3), "models/digits/1") if os.makedirs(f.at("models", "digits")) is None else None
        s.worker("--models", f.at("models"), "--files", f.path)
        job = {"op": "evaluate", "model": "digits", "params": {"data": {"x": "x.npy", "y": "y.npy"}}}
        r = jobs.result(s, job)
        assert r["version"] == 1 and r["rows"] == 100 and r["metrics"]["accuracy"] > 0.5, r

        def refused(code, *words, **params):
            jobs.error(s, {**job, "params": {**job["params"], **params}}, code, *words)
        jobs.error(s, {**job, "params": {}}, "bad_job", "data")
        refused("bad_job", '"dat"', dat=1)
        refused("bad_job", "metrics[0]", '"accuracy"', metrics=["acuracy"])
        refused("bad_job", "probs", output="probs")
        refused("ref_not_found", "none.npy", data={"x": "none.npy", "y": "y.npy"})
        refused("ref_denied", data={"x": "/etc/passwd", "y": "y.npy"})
        refused("bad_shape", "99", data={"x": "x.npy", "y": "short.npy"})
        refused("bad_input", "class 10", data={"x": "x.npy", "y": "eleven.npy"})
        refused("bad_input", "row 40", data={"x": "nan.npy", "y": "y.npy"})
        jobs.error(s, {**job, "model": "digit"}, "unknown_model", '"digits"')


tap.main(globals())
