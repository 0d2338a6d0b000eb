"""Whatever a job holds: it ends failed or dead with the right code and a sentence, and the worker goes on."""
import base64
import json
import os
import struct
import zlib

import numpy as np

import jobs
import tap
import tiny_onnx
from server import Server


class Worker(Server):
    """One worker with models and a root; after each test it must still answer and must not have been restarted."""

    def __init__(self, *more):
        super().__init__()
        self.more = more

    def __enter__(self):
        super().__enter__()
        self.root = os.path.join(self.folder, "files")
        os.mkdir(self.root)
        with open(os.path.join(self.folder, "secret.npy"), "wb") as f:
            np.save(f, np.zeros(4, np.float32))
        self.models = jobs.store(self.folder, double=tiny_onnx.affine(2), two=tiny_onnx.two_inputs(), fixed=tiny_onnx.one_row(), top=tiny_onnx.affine(1))
        write(os.path.join(self.models, "top/1/model.json"), b'{"quern": 1, "pipeline": [{"run": {}}, {"topk": {"k": 2}}]}')
        write(os.path.join(self.models, "image/1/model.json"),
              b'{"quern": 1, "pipeline": [{"decode_image": {}}, {"resize": {"w": 2, "h": 1, "fit": "stretch"}}, {"color": {"to": "gray"}}, {"pixels": {}}, {"run": {}}]}')
        tiny_onnx.write(os.path.join(self.models, "image/1/model.onnx"), image_model())
        self.process_of_worker = self.worker("--models", self.models, "--files", self.root, "--lanes", "2", *self.more)
        return self

    def __exit__(self, kind, *rest):
        try:
            if kind is None:
                assert self.process_of_worker.poll() is None, self.log()
                assert jobs.result(self, {"op": "infer", "model": "double", "input": [1, 2, 3, 4]})["outputs"]["y"]["data"] == [2, 4, 6, 8]
        finally:
            super().__exit__(kind, *rest)

    def raw(self, text):
        self.client.lpush("quern:{default}:in", text)

    def dead(self, n):
        """The envelopes of the dead letters, once there are n."""
        jobs.until(lambda: self.client.zcard("quern:{default}:dead") >= n, f"{n} dead letters")
        ids = self.client.zrange("quern:{default}:dead", 0, -1)
        return [jobs.wait(self, i.decode()) for i in ids]


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)
    return path


def image_model():
    return tiny_onnx.model(tiny_onnx.graph([tiny_onnx.node("Identity", ["x"], ["y"])], [("x", 1, ["N", 1, 1, 2])], [("y", 1, ["N", 1, 1, 2])]))


def infer(model, value, **more):
    return dict({"op": "infer", "model": model, "input": value}, **more)


def b64(data):
    return base64.b64encode(data).decode()


def test_entries_that_are_no_jobs_become_dead_letters_with_their_bytes():
    bad = [b"", b"not json", b"[1,2]", b"{\"op\":\"ping\"", b"\"ping\"", b"{\"op\":\"ping\",}", b"\x00\xff\xfe", b"{\"op\":\"pi\x00ng\"}",
           b"{\"id\":\"n\",\"op\":\"ping\",\"input\":" + b"[" * 5000 + b"]" * 5000 + b"}"]
    with Worker() as w:
        for entry in bad:
            w.raw(entry)
        for e in w.dead(len(bad)):
            assert e["state"] in ("dead", "failed") and e["error"]["code"] in ("bad_json", "bad_job") and e["error"]["message"], e
        kept = w.client.hvals("quern:{default}:deadb")
        assert any(b"not json" in k for k in kept)


def test_fields_of_the_wrong_type_or_range_are_named():
    cases = [({"id": 7, "op": "ping"}, "id"), ({"op": 7}, "op"), ({"op": "ping", "timeout_ms": "soon"}, "timeout_ms"), ({"op": "ping", "ttl_ms": -1}, "ttl_ms"),
             ({"op": "ping", "retry": {"max": "often"}}, "max"), ({"id": "sp ace", "op": "ping"}, "id"), ({"op": "ping", "meta": "x" * 5000}, "meta"), ({}, "op")]
    with Worker() as w:
        for i, (job, _) in enumerate(cases):
            w.raw(json.dumps(job))
        messages = " | ".join(e["error"]["message"] for e in w.dead(len(cases)))
        for job, word in cases:
            assert word in messages, (word, messages)


