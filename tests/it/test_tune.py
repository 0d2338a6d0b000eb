"""tune: studies by quern tune and as jobs: fanned out over workers, killed and resumed, pruned, cancelled; what is refused."""
import json
import os
import shutil
import subprocess

import jobs
import tap
from server import CLEAN, Server
from trains import DIGITS, Folder, changed

QUICK = ("--beat-ms", "200", "--lease-ms", "2000")
RATE = {"path": "compile.optimizer.learning_rate", "log_uniform": [1e-4, 1e-1]}
FILTERS = {"path": "model.layers[0].filters", "choice": [2, 4]}


def tuned(tune, **more):
    return {**changed(fit__epochs=3, **more), "tune": {"objective": "val_accuracy", "seed": 3, **tune}}


def study(f, spec, output="out", *options, rc=0):
    p = subprocess.run([tap.QUERN, "tune", f.spec(spec), "--output", f.at(output), "--json", *options], capture_output=True, text=True, timeout=120,
                       env=dict(CLEAN, HOME="/nonexistent"))
    assert p.returncode == rc, p
    return json.loads(p.stdout.splitlines()[-1]) if rc == 0 else p.stderr


def plain(trials):
    """What does not depend on the clock or on who came first, by trial."""
    return sorted((t["trial"], t["state"], json.dumps(t["params"]), t.get("value")) for t in trials)


def test_a_grid_tries_all_and_gives_the_best_model_the_same_each_time():
    spec = tuned({"algorithm": "grid", "space": [FILTERS, {"path": "compile.optimizer.learning_rate", "choice": [0.0001, 0.005]}]})
    with Folder() as f:
        r = study(f, spec, "one", "--lanes", "1")
        assert r["done"] == 4 and r["failed"] == 0 and len(r["trials"]) == 4, r
        assert {json.dumps(t["params"]) for t in r["trials"]} == {json.dumps({FILTERS["path"]: a, RATE["path"]: b}) for a in (2, 4) for b in (0.0001, 0.005)}
        assert r["best"]["params"][RATE["path"]] == 0.005 and r["best"]["value"] == max(t["value"] for t in r["trials"]) > 0.5, r["best"]
        assert sorted(os.listdir(f.at("one"))) == ["curve.svg", "metrics.json", "model.json", "model.onnx", "study.json"]
        metrics = json.loads(f.read("one", "metrics.json"))
        assert abs(metrics["validation"]["accuracy"] - r["best"]["value"]) < 1e-9 and abs(metrics["test"]["loss"] - r["best"]["test"]["loss"]) < 1e-9
        again = study(f, spec, "two", "--lanes", "2")
        assert plain(again["trials"]) == plain(r["trials"]) and f.read("one", "model.onnx") == f.read("two", "model.onnx")
        with open(f.at("one", "study.json")) as s:
            assert json.load(s)["best"] == r["best"]
        # The best trial is that training, no more and no less.
        alone = changed(fit__epochs=3, compile__optimizer={"type": "Adam", "learning_rate": 0.005})
        alone["model"]["layers"][0]["filters"] = r["best"]["params"][FILTERS["path"]]
        f.train(alone, "alone")
        assert f.read("one", "model.onnx") == f.read("alone", "model.onnx")


def test_one_failed_trial_does_not_fail_the_study():
    with Folder() as f:
        r = study(f, tuned({"algorithm": "grid", "space": [{"path": "compile.optimizer.type", "choice": ["adam", "adamm", "sgd"]}]}))
        assert r["done"] == 2 and r["failed"] == 1, r
        bad = [t for t in r["trials"] if t["state"] == "failed"][0]
        assert bad["params"] == {"compile.optimizer.type": "adamm"} and 'did you mean "adam"' in bad["error"], bad
        err = study(f, tuned({"algorithm": "grid", "space": [{"path": "fit.batch_size", "choice": [32, 64]}], "objective": "val_acc"}), "none", rc=1)
        assert "none of 2 trials" in err and "have no" in err and "loss, accuracy, val_loss, val_accuracy" in err, err
        assert os.listdir(f.at("none")) == []


def test_halving_stops_most_trials_early_and_tpe_learns():
    with Folder() as f:
        spec = tuned({"algorithm": "halving", "space": [RATE, FILTERS], "max_trials": 9, "min_epochs": 1, "eta": 3})
        spec["fit"]["epochs"] = 9
        r = study(f, spec)
        assert r["pruned"] >= 4 and r["done"] >= 1 and r["pruned"] + r["done"] == 9, r
        assert all(t["epochs"] in (1, 3) for t in r["trials"] if t["state"] == "pruned") and r["best"]["epochs"] == 9, r
        r = study(f, tuned({"algorithm": "tpe", "space": [RATE], "max_trials": 8, "startup_trials": 4, "parallelism": 1}), "tpe")
        assert r["done"] == 8 and r["best"]["value"] > 0.5, r


def test_folds_are_averaged():
    with Folder() as f:
        spec = tuned({"algorithm": "grid", "space": [FILTERS]})
        del spec["fit"]["validation_split"], spec["data"]["test_split"]
        spec["fit"].update(folds=3, epochs=2)
        r = study(f, spec)
        metrics = json.loads(f.read("out", "metrics.json"))
        assert len(metrics["folds"]) == 3 and abs(r["best"]["value"] - sum(x["accuracy"] for x in metrics["folds"]) / 3) < 1e-9, (r["best"], metrics["folds"])


