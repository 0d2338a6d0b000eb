"""Training jobs that cannot end well: each is a clear failure, publishes nothing and leaves nothing behind."""
import os
import re

import numpy as np

import jobs
import tap
from server import Server
from trains import changed

WIDE = {"input_shape": [2], "layers": [{"type": "Dense", "units": 3, "activation": "softmax"}]}
ROWS = "0,1,0\n1,0,1\n1,1,2\n0,2,0\n2,0,1\n2,2,2\n"


class Lab(Server):
    """A worker with a store and one folder of files."""

    def __enter__(self):
        super().__enter__()
        for folder in ("models", "files"):
            os.makedirs(self.at(folder))
        try:
            self.worker("--models", self.at("models"), "--files", self.at("files"), "--lanes", "1", "--run-bytes-max", "20000000")
        except BaseException:
            self.__exit__()
            raise
        return self

    def at(self, *names):
        return os.path.join(self.folder, *names)

    def write(self, name, data):
        with open(self.at("files", name), "wb" if isinstance(data, bytes) else "w") as f:
            f.write(data)

    def refused(self, code, *words, **paths):
        """The spec with values at paths must fail so, and leave store and output as they were."""
        spec = changed(model=WIDE, data={"train": {"x": "rows.csv", "target": 2, "header": False}}, fit={"epochs": 2, "seed": 1}, publish={"name": "net"})
        spec = changed(spec, **paths)
        before = sorted(os.listdir(self.at("files")))
        e = jobs.run(self, {"op": "train", "params": spec, "output_ref": "file:out", "retry": 0}, timeout=60)
        assert e["state"] in ("failed", "dead") and e["error"]["code"] == code, e
        for w in words:
            assert w in e["error"]["message"], (w, e["error"])
        assert os.listdir(self.at("models")) == []
        if os.path.isdir(self.at("files", "out")):
            assert os.listdir(self.at("files", "out")) == []
            os.rmdir(self.at("files", "out"))
        assert sorted(os.listdir(self.at("files"))) == before
        return e["error"]["message"]


def test_data_that_is_missing():
    with Lab() as s:
        s.refused("ref_not_found", "data.train", "none.csv", data__train={"x": "none.csv", "target": 2})
        s.write("rows.csv", ROWS)
        s.refused("bad_job", "targets", data__train={"x": "rows.csv", "header": False})
        s.refused("bad_input", '"what"', data__train={"x": "rows.csv", "target": "what", "header": False})
        s.write("rows.csv", "0,1,0\n1,,1\n1,1,2\n")
        s.refused("bad_input", "row 1", "missing")
        s.write("rows.csv", "")
        s.refused("bad_input", "empty")
        s.write("empty.npy", npy(np.zeros((0, 2), np.float32)))
        s.refused("bad_input", "no rows", data__train={"x": "empty.npy", "y": "empty.npy"})


def npy(array):
    import io
    f = io.BytesIO()
    np.save(f, array)
    return f.getvalue()


def test_data_that_is_ragged():
    with Lab() as s:
        s.write("rows.csv", "0,1,0\n1,0\n1,1,2\n")
        s.refused("bad_input", "2")
        s.write("rows.jsonl", '{"x":[0,1],"y":0}\n{"x":[0,1,2],"y":1}\n')
        s.refused("bad_shape", "3", data__train={"x": "rows.jsonl", "fields": {"x": "x", "y": "y"}})
        s.write("x.npy", npy(np.zeros((6, 2), np.float32)))
        s.write("y.npy", npy(np.zeros(5, np.int64)))
        s.refused("bad_shape", "6", "5", data__train={"x": "x.npy", "y": "y.npy"})
        s.write("y.npy", npy(np.arange(6) % 3)[:-9])
        s.refused("bad_input", "y.npy", data__train={"x": "x.npy", "y": "y.npy"})


def test_labels_out_of_range():
    with Lab() as s:
        for label, word in (("3", "class 3"), ("-1", "class -1"), ("0.5", "class 0.5")):
            s.write("rows.csv", ROWS + f"3,3,{label}\n")
            s.refused("bad_input", "row 6", word, "0 to 2")


def test_a_nan_in_the_data():
    with Lab() as s:
        x = np.zeros((6, 2), np.float32)
        s.write("y.npy", npy(np.arange(6) % 3))
        for value in (np.nan, np.inf):
            x[4, 1] = value
            s.write("x.npy", npy(x))
            s.refused("bad_input", "row 4, element 1", data__train={"x": "x.npy", "y": "y.npy"})