def test_unknown_operations_and_models_are_met_with_the_nearest_name():
    with Worker() as w:
        jobs.error(w, {"op": "infre"}, "unknown_op", "infre", "infer")
        jobs.error(w, {"op": "xyzzy"}, "unknown_op", "xyzzy", "ping")
        jobs.error(w, infer("dubble", [1]), "unknown_model", "dubble", "double")
        jobs.error(w, infer("double@9", [1]), "unknown_model", "double", "9", "1")
        jobs.error(w, infer("double@prod", [1]), "unknown_model", "prod")
        for name in ("../models/double", "/etc/passwd", "double/1", ".", "double@../1"):
            jobs.error(w, infer(name, [1]), "unknown_model")
        jobs.error(w, {"op": "infer", "input": [1]}, "bad_job", "model")
        jobs.error(w, {"op": "infer", "model": "double"}, "bad_job", "input")


def test_shapes_and_types_are_compared_and_said():
    with Worker() as w:
        jobs.error(w, infer("double", [1, 2, 3]), "bad_shape", 'model "double": input "x" is f32[N,4], the job sent f32[3] (dimension 1 is 3, not 4)')
        jobs.error(w, infer("double", [[[1, 2, 3, 4]]]), "bad_shape", "f32[1,1,4]")
        jobs.error(w, infer("double", 1), "bad_shape")
        jobs.error(w, infer("double", [[1, 2, 3, 4], [1, 2]]), "bad_shape", "[1]")
        jobs.error(w, infer("double", [1, 2, 3, "4"]), "bad_dtype", "string")
        jobs.error(w, infer("two", {"a": [1, 2], "b": [3, 4], "c": [0.5, 1]}), "bad_dtype")
        jobs.error(w, infer("two", {"a": [1, 2], "b": [3, 4]}), "bad_input", "c")
        jobs.error(w, infer("two", {"a": [1, 2], "b": [3, 4], "c": [1, 2], "d": [1]}), "bad_input", "d")
        jobs.error(w, infer("double", {"dtype": "f99", "shape": [4], "b64": b64(bytes(16))}), "bad_dtype", "f99")
        jobs.error(w, infer("double", {"dtype": "i32", "shape": [4], "b64": b64(bytes(16))}), "bad_dtype")
        jobs.error(w, infer("double", {"dtype": "f32", "shape": [4], "b64": b64(bytes(12))}), "bad_shape", "12", "16")
        jobs.error(w, infer("double", {"dtype": "f32", "shape": [4], "b64": "????"}), "bad_input")
        jobs.error(w, infer("double", {"dtype": "f32", "shape": [-1], "b64": ""}), "bad_shape")
        for huge in ([1 << 40, 1 << 40], [1 << 62], [65536] * 5):
            e = jobs.run(w, infer("double", {"dtype": "f32", "shape": huge, "b64": ""}))
            assert e["state"] == "failed" and e["error"]["code"] in ("too_large", "bad_shape", "bad_input"), e


def test_nan_where_it_matters():
    with Worker() as w:
        w.raw('{"id":"nan","op":"infer","model":"double","input":[NaN,1,2,3]}')
        assert jobs.wait(w, "nan")["error"]["code"] == "bad_json"
        jobs.error(w, infer("double", [None, 1, 2, 3]), "bad_input", "null")
        x = struct.pack("<4f", float("nan"), 1, 2, 3)
        jobs.error(w, infer("top", {"dtype": "f32", "shape": [4], "b64": b64(x)}), "bad_input", "nan")


