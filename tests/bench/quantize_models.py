#!/usr/bin/python3
"""Makes QDQ files of the models that export_models.py wrote: NAME_qdq.onnx beside NAME.onnx.

The form is that of ONNX Runtime's static quantizer: weights i8, symmetric, a scale for each output channel; activations u8 with a zero
point over the range that calibration saw (--signed: i8, symmetric); biases i32 with the product of both scales; QuantizeLinear and
DequantizeLinear around Conv, Gemm, MatMul, Add and GlobalAveragePool, the parameters carried along through MaxPool, Flatten and Reshape.
A Relu or Clip whose input is quantized goes where bytes are unsigned: saturation does what it did. In an encoder only products are quantized, as a whole LayerNorm or
GELU in bytes would say little.

Calibration runs the f32 model in our own library on random inputs. usage: quantize_models.py FOLDER [--signed] [NAME…]
"""
import os
import sys

import numpy as np
import onnx
from onnx import helper, numpy_helper

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "zoo"))
from engine import Model  # noqa: E402

IMAGES, SENTENCES = (3, 224, 224), 128
WHOLE = {"Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool"}
CARRIED = {"MaxPool", "Flatten", "Reshape"}
NETS = {"resnet50": WHOLE, "resnet18": WHOLE, "mobilenet_v2": WHOLE, "minilm": {"MatMul", "Gemm"}}


def samples(name, random):
    if name == "minilm":
        return random.integers(0, 30000, (2, SENTENCES))
    return (random.random((4, *IMAGES)) * 2 - 1).astype(np.float32)