def test_a_study_is_fanned_out_and_outlives_its_workers():
    tune = {"algorithm": "random", "space": [RATE, FILTERS], "max_trials": 8, "parallelism": 4}
    with Server() as s, Folder() as f:
        store = os.path.join(s.folder, "models")
        os.makedirs(store)
        options = ("--models", store, "--files", s.folder, "--lanes", "1", *QUICK)
        shutil.copy(DIGITS, os.path.join(s.folder, "digits.csv.gz"))
        spec = tuned(tune, data__train={"x": "digits.csv.gz", "target": 64, "header": False}, publish={"name": "digits"}, fit__checkpoint_steps=5)
        spec["fit"]["epochs"] = 25
        job = {"op": "tune", "params": spec, "progress_ms": 50, "status": True}
        workers = [s.worker(*options, "--name", f"w{i}") for i in range(2)]
        i = jobs.push(s, job)

        def notes():
            return {k: json.loads(v) for k, v in s.client.hgetall(f"quern:{{default}}:b:{i}").items() if k.startswith(b"n:")}
        jobs.until(lambda: sum(n["state"] == "running" for n in notes().values()) == 2, "two trials at once")
        jobs.until(lambda: sum(n["state"] == "done" for n in notes().values()) >= 2, "two trials to end")
        for w in workers:  # nobody is left who knows of the study
            w.kill()
            w.wait()
        before = notes()
        s.worker(*options)
        e = jobs.wait(s, i, timeout=120)
        assert e["state"] == "done", e
        r = e["result"]
        assert r["done"] == 8 and r["version"] == 1, r
        values = {t["trial"]: t["value"] for t in r["trials"]}
        assert all(n["state"] != "done" or abs(n["value"] - values[int(k[2:])]) < 1e-9 for k, n in before.items())
        assert not [n for n in os.listdir(store) if n.startswith(".")]
        undisturbed = study(f, dict(spec, data={**spec["data"], "train": {"x": DIGITS, "target": 64, "header": False}}), "out", "--models", f.at("models"))
        assert plain(undisturbed["trials"]) == plain(r["trials"])
        with open(os.path.join(store, "digits/1/model.onnx"), "rb") as a:
            assert a.read() == f.read("out", "model.onnx") == f.read("models", "digits", "1", "model.onnx")
        with open(os.path.join(store, "digits/1/train.json")) as t:
            origin = json.load(t)
        assert origin["job"] == i and origin["token"] > 0 and origin["trial"]["params"] == r["best"]["params"] and origin["data_sha256"], origin


def test_a_study_shows_how_far_it_is_and_is_cancelled():
    with Server() as s:
        shutil.copy(DIGITS, os.path.join(s.folder, "digits.csv.gz"))
        s.worker("--files", s.folder, "--lanes", "2", *QUICK)
        spec = tuned({"algorithm": "random", "space": [RATE], "max_trials": 50}, data__train={"x": "digits.csv.gz", "target": 64, "header": False})
        spec["fit"]["epochs"] = 15
        i = jobs.push(s, {"op": "tune", "params": spec, "output_ref": "file:study", "progress_ms": 50})

        def progress():
            p = json.loads(s.client.hget(f"quern:{{default}}:s:{i}", "progress") or "{}")
            return p if p.get("best_trial") is not None else None
        p = jobs.until(progress, "a best trial")
        assert p["total"] == 50 and 1 <= p["done"] < 50 and p["objective"] == "val_accuracy" and 0 < p["best"] <= 1, p
        assert s.quern("cancel", i).returncode == 0
        e = jobs.wait(s, i)
        assert e["state"] == "cancelled" and e["error"]["message"].startswith("cancelled by request"), e
        jobs.until(lambda: os.listdir(os.path.join(s.folder, "study")) == [], "nothing is left")
        points = s.client.xrange(f"quern:{{default}}:m:{i}")
        assert points and all({b"trial", b"epoch", b"val_accuracy"} <= set(fields) for _, fields in points), points[:3]


def test_a_bad_study_is_refused():
    with Server() as s:
        s.worker("--files", s.folder)
        shutil.copy(DIGITS, os.path.join(s.folder, "digits.csv.gz"))
        spec = tuned({"space": [RATE]}, data__train={"x": "digits.csv.gz", "target": 64, "header": False})

        def refused(code, *words, **more):
            jobs.error(s, {"op": "tune", "output_ref": "file:out", **more}, code, *words)
        refused("bad_job", "tune", params=changed())
        refused("bad_job", "tune.space[0]", '"path"', params=dict(spec, tune={"space": [{"pth": "fit.seed", "int": [1, 2]}]}))
        refused("bad_job", "tune.space", "leads nowhere", params=dict(spec, tune={"space": [{"path": "model.layers[40].units", "int": [1, 2]}]}))
        refused("bad_job", '"algorithm"', params=dict(spec, tune={"space": [RATE], "algorithm": "hyper"}))
        refused("bad_job", '"epochs"', params=dict(spec, fit={"epoch": 3}))
        refused("bad_job", "model store", params=dict(spec, publish={"name": "digits"}))
        refused("bad_job", "params")
        jobs.error(s, {"op": "tune", "params": spec}, "bad_job", "output_ref")
        assert not [n for n in os.listdir(s.folder) if n.startswith(".tune")]


if __name__ == "__main__":
    tap.main(globals())