def test_strings_as_large_as_the_limit_and_larger():
    # AddressSanitizer copies a reply as often as it grows: a smaller limit there.
    limit = (8 if os.environ.get("SAN") else 64) << 20
    with Worker("--job-bytes-max", str(limit)) as w:
        assert jobs.run(w, infer("double", "x" * (limit // 8)))["state"] == "failed"
        w.raw(b'{"id":"big","op":"ping","params":{"echo":"' + b"x" * (limit + (limit >> 2)) + b'"}}')
        codes = [e["error"]["code"] for e in w.dead(1)]
        assert codes == ["too_large"], codes


def test_paths_outside_the_roots_are_denied_however_they_are_written():
    with Worker() as w:
        np.save(os.path.join(w.root, "ok.npy"), np.ones(4, np.float32))
        os.symlink(os.path.join(w.folder, "secret.npy"), os.path.join(w.root, "link.npy"))
        os.symlink(w.folder, os.path.join(w.root, "up"))
        os.mkdir(os.path.join(w.root, "a"))
        os.mkfifo(os.path.join(w.root, "pipe"))
        assert jobs.run(w, {"op": "infer", "model": "double", "input_ref": "file:ok.npy"})["state"] == "done"
        assert jobs.run(w, {"op": "infer", "model": "double", "input_ref": f"file:{w.root}/ok.npy"})["state"] == "done"
        for path in ("../secret.npy", "link.npy", "up/secret.npy", f"{w.folder}/secret.npy", "/etc/passwd", "a/../../secret.npy", "pipe", "."):
            jobs.error(w, {"op": "infer", "model": "double", "input_ref": f"file:{path}"}, "ref_denied")
        jobs.error(w, {"op": "infer", "model": "double", "input_ref": "file:none.npy"}, "ref_not_found", "none.npy")
        jobs.error(w, {"op": "infer", "model": "double", "input_ref": "ftp:x"}, "unsupported")
        jobs.error(w, {"op": "infer", "model": "double", "input_ref": 7}, "bad_job", "input_ref", state="dead")
        jobs.error(w, infer("double", [1, 2, 3, 4], output_ref="file:../x.json"), "ref_denied")
        jobs.error(w, infer("double", [1, 2, 3, 4], output_ref="file:up/x.json"), "ref_denied")
        assert not os.path.exists(os.path.join(w.folder, "x.json"))
        jobs.error(w, {"op": "bulk", "model": "double", "input_ref": "file:../secret.npy", "output_ref": "file:o.npy"}, "ref_denied")
        jobs.error(w, {"op": "bulk", "model": "double", "input_ref": "file:ok.npy", "output_ref": "file:up/o.npy"}, "ref_denied")


def test_an_output_that_cannot_be_written():
    with Worker() as w:
        os.mkdir(os.path.join(w.root, "taken.json"))
        once = {"retry": {"max": 1}}
        jobs.error(w, infer("double", [1, 2, 3, 4], output_ref="file:taken.json", **once), "output_failed", "taken.json", state="dead")
        jobs.error(w, infer("double", [1, 2, 3, 4], output_ref="file:nowhere/x.json"), "ref_not_found", "nowhere")
        np.save(os.path.join(w.root, "in.npy"), np.ones((4, 4), np.float32))
        os.mkdir(os.path.join(w.root, "o.jsonl"))
        jobs.error(w, {"op": "bulk", "model": "double", "input_ref": "file:in.npy", "output_ref": "file:o.jsonl", **once}, "output_failed", "o.jsonl", state="dead")
        jobs.error(w, {"op": "bulk", "model": "double", "input_ref": "file:in.npy", "output_ref": "file:o.xyz"}, "unsupported", "o.xyz")


def test_references_to_nothing_in_redis():
    with Worker() as w:
        jobs.error(w, infer("double", {"dtype": "f32", "shape": [4], "ref": "redis:none"}), "ref_not_found", "none")
        w.client.lpush("alist", 1)
        e = jobs.run(w, infer("double", {"dtype": "f32", "shape": [4], "ref": "redis:alist"}, retry={"max": 1}))
        assert e["state"] in ("failed", "dead") and e["error"]["code"].startswith("ref_"), e
        w.client.set("short", b"abc")
        jobs.error(w, infer("double", {"dtype": "f32", "shape": [4], "ref": "redis:short"}), "bad_shape", "3", "16")


def test_truncated_and_hostile_npy_files():
    good = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }".ljust(117) + b"\n" + bytes(16)
    bad = {"cut": good[:-5], "magic": b"\x93NUMPZ" + good[6:-1], "header": good[:20], "empty": b"", "huge": good.replace(b"(4,)", b"(4611686018427387904,)")[:200],
           "object": good.replace(b"<f4", b"|O8"), "negative": good.replace(b"(4,)", b"(-4,)"), "long": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"}
    with Worker() as w:
        for name, content in bad.items():
            write(os.path.join(w.root, name + ".npy"), content)
            e = jobs.run(w, {"op": "infer", "model": "double", "input_ref": f"file:{name}.npy"})
            assert e["state"] == "failed" and e["error"]["code"] in ("bad_input", "too_large", "bad_dtype", "bad_shape", "unsupported"), (name, e)
            e = jobs.run(w, {"op": "bulk", "model": "double", "input_ref": f"file:{name}.npy", "output_ref": f"file:{name}.jsonl"})
            assert e["state"] == "failed", (name, e)


def png(width, height, rows, depth=8):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_truncated_and_hostile_images():
    ok = png(2, 1, b"\x00" + b"\xff\x00\x00\x00\xff\x00")
    bad = {"cut": ok[:-30], "giant": png(200000, 200000, b""), "text": b"hello", "empty": b"", "jpeg": b"\xff\xd8\xff\xe0" + bytes(40), "zero": png(0, 1, b"")}
    with Worker() as w:
        write(os.path.join(w.root, "ok.png"), ok)
        assert jobs.run(w, {"op": "infer", "model": "image", "input_ref": "file:ok.png"})["state"] == "done"
        for name, content in bad.items():
            write(os.path.join(w.root, name), content)
            e = jobs.run(w, {"op": "infer", "model": "image", "input_ref": f"file:{name}"})
            assert e["state"] == "failed" and e["error"]["code"] in ("bad_input", "too_large"), (name, e)


def test_truncated_and_hostile_models():
    good = tiny_onnx.affine(2)
    with Worker() as w:
        cases = {"cut": good[: len(good) // 2], "noise": bytes(range(256)) * 4, "empty": b"", "text": b"no model",
                 "op": tiny_onnx.model(tiny_onnx.graph([tiny_onnx.node("Frobnicate", ["x"], ["y"])], [("x", 1, ["N"])], [("y", 1, ["N"])])),
                 "loop": tiny_onnx.model(tiny_onnx.graph([tiny_onnx.node("Add", ["y", "x"], ["y"])], [("x", 1, ["N"])], [("y", 1, ["N"])])),
                 "shape": tiny_onnx.model(tiny_onnx.graph([tiny_onnx.node("Expand", ["x", "s"], ["y"])], [("x", 1, [1])], [("y", 1, ["A", "B"])],
                                                          {"s": np.array([1 << 40, 1 << 40], np.int64)}))}
        for name, content in cases.items():
            tiny_onnx.write(os.path.join(w.models, name, "1", "model.onnx"), content)
        for name in cases:
            e = jobs.run(w, infer(name, [1]))
            assert e["state"] == "failed" and e["error"]["code"] in ("bad_model", "unsupported", "too_large", "bad_shape", "no_memory"), (name, e)
            assert name in e["error"]["message"], (name, e)
        write(os.path.join(w.models, "badjson/1/model.json"), b'{"quern": 1, "pipeline": [{"resise": {}}]}')
        tiny_onnx.write(os.path.join(w.models, "badjson/1/model.onnx"), good)
        jobs.error(w, infer("badjson", [1]), "bad_model", "resise", "resize")


def test_one_bad_member_of_a_batch_fails_alone():
    with Worker() as w:
        entries = [json.dumps(infer("double", [i, 1, 2, 3] if i != 5 else [i, 1, 2], id=f"b{i}")) for i in range(12)]
        w.client.lpush("quern:{default}:in", *entries)
        for i in range(12):
            e = jobs.wait(w, f"b{i}")
            assert (e["state"] == "done") == (i != 5), e


tap.main(globals())
