"""Training: quern train and the job, from spec to a model that answers; the same bits after stops, kills and on several threads."""
import copy
import gzip
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time

import numpy as np

import jobs
import tap
from server import CLEAN, Server
from trains import DIGITS, Folder, SPEC, changed

QUICK = ("--beat-ms", "200", "--lease-ms", "2000")


def onnx_weights(path):
    import onnx
    from onnx import numpy_helper
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def refused_in(f, spec, *words):
    _, err = f.train(spec, "refused", rc=1)
    for w in words:
        assert w in err, (w, err)
    assert os.listdir(f.at("refused")) == []


def refused(spec, *words):
    with Folder() as f:
        _, err = f.train(spec, rc=1)
        for w in words:
            assert w in err, (w, err)
        assert not os.path.exists(f.at("out", "model.onnx"))


def test_a_cnn_learns_the_digits():
    with Folder() as f:
        out, _ = f.train(changed(fit__epochs=10), "out", "--json")
        epochs = [json.loads(line) for line in out.splitlines()]
        assert [e["epoch"] for e in epochs] == list(range(1, 11))
        assert epochs[9]["loss"] < epochs[0]["loss"] / 4
        metrics = json.loads(f.read("out", "metrics.json"))
        assert metrics["test"]["accuracy"] > 0.95, metrics["test"]
        assert metrics["validation"]["accuracy"] == metrics["epochs"][-1]["val_accuracy"]
        assert metrics["test_rows"] == 449 and metrics["train_rows"] + metrics["validation_rows"] == 1348
        assert f.read("out", "curve.svg").startswith(b"<svg")
        assert sorted(os.listdir(f.at("out"))) == ["curve.svg", "metrics.json", "model.json", "model.onnx"]
        done = subprocess.run([tap.QUERN, "model", "check", f.at("out")], capture_output=True, text=True, env=CLEAN)
        assert done.returncode == 0 and "golden" in done.stdout, done


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads():
    with Folder() as f:
        spec = changed(fit__epochs=2)
        f.train(spec, "one", "--threads", "1")
        f.train(spec, "two", "--threads", "2")
        f.train(changed(spec, fit__seed=4), "other", "--threads", "1")
        assert f.read("one", "model.onnx") == f.read("two", "model.onnx")
        assert f.read("one", "model.onnx") != f.read("other", "model.onnx")


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes():
    n_epochs = 60  # so many that no machine ends the run before the third kill
    with Folder() as f:
        spec = changed(fit__epochs=n_epochs, fit__checkpoint_steps=5, fit__callbacks=[
            {"type": "EarlyStopping", "patience": 50, "restore_best_weights": True}, {"type": "ReduceLROnPlateau", "patience": 1, "factor": 0.5}])
        f.train(spec, "whole", "--threads", "1")
        for attempt in range(3):
            p = f.start(spec, "killed", "--threads", "1")
            jobs.until(lambda: f.checkpoint("killed"), "a checkpoint")
            time.sleep(0.05 * (attempt + 1))
            p.send_signal(signal.SIGKILL)
            p.communicate()
        _, err = f.train(spec, "killed", "--threads", "1")
        assert "resumed at epoch" in err, err
        assert f.read("whole", "model.onnx") == f.read("killed", "model.onnx")
        assert len(json.loads(f.read("killed", "metrics.json"))["epochs"]) == n_epochs