def test_an_empty_class():
    from PIL import Image
    with Lab() as s:
        s.write("rows.csv", "0,1,0\n1,0,1\n1,1,0\n0,2,1\n")
        s.refused("bad_input", "class 2", "no row")
        s.write("words.csv", "0,1,cat\n1,0,dog\n1,1,cat\n2,2,eel\n")
        s.refused("bad_input", '"eel"', "no row", data__train={"x": "words.csv", "target": 2, "header": False}, fit__validation_split=0.25)
        for label in ("full", "empty"):
            os.makedirs(s.at("files", "pictures", label))
        Image.new("RGB", (4, 4)).save(s.at("files", "pictures", "full", "1.png"))
        s.refused("bad_input", '"empty"', model={"input_shape": [4, 4, 3], "layers": [{"type": "Flatten"}, {"type": "Dense", "units": 2, "activation": "softmax"}]},
                  data__train={"x": "pictures"})


def test_a_learning_rate_of_zero_or_infinity():
    with Lab() as s:
        s.write("rows.csv", ROWS)
        s.refused("bad_job", "compile.optimizer", "learning_rate", "above 0", compile__optimizer={"type": "adam", "learning_rate": 0})
        s.refused("bad_job", "learning_rate", "above 0", compile__optimizer={"type": "adam", "learning_rate": -0.1})
        s.refused("bad_job", "learning_rate", compile__optimizer={"type": "adam", "learning_rate": 1e300})
        s.refused("bad_job", "learning_rate", compile__optimizer={"type": "adam", "learning_rate": "fast"})
        s.refused("bad_job", "learning_rate", compile__optimizer={"type": "adam", "learning_rate": {"type": "CosineDecay", "initial_learning_rate": 0}})
        # JSON has no infinity: the spec is not even JSON.
        entry = '{"id":"inf","op":"train","params":{"compile":{"optimizer":{"type":"adam","learning_rate":Infinity}}}}'
        s.client.lpush("quern:{default}:in", entry)
        e = jobs.wait(s, "inf") if s.client.exists("quern:{default}:r:inf") else None
        jobs.until(lambda: s.client.zcard("quern:{default}:dead") == 1, "a dead letter")
        assert e is None or e["error"]["code"] == "bad_json", e


def test_a_spec_with_unknown_keys():
    with Lab() as s:
        s.write("rows.csv", ROWS)
        s.refused("bad_job", "the training spec", '"fits"', '"fit"', fits={})
        s.refused("bad_job", "compile", '"optimiser"', '"optimizer"', compile__optimiser="adam")
        s.refused("bad_job", "model.layers[0]", '"unit"', '"units"', model__layers=[{"type": "Dense", "unit": 3}])
        s.refused("bad_job", "data.train", '"targets"', '"target"', data__train={"x": "rows.csv", "targets": 2})


def test_an_operator_without_a_gradient():
    import onnx
    from onnx import helper, TensorProto
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Det", ["a"], ["d"], "det"),
             helper.make_node("Reshape", ["d", "shape"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4]), helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 1])]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)])
    with Lab() as s:
        onnx.save(model, s.at("files", "det.onnx"))
        s.write("x.npy", npy(np.zeros((4, 2, 2), np.float32)))
        s.write("y.npy", npy(np.zeros((4, 1), np.float32)))
        s.refused("unsupported", "Det", "gradient", model={"onnx": "det.onnx"}, compile__loss="mse", compile__metrics=[], data__train={"x": "x.npy", "y": "y.npy"})


def test_memory_that_would_not_suffice():
    with Lab() as s:
        s.write("x.npy", npy(np.zeros((4096, 2), np.float32)))
        s.write("y.npy", npy(np.arange(4096) % 3))
        layers = [{"type": "Dense", "units": 512, "activation": "relu"}] * 3 + WIDE["layers"]
        message = s.refused("too_large", "fit.batch_size", "4096 rows", "20.0 MB", model={"input_shape": [2], "layers": layers}, fit__batch_size=4096,
                            data__train={"x": "x.npy", "y": "y.npy"})
        fits = int(re.search(r"; (\d+) would", message)[1])
        spec = changed(model={"input_shape": [2], "layers": layers}, data={"train": {"x": "x.npy", "y": "y.npy"}},
                       fit={"epochs": 1, "batch_size": fits})
        jobs.result(s, {"op": "train", "params": spec, "output_ref": "file:fits"}, timeout=60)
        layers = [{"type": "Dense", "units": 4096}] * 2 + WIDE["layers"]
        s.refused("too_large", "any batch size", model={"input_shape": [2], "layers": layers}, data__train={"x": "x.npy", "y": "y.npy"})


def test_a_loss_that_explodes_keeps_no_model():
    with Lab() as s:
        s.write("rows.csv", "1000,1000,5\n-1000,1000,3\n")
        s.refused("bad_input", "epoch", "step", "not finite", model={"input_shape": [2], "layers": [{"type": "Dense", "units": 1}]}, compile__loss="mse",
                  compile__metrics=[], compile__optimizer={"type": "sgd", "learning_rate": 1000}, fit__epochs=50)


tap.main(globals())