def observe(path, model, names, x):
    """{name: (lowest, highest)} of these values of the model."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {o.name for o in probe.graph.output}
    names = [n for n in names if n not in known and n != model.graph.input[0].name]
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    onnx.save(probe, path)
    try:
        run = Model(path)
        ranges = {model.graph.input[0].name: (float(x.min()), float(x.max()))}
        for row in x:
            for o, value in zip(probe.graph.output, run(row[None])):
                low, high = ranges.get(o.name, (0.0, 0.0))
                ranges[o.name] = (min(low, float(value.min())), max(high, float(value.max())))
    finally:
        os.remove(path)
    return ranges


class Quantizer:
    def __init__(self, model, kinds, signed):
        self.model, self.kinds, self.signed = model, kinds, signed
        self.graph = model.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        for n in self.graph.node:
            if n.op_type == "Constant":
                self.constants[n.output[0]] = numpy_helper.to_array(n.attribute[0].t)
            if n.op_type == "Identity" and n.input[0] in self.constants:
                self.constants[n.output[0]] = self.constants[n.input[0]]
        self.nodes, self.made, self.scales = [], {}, {}
        self.drop_activations()

    def drop_activations(self):
        """Relu and Clip behind a quantized node: the node writes what they wrote. Not where bytes go below zero."""
        users = {}
        for n in self.graph.node:
            for name in n.input:
                users.setdefault(name, []).append(n)
        producer = {o: n for n in self.graph.node for o in n.output}
        self.kept = []
        for n in self.graph.node:
            before = producer.get(n.input[0]) if n.input else None
            if not self.signed and n.op_type in ("Relu", "Clip") and before is not None and before.op_type in self.kinds and len(users[n.input[0]]) == 1:
                before.output[0] = n.output[0]
                producer[n.output[0]] = before
            else:
                self.kept.append(n)

    def wanted(self):
        """Names of the values to quantize, in order."""
        names, quantized = [], set()
        for n in self.kept:
            if n.op_type in self.kinds or (n.op_type in ("Relu", "Clip") and n.input[0] in quantized):
                mine = [i for k, i in enumerate(n.input) if i not in self.constants and not (k == 2 and n.op_type in ("Conv", "Gemm"))]
                names += mine + list(n.output)
                quantized.update(mine + list(n.output))
            elif n.op_type in CARRIED and n.input[0] in quantized:
                quantized.update(n.output)
        return list(dict.fromkeys(names))

    def constant(self, name, value):
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def set_scale(self, name, low, high):
        if self.signed:
            scale, zero = np.float32(max(-low, high, 1e-9) / 127), np.int8(0)
        else:
            low, high = min(low, 0.0), max(high, 0.0)
            scale = np.float32(max(high - low, 1e-9) / 255)
            zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
        self.scales[name] = (scale, zero)

    def activation(self, name):
        """The dequantized form of a value."""
        if name not in self.made:
            scale, zero = self.scales[name]
            s, z = self.constant(name + "_scale", scale), self.constant(name + "_zero_point", zero)
            self.nodes.append(helper.make_node("QuantizeLinear", [name, s, z], [name + "_QuantizeLinear_Output"], name + "_QuantizeLinear"))
            self.nodes.append(helper.make_node("DequantizeLinear", [name + "_QuantizeLinear_Output", s, z], [name + "_DequantizeLinear_Output"],
                                               name + "_DequantizeLinear"))
            self.made[name] = name + "_DequantizeLinear_Output"
        return self.made[name]

    def weights(self, name, axis):
        made = f"{name}_{axis}_DequantizeLinear_Output"
        w = self.constants[name]
        scale = np.abs(w).max(axis=tuple(i for i in range(w.ndim) if i != axis)).astype(np.float32) / np.float32(127)
        scale = np.where(scale > 0, scale, np.float32(1e-9)).astype(np.float32)
        if name not in self.made:
            shape = [-1 if i == axis else 1 for i in range(w.ndim)]
            q = np.clip(np.rint(w / scale.reshape(shape)), -127, 127).astype(np.int8)
            names = [self.constant(name + "_quantized", q), self.constant(name + "_scale", scale), self.constant(name + "_zero_point", np.zeros(len(scale), np.int8))]
            self.nodes.append(helper.make_node("DequantizeLinear", names, [made], name + "_DequantizeLinear", axis=axis))
            self.made[name] = made
        return self.made[name], scale

    def bias(self, name, node, x_scale, w_scale):
        scale = (x_scale * w_scale).astype(np.float32)
        q = np.clip(np.rint(self.constants[name] / scale), -2**31 + 1, 2**31 - 1).astype(np.int32)
        made = f"{node}_bias"
        names = [self.constant(made + "_quantized", q), self.constant(made + "_quantized_scale", scale), self.constant(made + "_quantized_zero_point", np.zeros(len(scale), np.int32))]
        self.nodes.append(helper.make_node("DequantizeLinear", names, [made], made + "_DequantizeLinear", axis=0))
        return made

    def node(self, n):
        inputs = list(n.input)
        if n.op_type in self.kinds or (n.op_type in ("Relu", "Clip") and inputs[0] in self.scales):
            for k, name in enumerate(inputs):
                if name not in self.constants:
                    inputs[k] = self.activation(name)
            if n.op_type in ("Conv", "Gemm", "MatMul") and inputs[1] in self.constants:
                transposed = any(a.name == "transB" and a.i for a in n.attribute)
                axis = 0 if n.op_type == "Conv" or transposed else self.constants[inputs[1]].ndim - 1
                inputs[1], w_scale = self.weights(inputs[1], axis)
                if len(inputs) > 2:
                    inputs[2] = self.bias(inputs[2], n.name, self.scales[n.input[0]][0], w_scale)
        elif n.op_type in CARRIED and inputs[0] in self.scales:
            inputs[0] = self.activation(inputs[0])
            self.scales[n.output[0]] = self.scales[n.input[0]]
        else:
            inputs = [self.made.get(i, i) if i in self.scales else i for i in inputs]
        m = onnx.NodeProto()
        m.CopyFrom(n)
        del m.input[:]
        m.input.extend(inputs)
        self.nodes.append(m)
        for name in n.output:
            if name in self.scales:
                self.activation(name)

    def run(self, ranges):
        for name, (low, high) in ranges.items():
            if name in self.wanted_names:
                self.set_scale(name, low, high)
        for n in self.kept:
            self.node(n)
        outputs = {o.name for o in self.graph.output}
        for n in self.nodes:  # the graph's outputs keep their names
            for k, name in enumerate(n.input):
                if name in outputs and n.op_type == "QuantizeLinear":
                    n.input[k] = name + "_f32"
            for k, name in enumerate(n.output):
                if name in outputs and name in self.made:
                    n.output[k] = name + "_f32"
                elif name.endswith("_DequantizeLinear_Output") and name[: -len("_DequantizeLinear_Output")] in outputs:
                    n.output[k] = name[: -len("_DequantizeLinear_Output")]
        while True:  # constants that nobody reads any more
            used = {i for n in self.nodes for i in n.input} | outputs
            nodes = [n for n in self.nodes if used & set(n.output)]
            if len(nodes) == len(self.nodes):
                break
            self.nodes = nodes
        kept = [t for t in self.graph.initializer if t.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(kept)
        onnx.checker.check_model(self.model)


def quantize(folder, name, signed):
    path = os.path.join(folder, f"{name}{'_s8' if signed else ''}_qdq.onnx")
    if os.path.exists(path):
        return
    model = onnx.load(os.path.join(folder, name + ".onnx"))
    x = samples(name, np.random.default_rng(5))
    original = onnx.ModelProto()
    original.CopyFrom(model)
    q = Quantizer(model, NETS[name], signed)
    q.wanted_names = set(q.wanted())
    q.run(observe(path + ".probe", original, q.wanted(), x))
    onnx.save(model, path + ".part")
    os.rename(path + ".part", path)
    print(path)


def main():
    signed = "--signed" in sys.argv
    words = [w for w in sys.argv[1:] if w != "--signed"]
    for name in words[1:] or NETS:
        quantize(words[0], name, signed)


if __name__ == "__main__":
    main()
