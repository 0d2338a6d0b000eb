"""infer and ping through a worker, from a client that is not ours: forms of input and output, references, batches."""
import base64
import json
import os
import random
import struct

import numpy as np

import jobs
import tap
import tiny_onnx
from server import Server

rng = np.random.default_rng(1)
WEIGHTS, BIAS = rng.standard_normal((8, 5)).astype(np.float32), rng.standard_normal(5).astype(np.float32)


def models(folder):
    return jobs.store(folder, double=tiny_onnx.affine(2), linear=tiny_onnx.linear(WEIGHTS, BIAS), one=tiny_onnx.one_row(), two=tiny_onnx.two_inputs(),
                      any=tiny_onnx.any_length())


def data(result, name="y"):
    out = result["outputs"][name]
    if "b64" in out:
        return np.frombuffer(base64.b64decode(out["b64"]), "<f4").reshape(out["shape"])
    return np.array(out["data"], np.float32).reshape(out["shape"])


def expected(x):
    z = x @ WEIGHTS + BIAS
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_ping_echoes_at_once_and_sleeps_without_a_lane():
    with Server() as s:
        s.worker("--lanes", "1")
        assert jobs.result(s, {"op": "ping", "params": {"echo": {"a": [1, "two", None]}}}) == {"a": [1, "two", None]}
        assert jobs.result(s, {"op": "ping"}) is None
        sleepers = [jobs.push(s, {"op": "ping", "params": {"sleep_ms": 400, "echo": i}}) for i in range(50)]
        assert jobs.result(s, {"op": "ping", "params": {"echo": "now"}}) == "now"  # they hold nothing up
        for i, job in enumerate(sleepers):
            e = jobs.wait(s, job)
            assert e["result"] == i and e["run_ms"] >= 399, e


def test_inputs_in_every_form_give_the_same_answer():
    with Server() as s:
        s.worker("--models", models(s.folder), "--files", s.folder)
        x = rng.standard_normal((3, 8)).astype(np.float32)
        want = expected(x)
        b64 = {"dtype": "f32", "shape": [3, 8], "b64": base64.b64encode(x.tobytes()).decode()}
        s.client.set("tensors:x", x.tobytes())
        np.save(os.path.join(s.folder, "x.npy"), x)
        forms = [x.tolist(), b64, {"x": x.tolist()}, {"x": b64}, {"dtype": "f32", "shape": [3, 8], "ref": "redis:tensors:x"}, {"ref": "file:x.npy"}]
        answers = [data(jobs.result(s, {"op": "infer", "model": "linear", "input": f}), "scores") for f in forms]
        answers.append(data(jobs.result(s, {"op": "infer", "model": "linear", "input": b64, "encoding": "b64"}), "scores"))
        answers.append(data(jobs.result(s, {"op": "infer", "model": "linear", "input_ref": "file:x.npy"}), "scores"))
        for a in answers:
            assert np.allclose(a, want, atol=1e-6), a
            assert a.tobytes() == answers[0].tobytes()


def test_a_reference_in_a_long_input_is_found_on_the_lane():
    with Server() as s:
        s.worker("--models", models(s.folder))
        s.client.set("rows:c", np.full((3000, 2), 7, np.int64).tobytes())
        a = rng.integers(0, 9, (3000, 2)).tolist()
        job = {"op": "infer", "model": "two", "input": {"a": a, "b": a, "c": {"dtype": "i64", "shape": [3000, 2], "ref": "redis:rows:c"}}}
        assert len(json.dumps(job)) > 40000
        r = jobs.result(s, job)
        assert np.array_equal(data(r, "sum"), 2 * np.array(a)) and (data(r, "count") == 7).all()
        job["input"]["c"]["ref"] = "redis:none"
        jobs.error(s, job, "ref_not_found", "none")


def test_one_row_or_several_are_told_apart_by_rank():
    with Server() as s:
        s.worker("--models", models(s.folder))
        assert data(jobs.result(s, {"op": "infer", "model": "double", "input": [1, 2, 3, 4]})).shape == (1, 4)
        assert data(jobs.result(s, {"op": "infer", "model": "double", "input": [[1, 2, 3, 4]] * 3})).shape == (3, 4)
        assert data(jobs.result(s, {"op": "infer", "model": "one", "input": [1, 2, 3]})).tolist() == [[2, 3, 4]]
        assert data(jobs.result(s, {"op": "infer", "model": "one", "input": [[1, 2, 3], [4, 5, 6]]})).tolist() == [[2, 3, 4], [5, 6, 7]]
        big = rng.standard_normal((500, 8)).astype(np.float32)
        assert np.allclose(data(jobs.result(s, {"op": "infer", "model": "linear", "input": big.tolist()}), "scores"), expected(big), atol=1e-6)
        r = jobs.result(s, {"op": "infer", "model": "two", "input": {"a": [[1, 2]], "b": [[3, 4]], "c": [[5, 6]]}})
        assert data(r, "sum").tolist() == [[4, 6]] and data(r, "count").tolist() == [[5, 6]]


