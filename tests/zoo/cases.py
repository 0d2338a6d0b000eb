"""ONNX backend cases written from Python: a model of a few nodes, its inputs and the outputs that the specification gives.

`Cases` gathers them in a folder, `run` has `quern model test` try them all and prints TAP, a line a case. Protobuf messages come from
Debian's python3-onnx (1.12), which knows no newer opset and no newer type: both are plain numbers here, checked by nobody but the engine.
"""
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FORMS = ([], ["--reference"], ["--threads", "2"])

# TensorProto.DataType from 16 on: name, number, and of a narrow float: mantissa bits, bias, code of the largest, infinity, NaN
BF16, E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, U4, I4, E2M1, E8M0, U2, I2 = range(16, 27)
NAMES = {BF16: "BFLOAT16", E4M3FN: "FLOAT8E4M3FN", E4M3FNUZ: "FLOAT8E4M3FNUZ", E5M2: "FLOAT8E5M2", E5M2FNUZ: "FLOAT8E5M2FNUZ", U4: "UINT4", I4: "INT4",
         E2M1: "FLOAT4E2M1", E8M0: "FLOAT8E8M0", U2: "UINT2", I2: "INT2"}
BITS = {BF16: 16, U4: 4, I4: 4, E2M1: 4, U2: 2, I2: 2}


class Coded:
    """A tensor of a type that numpy lacks: a code for each element."""

    def __init__(self, dtype, codes, raw=True):
        self.dtype, self.codes, self.raw = dtype, np.asarray(codes), raw
        self.shape = self.codes.shape

    def proto(self, name):
        bits = BITS.get(self.dtype, 8)
        flat = self.codes.reshape(-1).astype(np.int64) & ((1 << bits) - 1)
        if bits < 8:
            each = 8 // bits
            flat = np.concatenate([flat, np.zeros(-len(flat) % each, np.int64)]).reshape(-1, each)
            flat = (flat << (np.arange(each) * bits)).sum(1)
        t = TensorProto(name=name, data_type=self.dtype, dims=self.shape)
        if self.raw:
            t.raw_data = flat.astype("<u2" if bits == 16 else np.uint8).tobytes()
        else:
            t.int32_data.extend(int(v) for v in flat)
        return t


def proto(value, name=""):
    return value.proto(name) if isinstance(value, Coded) else numpy_helper.from_array(np.asarray(value), name)


def type_of(value):
    if isinstance(value, onnx.TypeProto):
        return value
    if isinstance(value, list):
        return helper.make_sequence_type_proto(type_of(value[0]))
    if isinstance(value, Coded):
        return helper.make_tensor_type_proto(value.dtype, value.shape)
    t = numpy_helper.from_array(np.asarray(value))
    return helper.make_tensor_type_proto(t.data_type, t.dims)


def node(op, inputs, outputs, domain="", **attrs):
    """Attributes may be Coded, which python3-onnx would not take."""
    n = helper.make_node(op, inputs, outputs, domain=domain, **{k: v for k, v in attrs.items() if not isinstance(v, Coded)})
    for k, v in attrs.items():
        if isinstance(v, Coded):
            n.attribute.add(name=k, type=onnx.AttributeProto.TENSOR).t.CopyFrom(v.proto(k))
    return n


def remove(folder):
    shutil.rmtree(folder)


class Cases:
    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="quern-cases-"))
        self.names = []

    def add(self, name, nodes, inputs, outputs, opset=21, opsets=(), functions=(), rtol=None, atol=None, constant=(), declared=None):
        """inputs and outputs: name to value, in order. Those named in `constant` become initializers. declared: types to declare where they are others than the values'."""
        nodes = nodes if isinstance(nodes, list) else [nodes]
        infos = [[helper.make_value_info(k, (declared or {}).get(k) or type_of(v)) for k, v in side.items() if k not in constant] for side in (inputs, outputs)]
        graph = helper.make_graph(nodes, name, *infos, initializer=[proto(inputs[k], k) for k in constant])
        model = helper.make_model(graph, ir_version=10)
        del model.opset_import[:]
        for domain, version in [("", opset), *opsets]:
            model.opset_import.add(domain=domain, version=version)
        model.functions.extend(functions)
        case = self.folder / name
        (case / "test_data_set_0").mkdir(parents=True)
        (case / "model.onnx").write_bytes(model.SerializeToString())
        if rtol is not None or atol is not None:
            (case / "data.json").write_text(f'{{"rtol": {rtol or 0}, "atol": {atol or 0}}}')
        for side, values in (("input", {k: v for k, v in inputs.items() if k not in constant}), ("output", outputs)):
            for i, (k, v) in enumerate(values.items()):
                if isinstance(v, onnx.TypeProto):
                    continue
                p = proto(v, k) if not isinstance(v, list) else numpy_helper.from_list([np.asarray(a) for a in v], k)
                (case / "test_data_set_0" / f"{side}_{i}.pb").write_bytes(p.SerializeToString())
        self.names.append(name)

    def run(self):
        """TAP of all cases in each form; returns the exit code."""
        quern = os.environ.get("QUERN", "build/release/quern")
        bad, n = 0, 0
        for form in FORMS:
            p = subprocess.run([quern, "model", "test", *form, str(self.folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            said = {}
            for line in p.stdout.splitlines():
                verdict, _, rest = line.partition(" ")
                said[rest.partition(":")[0]] = (verdict, rest.partition(":")[2].strip())
            for name in self.names:
                n += 1
                verdict, why = said.get(name, ("FAIL", f"no word of it; {p.stdout[-300:]}"))
                bad += verdict != "ok"
                print(f"{'ok' if verdict == 'ok' else 'not ok'} {n} - {name} {' '.join(form)}{'' if verdict == 'ok' else f': {verdict} {why}'}")
        if os.environ.get("KEEP"):
            print(f"# {self.folder}")
        else:
            remove(self.folder)
        return 1 if bad else 0
