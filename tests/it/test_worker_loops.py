"""Models whose Loop never ends, or asks for ever more memory: the job ends by its deadline, the step budget or the memory cap, and the
worker goes on."""
import numpy as np

import jobs
import tap
import tiny_onnx
from server import Server
from tiny_onnx import BOOL, FLOAT, INT64, graph, model, node

WIDE = 512  # a product of two such squares takes milliseconds: the step budget is hours away


def endless(body_nodes, state, constants=None, scanned=False):
    """y = what a loop without an end makes of x: its condition is true for ever, no trip count is given."""
    outputs = [("going", BOOL, []), ("next", FLOAT, state)] + ([("seen", FLOAT, state)] if scanned else [])
    nodes = [node("Identity", ["cond"], ["going"]), *body_nodes] + ([node("Identity", ["next"], ["seen"])] if scanned else [])
    body = graph(nodes, [("i", INT64, []), ("cond", BOOL, []), ("v", FLOAT, state)], outputs, name="body")
    last = ["last", "all"] if scanned else ["last"]
    return model(graph([node("Loop", ["", "true", "x"], last, body=body), node("ReduceSum", [last[-1]], ["y"], keepdims=0)], [("x", FLOAT, state)],
                       [("y", FLOAT, [])], {"true": np.bool_(True), **(constants or {})}))


def models():
    one = {"one": np.ones(1, np.float32)}
    square = {"w": np.eye(WIDE, dtype=np.float32)}
    inner = graph([node("Identity", ["c2"], ["g2"]), node("Add", ["u", "one"], ["n2"])], [("j", INT64, []), ("c2", BOOL, []), ("u", FLOAT, [4])],
                  [("g2", BOOL, []), ("n2", FLOAT, [4])], name="inner")
    return {"light": endless([node("Add", ["v", "one"], ["next"])], [4], one),
            "heavy": endless([node("MatMul", ["v", "w"], ["next"])], [WIDE, WIDE], square),
            "growing": endless([node("Concat", ["v", "v"], ["next"], axis=0)], ["L"]),
            "hoarding": endless([node("Add", ["v", "one"], ["next"])], [1 << 16], one, scanned=True),
            "nested": endless([node("Loop", ["", "cond", "v"], ["next"], body=inner)], [4], one)}


class Worker(Server):
    def __enter__(self):
        super().__enter__()
        self.models = jobs.store(self.folder, double=tiny_onnx.affine(2), **models())
        self.process_of_worker = self.worker("--models", self.models, "--lanes", "1", "--run-bytes-max", str(256 << 20))
        return self

    def __exit__(self, kind, *rest):
        try:
            if kind is None:
                assert self.process_of_worker.poll() is None, self.log()
                assert jobs.result(self, infer("double", [1, 2, 3, 4]))["outputs"]["y"]["data"] == [2, 4, 6, 8]
        finally:
            super().__exit__(kind, *rest)


def infer(name, data, **more):
    return {"op": "infer", "model": name, "input": data, "retry": 0, **more}


def zeros(*shape):
    return np.zeros(shape).tolist()


def test_the_deadline_ends_a_heavy_loop():
    with Worker() as w:
        e = jobs.run(w, infer("heavy", zeros(WIDE, WIDE), timeout_ms=1500), timeout=60)
        assert e["state"] in ("failed", "dead") and e["error"]["code"] == "timeout", e


def test_the_deadline_ends_a_nested_loop():
    with Worker() as w:
        e = jobs.run(w, infer("nested", zeros(4), timeout_ms=300), timeout=60)
        assert e["state"] in ("failed", "dead") and e["error"]["code"] in ("timeout", "too_large"), e


def test_the_step_budget_ends_a_light_loop():
    with Worker() as w:
        e = jobs.run(w, infer("light", zeros(4)), timeout=120)
        assert e["state"] == "failed" and e["error"]["code"] == "too_large" and "steps" in e["error"]["message"], e


def test_the_memory_cap_ends_what_grows():
    with Worker() as w:
        for name, data in (("growing", [1, 2]), ("hoarding", zeros(1 << 16))):
            e = jobs.run(w, infer(name, data), timeout=120)
            assert e["state"] in ("failed", "dead") and e["error"]["code"] in ("too_large", "no_memory"), e


tap.main(globals())