def test_the_envelope_names_what_made_the_result():
    with Server() as s:
        s.worker("--models", models(s.folder), "--name", "bench7")
        e = jobs.run(s, {"op": "infer", "model": "double", "input": [1, 2, 3, 4], "meta": {"mine": 1}})
        assert e["model"] == "double" and e["version"] == "1" and e["worker"] == "bench7", e
        assert len(e["manifest"]["sha256"]) == 64 and e["manifest"]["precision"] == "fp32" and e["manifest"]["isa"] and e["manifest"]["build"], e


def test_a_batch_is_stacked_and_gives_the_same_bits_as_single_rows():
    with Server() as s:
        worker_models = models(s.folder)
        s.client.hset("quern:{default}:cfg", "paused", "0")
        rows = rng.standard_normal((64, 8)).astype(np.float32)
        s.worker("--models", worker_models, "--lanes", "1", "--preload", "linear", "--batch-delay-ms", "200")
        alone = [data(jobs.result(s, {"op": "infer", "model": "linear", "input": r.tolist(), "encoding": "b64"}), "scores").tobytes() for r in rows[:4]]
        entries = [json.dumps({"id": f"r{i}", "op": "infer", "model": "linear", "input": r.tolist(), "encoding": "b64"}) for i, r in enumerate(rows)]
        s.client.lpush("quern:{default}:in", *entries)
        envelopes = [jobs.wait(s, f"r{i}") for i in range(64)]
        together = [data(e["result"], "scores").tobytes() for e in envelopes]
        assert max(e["batch"] for e in envelopes) > 1, [e["batch"] for e in envelopes]
        assert together[:4] == alone
        assert np.allclose(np.frombuffer(b"".join(together), "<f4").reshape(64, 5), expected(rows), atol=1e-6)


def test_rows_of_different_shapes_and_bad_ones_share_a_lane_without_harm():
    with Server() as s:
        s.worker("--models", models(s.folder), "--lanes", "1", "--preload", "any", "--batch-delay-ms", "100")
        shuffled = list(range(40))
        random.Random(3).shuffle(shuffled)
        entries = []
        for i in shuffled:
            value = [1.0] * (i % 5 + 1) if i % 7 else "not a row"
            entries.append(json.dumps({"id": f"m{i}", "op": "infer", "model": "any", "input": value}))
        s.client.lpush("quern:{default}:in", *entries)
        for i in range(40):
            e = jobs.wait(s, f"m{i}")
            if i % 7:
                assert e["state"] == "done" and e["result"]["outputs"]["y"]["data"] == [i % 5 + 1], e
            else:
                assert e["state"] == "failed" and e["error"]["code"] in ("bad_input", "bad_dtype", "bad_shape"), e


def test_a_result_can_go_to_a_file():
    with Server() as s:
        os.mkdir(os.path.join(s.folder, "out"))
        s.worker("--models", models(s.folder), "--files", os.path.join(s.folder, "out"))
        e = jobs.run(s, {"op": "infer", "model": "double", "input": [1, 2, 3, 4], "output_ref": "file:a.json"})
        assert e["state"] == "done" and e["ref"] == "file:a.json" and "result" not in e, e
        with open(os.path.join(s.folder, "out", "a.json")) as f:
            assert json.load(f)["outputs"]["y"]["data"] == [2, 4, 6, 8]


def test_nan_goes_in_by_base64_and_comes_out_as_null():
    with Server() as s:
        s.worker("--models", models(s.folder))
        x = struct.pack("<4f", float("nan"), 1, float("inf"), 2)
        job = {"op": "infer", "model": "double", "input": {"dtype": "f32", "shape": [4], "b64": base64.b64encode(x).decode()}}
        assert jobs.result(s, job)["outputs"]["y"]["data"] == [None, 2, None, 4]
        back = data(jobs.result(s, dict(job, encoding="b64")))
        assert np.isnan(back[0, 0]) and np.isinf(back[0, 2])


tap.main(globals())
