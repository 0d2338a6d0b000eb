#!/usr/bin/python3
"""Exports the models that `make bench-infer` runs, with random weights: real graphs, nothing downloaded.

Needs Debian's python3-torch and python3-torchvision. usage: export_models.py FOLDER
"""
import os
import sys
import warnings

import torch
import torchvision
from torch import nn

warnings.filterwarnings("ignore")


class Encoder(nn.Module):
    """A BERT-like encoder: token ids i64[N,T] -> f32[N,T,width]."""

    def __init__(self, layers, width, heads, vocabulary=30522, length=512):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers)
        for p in self.parameters():  # layers are copies of one another: give each its own weights
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, ids):
        x = self.norm(self.words(ids) + self.places[: ids.shape[1]])
        for layer in self.layers.layers:  # written out: the fused inference path does not export
            a, _ = layer.self_attn(x, x, x, need_weights=True)
            x = layer.norm1(x + a)
            x = layer.norm2(x + layer.linear2(nn.functional.gelu(layer.linear1(x))))
        return x


class Lstm(nn.Module):
    """f32[N,50,64] -> f32[N,50,256]."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(64, 256, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def calibrated(net, shape):
    """Batch statistics from noise, so that activations stay in a sane range as in a trained net."""
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(torch.randn(4, *shape))
    return net.eval()


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(1)
    image = (3, 224, 224)
    vision = torchvision.models
    jobs = {
        "resnet50": (lambda: calibrated(vision.resnet50(weights=None), image), torch.randn(2, *image)),
        "resnet18": (lambda: calibrated(vision.resnet18(weights=None), image), torch.randn(2, *image)),
        "mobilenet_v2": (lambda: calibrated(vision.mobilenet_v2(weights=None), image), torch.randn(2, *image)),
        "efficientnet_b0": (lambda: calibrated(vision.efficientnet_b0(weights=None), image), torch.randn(2, *image)),
        "minilm": (lambda: Encoder(6, 384, 12), torch.randint(0, 30000, (2, 128))),
        "bert_base": (lambda: Encoder(12, 768, 12), torch.randint(0, 30000, (2, 128))),
        "lstm": (lambda: Lstm(), torch.randn(2, 50, 64)),
    }
    for name, (make, x) in jobs.items():
        path = os.path.join(folder, name + ".onnx")
        if os.path.exists(path):
            continue
        net = make().eval()
        torch.onnx.export(net, x, path + ".part", input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}, opset_version=14)
        os.rename(path + ".part", path)
        print(path)


main()