def test_an_interrupt_keeps_the_state_and_a_damaged_checkpoint_is_passed_over():
    with Folder() as f:
        spec = changed(fit__epochs=400)
        p = f.start(spec, "out")
        p.stdout.readline()
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=20)
        assert p.returncode == 130 and "interrupted" in err, err
        path = f.checkpoint("out")
        data = bytearray(f.read(path))
        data[len(data) // 2] ^= 1
        with open(path, "wb") as c:
            c.write(data)
        p = f.start(spec, "out")
        line = p.stdout.readline()
        p.kill()
        _, err = p.communicate()
        assert line.startswith("epoch 1:") and "damaged" in err, (line, err)


def test_a_full_disk_at_a_checkpoint_fails_clearly_and_loses_nothing():
    with Folder() as f:
        with gzip.open(DIGITS) as g, open(f.at("digits.csv"), "wb") as o:  # what is unpacked counts as a file too
            shutil.copyfileobj(g, o)
        spec = changed(data__train={"x": "digits.csv", "target": 64, "header": False}, fit__epochs=60, fit__checkpoint_steps=5)
        f.train(spec, "whole")
        p = f.start(spec, "out")
        jobs.until(lambda: f.checkpoint("out"), "a checkpoint")
        p.kill()
        p.communicate()
        before = f.read(f.checkpoint("out"))
        p = f.start(spec, "out", file_bytes_max=10000)  # more than the model, less than its checkpoint
        _, err = p.communicate(timeout=60)
        assert p.returncode == 1 and "cannot be written: File too large" in err and "output_failed" in err, err
        assert f.at("out") in err and "/proc/" not in err, err
        assert f.read(f.checkpoint("out")) == before and not os.path.exists(f.at("out", "model.onnx"))
        _, err = f.train(spec, "out")
        assert "resumed at epoch" in err, err
        assert f.read("whole", "model.onnx") == f.read("out", "model.onnx")


def test_with_a_redis_the_spec_goes_to_its_queue():
    with Server() as s, Folder() as f:
        s.worker("--files", f.path, "--files", os.path.dirname(DIGITS), "--models", store(s), "--lanes", "1")
        done = s.quern("train", f.spec(changed(fit__epochs=30)), "--output", f.at("out"), "--json")
        assert done.returncode == 0, done
        epochs = [json.loads(line) for line in done.stdout.splitlines()]
        assert [e["epoch"] for e in epochs] == list(range(1, 31)) and epochs[29]["loss"] < epochs[0]["loss"]
        assert set(epochs[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"}, epochs[0]
        assert os.path.exists(f.at("out", "model.onnx"))
        done = s.quern("train", f.spec(changed(fit__epochs=2, publish={"name": "net"})), "--no-wait")
        e = jobs.wait(s, done.stdout.strip())
        assert e["state"] == "done" and e["result"]["model"] == "net", (done, e)
        assert len(s.client.xrange(f"quern:{{default}}:m:{e['id']}")) >= 2


def test_data_in_every_format_gives_the_same_model():
    with gzip.open(DIGITS, "rt") as g:
        table = np.loadtxt(g, delimiter=",", dtype=np.float32)[:200]
    x, y = table[:, :64], table[:, 64].astype(np.uint8)
    spec = changed(fit__epochs=1, fit__batch_size=50)
    del spec["data"]["test_split"]
    with Folder() as f:
        np.save(f.at("x.npy"), x)
        np.save(f.at("y.npy"), y)
        with gzip.open(f.at("x.idx.gz"), "wb") as o:
            o.write(struct.pack(">HBB3I", 0, 8, 3, len(x), 8, 8) + x.astype(np.uint8).tobytes())
        with open(f.at("y.idx"), "wb") as o:
            o.write(struct.pack(">HBBI", 0, 8, 1, len(y)) + y.tobytes())
        with open(f.at("d.csv"), "w") as o:
            o.write(",".join(f"p{i}" for i in range(64)) + ",digit\n")
            o.writelines(",".join(str(int(v)) for v in row) + "\n" for row in table)
        with open(f.at("d.jsonl"), "w") as o:
            o.writelines(json.dumps({"pixels": a.reshape(8, 8).tolist(), "digit": int(b)}) + "\n" for a, b in zip(x, y))
        with open(f.at("words.csv"), "w") as o:
            o.writelines(",".join(str(int(v)) for v in a) + f",digit {int(b)}\n" for a, b in zip(x, y))
        models = set()
        for name, train in {"npy": {"x": "x.npy", "y": "y.npy"}, "idx": {"x": "x.idx.gz", "y": "y.idx"}, "csv": {"x": "d.csv", "target": "digit"},
                            "jsonl": {"x": "d.jsonl", "fields": {"x": "pixels", "y": "digit"}},
                            "words": {"x": "words.csv", "target": 64, "header": False}}.items():
            f.train(changed(spec, data__train=train), name)
            from_onnx = f.read(name, "model.onnx")
            models.add(from_onnx.split(b"quern.data_sha256")[0])  # the data's types differ, the weights do not
        assert len(models) == 1
        with open(f.at("words", "model.json")) as j:
            top = [s for s in json.load(j)["pipeline"] if "topk" in s][0]["topk"]
        assert top["labels"] == [f"digit {i}" for i in range(10)]


def test_folders_of_pictures_are_classes():
    from PIL import Image
    rng = np.random.default_rng(1)
    with Folder() as f:
        for label, level in (("dark", 60), ("light", 190)):
            os.makedirs(f.at("pictures", label))
            for i in range(20):
                Image.fromarray(rng.integers(level - 40, level + 40, (12, 10, 3)).astype(np.uint8)).save(f.at("pictures", label, f"{i}.png"))
        spec = changed(model={"input_shape": [6, 6, 3], "layers": [{"type": "GlobalAveragePooling2D"}, {"type": "Dense", "units": 2, "activation": "softmax"}]},
                       data={"train": {"x": "pictures"}, "test": {"x": "pictures"}, "preprocess": [{"type": "Normalization"}]},
                       compile__optimizer={"type": "sgd", "learning_rate": 0.5}, fit={"epochs": 30, "batch_size": 8})
        f.train(spec)
        assert json.loads(f.read("out", "metrics.json"))["test"]["accuracy"] == 1
        done = subprocess.run([tap.QUERN, "score", "--model", f.at("out"), "--input", f.at("pictures"), "--output", f.at("scored.jsonl")],
                              capture_output=True, text=True, env=dict(CLEAN, HOME="/nonexistent"))
        assert done.returncode == 0, done
        with open(f.at("scored.jsonl")) as rows:
            assert all(json.loads(r)["file"].startswith(json.loads(r)["top"][0]["label"]) for r in rows)


def test_an_onnx_model_is_fine_tuned_with_a_new_head():
    with Folder() as f:
        f.train(changed(fit__epochs=10), "base")
        spec = changed(model={"onnx": "base/model.onnx", "output": "flatten/flatten_2", "freeze": ["conv2d/*", "batch_normalization/*"],
                              "head": [{"type": "Dense", "units": 10, "activation": "softmax", "name": "head"}]}, fit__epochs=5)
        f.train(spec)
        accuracy = json.loads(f.read("out", "metrics.json"))["test"]["accuracy"]
        assert accuracy > 0.9, accuracy
        done = subprocess.run([tap.QUERN, "model", "check", f.at("out")], capture_output=True, text=True, env=CLEAN)
        assert done.returncode == 0, done
        base, out = onnx_weights(f.at("base", "model.onnx")), onnx_weights(f.at("out", "model.onnx"))
        assert (base["conv2d/kernel"] == out["conv2d/kernel"]).all() and "head/kernel" in out and "dense/kernel" not in out
        refused_in(f, changed(spec, model__output="nothing"), "model.output", '"nothing"')
        refused_in(f, changed(spec, model__freeze=["*"]), "frozen")


def ratings(f, rows=600):
    """A table of ids with gaps, and what it is made of: a bias of the user, one of the item, and their product."""
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, 20, rows), rng.integers(0, 15, rows)
    a, b = rng.normal(size=20), rng.normal(size=15)
    with open(f.at("ratings.csv"), "w") as out:
        out.write("when,who,what,stars\n")
        for i, (u, v) in enumerate(zip(users, items)):
            out.write(f"{i},{u * 37 + 5},{v * 11},{a[u] + b[v] + a[u] * b[v]:.5f}\n")


TWO = {
    "model": {
        "inputs": {"user": {"shape": [], "dtype": "int64"}, "item": {"shape": [], "dtype": "int64"}},
        "layers": [
            {"type": "Embedding", "name": "u", "inputs": ["user"], "input_dim": 21, "output_dim": 8},
            {"type": "Embedding", "name": "v", "inputs": ["item"], "input_dim": 16, "output_dim": 8},
            {"type": "Embedding", "name": "ub", "inputs": "user", "input_dim": 21, "output_dim": 1},
            {"type": "Embedding", "name": "vb", "inputs": "item", "input_dim": 16, "output_dim": 1},
            {"type": "Dot", "name": "uv", "inputs": ["u", "v"]},
            {"type": "Add", "name": "stars", "inputs": ["uv", "ub", "vb"]},
            {"type": "Dense", "name": "unused", "units": 3}],
        "outputs": ["stars"]},
    "data": {"train": {"x": "ratings.csv", "fields": {"user": "who", "item": "what", "y": "stars"}}, "test_split": 0.2,
             "preprocess": [{"type": "IntegerLookup", "input": "user"}, {"type": "IntegerLookup", "input": "item"}]},
    "compile": {"optimizer": {"type": "adam", "learning_rate": 0.03}, "loss": "mse", "metrics": ["mae"]},
    "fit": {"epochs": 12, "batch_size": 16, "seed": 2},
}


def test_a_model_of_two_inputs_learns_from_a_table_and_answers_by_name():
    with Folder() as f:
        ratings(f)
        f.train(TWO)
        metrics = json.loads(f.read("out", "metrics.json"))
        assert metrics["test"]["loss"] < 0.1, metrics["test"]
        done = subprocess.run([tap.QUERN, "model", "check", f.at("out")], capture_output=True, text=True, env=CLEAN)
        assert done.returncode == 0 and "golden" in done.stdout, done
        import onnx
        model = onnx.load(f.at("out", "model.onnx"))
        onnx.checker.check_model(model)
        assert [i.name for i in model.graph.input] == ["user", "item"]
        assert not any("unused" in w.name for w in model.graph.initializer)
        # A column of an array for each input says the same, in the same bytes.
        table = np.genfromtxt(f.at("ratings.csv"), delimiter=",", names=True)
        for name, column in (("who", "who"), ("what", "what")):
            np.save(f.at(name + ".npy"), table[column].astype(np.int64))
        np.save(f.at("stars.npy"), table["stars"])
        files = changed(TWO, data__train={"x": {"user": "who.npy", "item": "what.npy"}, "y": "stars.npy"})
        f.train(files, "files")
        assert json.loads(f.read("files", "metrics.json"))["test"]["loss"] == metrics["test"]["loss"]


def test_several_inputs_are_refused_with_what_is_missing():
    with Folder() as f:
        ratings(f, 40)
        np.save(f.at("ids.npy"), np.arange(7))

        def told(spec, *words):
            _, err = f.train(spec, rc=1)
            for w in words:
                assert w in err, (w, err)

        told(changed(TWO, data__preprocess=[]), '"user"', "0 to 20", "IntegerLookup")
        told(changed(TWO, data__preprocess=[{"type": "IntegerLookup"}]), '"input"', "2 inputs")
        told(changed(TWO, data__preprocess=[{"type": "IntegerLookup", "input": "uzer"}]), '"uzer"')
        told(changed(TWO, data__train__x={"user": "ids.npy"}), '"item"', "x")
        told(changed(TWO, data__train={"x": {"user": "ids.npy", "item": "ratings.csv"}, "fields": {"item": "what"}, "y": "ids.npy"}), "7 rows", "40")
        told(changed(TWO, model__outputs=["starz"]), "model.outputs", '"stars"')
        told(changed(TWO, model__outputs=["stars", "uv"]), "one layer")
        told(changed(TWO, model__inputs={"user": {"dtype": "int64"}}), "model.inputs.user", "shape")
        told(changed(TWO, model__inputs={"user": {"shape": [0]}}), "model.inputs.user.shape")
        layers = copy.deepcopy(TWO["model"]["layers"])
        del layers[0]["inputs"]
        told(changed(TWO, model__layers=layers), "layers[0]", "2 inputs")


def test_rows_that_do_not_fit_into_memory_train_the_same_model():
    with Folder() as f:
        rng = np.random.default_rng(1)
        np.save(f.at("x.npy"), rng.normal(size=(300, 8, 8, 1)))
        np.save(f.at("y.npy"), rng.integers(0, 10, 300))
        spec = changed(data={"train": {"x": "x.npy", "y": "y.npy"}, "preprocess": ["Normalization"]}, fit__epochs=2)
        f.train(spec, "memory")
        f.train(changed(spec, data__memory_mb=0), "file")
        table = changed(data__train={"x": DIGITS, "target": 64, "header": False}, fit__epochs=1)
        f.train(table, "table")
        f.train(changed(table, data__memory_mb=0), "spilled")
        for one, two in (("memory", "file"), ("table", "spilled")):
            assert f.read(one, "model.onnx") == f.read(two, "model.onnx"), one


def test_a_spec_that_is_wrong_says_where_and_what_would_be_right():
    layers = SPEC["model"]["layers"]
    refused(changed(fit__epoch=3), "fit", '"epoch"', '"epochs"')
    refused(changed(compile__optimizer="adamm"), "compile.optimizer", '"adam"')
    refused(changed(compile__loss="categorical_crossentrpy"), "compile.loss", '"categorical_crossentropy"')
    refused(changed(compile__metrics=["acuracy"]), "compile.metrics[0]", '"accuracy"')
    refused(changed(compile__optimizer={"type": "adam", "learning_rate": 0}), "learning_rate")
    refused(changed(fit__batch_size=0), "batch_size", "from 1")
    refused(changed(model__layers=[{"type": "Conv2d", "filters": 3, "kernel_size": 3}]), "model.layers[0]", '"Conv2D"')
    refused(changed(model__layers=[{"type": "Conv2D", "filter": 3, "kernel_size": 3}]), "model.layers[0]", '"filter"', '"filters"')
    refused(changed(model__layers=layers[:4] + [{"type": "Conv2D", "filters": 4, "kernel_size": 9}] + layers[4:]), "model.layers[4]", "conv2d_1", "9")
    refused(changed(model__layers=layers[:5] + [{"type": "LSTM", "units": 4}]), "model.layers[5]", "lstm", "[N, steps, features]")
    refused(changed(model__input_shape=[8, 8, 2]), "64 elements", "128")
    refused(changed(model__layers=layers[:-1] + [{"type": "Dense", "units": 9, "activation": "softmax"}]), "class 9", "0 to 8")
    refused(changed(fit__callbacks=[{"type": "EarlyStopping", "monitor": "val_los"}]), "fit.callbacks[0]", '"val_los"')


def test_data_that_is_wrong_is_refused_by_row():
    with Folder() as f:
        for text, *words in (("1,2,0\n3,,1\n", "row 1", "missing"), ("1,2,0\n3,4\n", "2"), ("1,2,0\n3,4,0.5\n", "row 1", "0.5"), ("", "empty")):
            with open(f.at("d.csv"), "w") as o:
                o.write(text)
            spec = changed(model={"input_shape": [2], "layers": [{"type": "Dense", "units": 2, "activation": "softmax"}]},
                           data={"train": {"x": "d.csv", "target": 2, "header": False}}, fit={"epochs": 1})
            _, err = f.train(spec, rc=1)
            assert all(w in err for w in words), (text, err)
        np.save(f.at("x.npy"), np.array([[1, 2], [3, np.nan]], np.float32))
        np.save(f.at("y.npy"), np.array([0, 1]))
        _, err = f.train(changed(spec, data={"train": {"x": "x.npy", "y": "y.npy"}}), rc=1)
        assert "row 1, element 1" in err, err
        _, err = f.train(changed(spec, data={"train": {"x": "nothing.npy", "y": "y.npy"}}), rc=4)
        assert "nothing.npy" in err, err


def test_a_loss_that_is_no_number_ends_the_run_or_stops_it_with_the_last_good_weights():
    spec = changed(compile__optimizer={"type": "sgd", "learning_rate": 1e6}, compile__loss="mse", fit__epochs=3)
    spec["model"]["layers"] = [{"type": "Flatten"}, {"type": "Dense", "units": 1}]
    with Folder() as f:
        _, err = f.train(spec, rc=1)
        assert "epoch 1" in err, err
        _, err = f.train(changed(spec, fit__callbacks=[{"type": "TerminateOnNaN"}]), "kept")
        assert "no number" in err and os.path.exists(f.at("kept", "model.onnx")), err


def test_a_run_ends_at_its_limits():
    with Folder() as f:
        _, err = f.train(changed(fit__max_steps=45), "steps")  # 38 to an epoch
        assert "epoch 2, step 7: fit.max_steps" in err, err
        metrics = json.loads(f.read("steps", "metrics.json"))
        assert len(metrics["epochs"]) == 1 and metrics["test"]["accuracy"] > 0.2, metrics
        f.train(changed(fit__max_steps=38), "epoch")
        assert len(json.loads(f.read("epoch", "metrics.json"))["epochs"]) == 1
        _, err = f.train(changed(fit__epochs=100000, fit__max_seconds=0.3), "seconds")
        assert "fit.max_seconds" in err, err


def test_a_step_that_does_not_fit_into_memory_is_refused_with_a_batch_that_does():
    with Folder() as f:
        spec = changed(fit__batch_size=1024, fit__epochs=1)
        _, err = f.train(spec, "out", "--run-bytes-max", "1500000", rc=1)
        found = re.search(r"fit.batch_size: a step with 1024 rows does not fit into memory; (\d+) would", err)
        assert found and "too_large" in err and not os.listdir(f.at("out")), err
        f.train(changed(spec, fit__batch_size=int(found[1])), "out", "--run-bytes-max", "1500000")


def store(s):
    path = os.path.join(s.folder, "models")
    os.makedirs(path, exist_ok=True)
    return path


def job(s, **more):
    shutil.copy(DIGITS, os.path.join(s.folder, "digits.csv.gz"))
    spec = changed(data__train={"x": "digits.csv.gz", "target": 64, "header": False}, publish={"name": "digits"})
    return {"op": "train", "params": changed(spec, **more), "progress_ms": 100, "status": True}


def test_a_job_trains_and_publishes_and_its_model_answers():
    with Server() as s:
        s.worker("--models", store(s), "--files", s.folder, "--lanes", "1")
        r = jobs.result(s, dict(job(s), output_ref="file:trained"), timeout=120)
        assert r["model"] == "digits" and r["version"] == 1 and r["test"]["accuracy"] > 0.9, r
        folder = os.path.join(s.folder, "models/digits/1")
        with open(os.path.join(folder, "train.json")) as f:
            assert json.load(f)["token"] > 0
        assert sorted(os.listdir(os.path.join(s.folder, "trained"))) == ["curve.svg", "metrics.json", "model.json", "model.onnx"]
        with gzip.open(DIGITS, "rt") as g:
            rows = [[int(v) for v in line.split(",")] for line in g][:20]
        # The store is read again within seconds.
        end = time.monotonic() + 30
        while time.monotonic() < end:
            e = jobs.run(s, {"op": "infer", "model": "digits", "input": np.reshape(rows[0][:64], (8, 8, 1)).tolist()})
            if e["state"] == "done":
                break
            time.sleep(0.2)
        right = [jobs.result(s, {"op": "infer", "model": "digits", "input": np.reshape(r[:64], (8, 8, 1)).tolist()})["top"][0]["index"] == r[64] for r in rows]
        assert sum(right) >= 18, right


def test_a_job_says_how_far_it_is_and_is_cancelled_at_once():
    with Server() as s:
        s.worker("--models", store(s), "--files", s.folder, "--lanes", "1")
        i = jobs.push(s, job(s, fit__epochs=5000))
        key = f"quern:{{default}}:s:{i}"
        status = jobs.until(lambda: (lambda p: p if p.get("epoch", 0) >= 2 else None)(progress(s, key)), "the second epoch")
        assert status["epochs"] == 5000 and 0 < status["loss"] < 3 and status["learning_rate"] > 0, status
        assert status["samples_per_s"] > 0 and status["eta_s"] > 0 and "accuracy" in status["metrics"], status
        began = time.monotonic()
        assert s.quern("cancel", i).returncode == 0
        e = jobs.wait(s, i)
        assert e["state"] == "cancelled", e
        assert time.monotonic() - began < 30
        assert not os.path.exists(os.path.join(s.folder, "models/digits/1"))


def progress(s, key):
    kind = s.client.type(key)
    text = s.client.get(key) if kind == b"string" else (s.client.hgetall(key) or {}).get(b"progress") if kind == b"hash" else None
    p = json.loads(text) if text else {}
    return p.get("progress", p) or {}


def test_a_worker_is_killed_and_another_ends_in_the_same_bytes():
    with Server() as s:
        models = store(s)
        first = s.worker("--models", models, "--files", s.folder, "--lanes", "1", *QUICK)
        work = job(s, fit__epochs=25, fit__checkpoint_steps=7)
        jobs.result(s, work, timeout=120)
        i = jobs.push(s, work)
        jobs.until(lambda: [n for n in os.listdir(models) if n.startswith(".train-")], "a checkpoint")
        first.kill()
        first.wait()
        s.worker("--models", models, "--files", s.folder, "--lanes", "1", *QUICK)
        e = jobs.wait(s, i, timeout=120)
        assert e["state"] == "done" and e["result"]["version"] == 2, e
        with open(os.path.join(models, "digits/1/model.onnx"), "rb") as a, open(os.path.join(models, "digits/2/model.onnx"), "rb") as b:
            assert a.read() == b.read()
        assert not [n for n in os.listdir(models) if n.startswith(".")]


def test_a_worker_that_was_taken_for_dead_publishes_nothing():
    with Server() as s:
        models = store(s)
        options = ("--models", models, "--files", s.folder, "--lanes", "1", *QUICK)
        first = s.worker(*options)
        i = jobs.push(s, job(s, fit__epochs=60, fit__checkpoint_steps=7))
        jobs.until(lambda: [n for n in os.listdir(models) if n.startswith(".train-") and os.path.getsize(os.path.join(models, n))], "a checkpoint")
        first.send_signal(signal.SIGSTOP)
        s.worker(*options)
        e = jobs.wait(s, i, timeout=120)
        assert e["state"] == "done" and e["crashes"] == 1 and e["result"]["version"] == 1, e
        first.send_signal(signal.SIGCONT)
        jobs.until(lambda: "fenced" in s.log(0), "the first one hears that it was fenced")
        assert jobs.run(s, {"op": "ping"})["state"] == "done"
        assert [n for n in os.listdir(os.path.join(models, "digits")) if not n.startswith(".")] == ["1"]
        with open(os.path.join(models, "digits/1/train.json")) as f:
            origin = json.load(f)
        assert origin["token"] == e["token"] and origin["job"] == i and origin["seed"] == 3 and origin["isa"] and origin["build"] and len(origin["data_sha256"]) == 64, origin


def test_what_a_later_attempt_has_begun_is_not_published_by_an_earlier_one():
    with Server() as s:
        models = store(s)
        s.worker("--models", models, "--files", s.folder, "--lanes", "1")
        i = jobs.push(s, dict(job(s, fit__epochs=40), retry=0))
        name = jobs.until(lambda: [n for n in os.listdir(models) if n.startswith(".train-")], "an attempt")[0]
        later = os.path.join(models, name.rsplit(".", 1)[0] + ".99999")
        open(later, "w").close()  # as another worker would, whose token is higher
        e = jobs.wait(s, i, timeout=60)
        assert e["state"] != "done" and "a later attempt of this job has begun" in e["error"]["message"], e
        assert not os.path.exists(os.path.join(models, "digits"))
        assert os.path.exists(later)


def test_a_job_is_refused_without_a_place_for_its_model_or_rights_to_its_data():
    with Server() as s:
        s.worker("--models", store(s), "--files", s.folder, "--lanes", "1")
        work = job(s)
        del work["params"]["publish"]
        jobs.error(s, work, "bad_job", "output_ref")
        jobs.error(s, job(s, data__train={"x": "/etc/passwd", "target": 1}), "ref_denied")
        jobs.error(s, job(s, fit__epoch=1), "bad_job", '"epochs"')
        jobs.error(s, {"op": "train"}, "bad_job", "params")


tap.main(globals())
