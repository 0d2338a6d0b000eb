#!/usr/bin/python3
"""Makes the models of test_bits.py beside this file: small nets of the three kinds, random weights. Needs python3-torch and
python3-onnx; the results are committed, so that the test needs neither."""
import os
import sys
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "bench"))
import quantize_models  # noqa: E402
warnings.filterwarnings("ignore")


class Cnn(nn.Module):
    """f32[N,3,H,W] -> f32[N,10]: a stem with stride, depthwise, a residual pair of 3×3, squeeze and excite."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.Hardswish(), nn.Conv2d(16, 24, 1))
        self.a = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1), nn.BatchNorm2d(24), nn.SiLU())
        self.b = nn.Conv2d(24, 24, 3, 1, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.ReLU(), nn.Conv2d(6, 24, 1), nn.Sigmoid())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.last = nn.Linear(24, 10)

    def forward(self, x):
        x = self.deep(self.stem(x))
        x = torch.relu(x + self.b(self.a(x)))
        x = self.pool(x * self.gate(x))
        return torch.softmax(self.last(x.mean((2, 3))), 1)


class Lstm(nn.Module):
    """f32[N,T,12] -> f32[N,T,5], f32[N,20]: an LSTM in both directions, a GRU."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(12, 20, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(40, 20, batch_first=True)
        self.last = nn.Linear(20, 5)

    def forward(self, x):
        y = self.gru(self.lstm(x)[0])[0]
        return self.last(y), y.mean(1)


class Transformer(nn.Module):
    """i64[N,T] -> f32[N,T,24]: words, two layers of attention with GELU."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 24)
        self.places = nn.Parameter(torch.randn(40, 24) * 0.1)
        layer = nn.TransformerEncoderLayer(24, 3, 48, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, ids):
        x = self.words(ids) + self.places[: ids.shape[1]]
        for layer in self.layers.layers:  # written out: the fused path does not export
            x = layer.norm1(x + layer.self_attn(x, x, x, need_weights=True)[0])
            x = layer.norm2(x + layer.linear2(nn.functional.gelu(layer.linear1(x))))
        return x


def export(name, net, x, axes):
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5)
    net.eval()
    torch.onnx.export(net, x, os.path.join(HERE, name), input_names=["x"], opset_version=16, dynamic_axes={"x": axes})


class Quantized:
    """f32[N,3,H,W] -> f32[N,6] in int8, as QuantizeLinear and DequantizeLinear around each layer."""

    def __init__(self):
        self.random = np.random.default_rng(3)
        self.nodes, self.constants, self.n = [], [], 0

    def constant(self, array):
        self.n += 1
        self.constants.append(numpy_helper.from_array(array, f"c{self.n}"))
        return f"c{self.n}"

    def node(self, op, inputs, **attributes):
        self.n += 1
        self.nodes.append(helper.make_node(op, inputs, [f"v{self.n}"], **attributes))
        return f"v{self.n}"

    def qdq(self, x, scale, zero):
        s, z = self.constant(np.float32(scale)), self.constant(np.uint8(zero))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, s, z]), s, z])

    def weights(self, *shape):
        w = self.constant(self.random.integers(-127, 128, shape).astype(np.int8))
        scales = self.constant((self.random.random(shape[0]) * 0.002 + 0.001).astype(np.float32))
        return self.node("DequantizeLinear", [w, scales, self.constant(np.zeros(shape[0], np.int8))], axis=0)

    def bias(self, n):
        return self.constant(self.random.standard_normal(n).astype(np.float32) * np.float32(0.2))

    def make(self):
        x = self.qdq("x", 0.015, 128)
        x = self.node("Conv", [x, self.weights(16, 3, 3, 3), self.bias(16)], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
        x = self.qdq(self.node("Relu", [x]), 0.02, 0)
        y = self.node("Conv", [x, self.weights(16, 1, 3, 3), self.bias(16)], kernel_shape=[3, 3], pads=[1] * 4, group=16)
        y = self.qdq(y, 0.02, 120)
        x = self.qdq(self.node("Add", [x, y]), 0.03, 100)
        x = self.qdq(self.node("Conv", [x, self.weights(20, 16, 1, 1)], kernel_shape=[1, 1]), 0.03, 128)
        x = self.qdq(self.node("GlobalAveragePool", [x]), 0.01, 128)
        self.nodes.append(helper.make_node("Gemm", [self.node("Flatten", [x]), self.weights(6, 20), self.bias(6)], ["y"], transB=1))
        graph = helper.make_graph(self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
                                  [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, os.path.join(HERE, "cnn-int8.onnx"))


def quantized_transformer():
    """transformer.onnx with its products in int8, as the bench's quantizer makes it of a larger one."""
    model = onnx.load(os.path.join(HERE, "transformer.onnx"))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    q = quantize_models.Quantizer(model, {"MatMul", "Gemm"}, False)
    q.wanted_names = set(q.wanted())
    words = np.random.default_rng(4).integers(0, 60, (8, 20))
    q.run(quantize_models.observe(os.path.join(HERE, "probe.onnx"), probe, q.wanted(), words))
    onnx.save(model, os.path.join(HERE, "transformer-int8.onnx"))


def main():
    torch.manual_seed(5)
    export("cnn.onnx", Cnn(), torch.randn(2, 3, 24, 20), {0: "N", 2: "H", 3: "W"})
    export("lstm.onnx", Lstm(), torch.randn(2, 9, 12), {0: "N", 1: "T"})
    export("transformer.onnx", Transformer(), torch.randint(0, 60, (2, 7)), {0: "N", 1: "T"})
    Quantized().make()
    quantized_transformer()


main()
