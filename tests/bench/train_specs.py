#!/usr/bin/python3
"""The training steps that `make bench-train` measures: for each a spec of ours with its data, and the same step in PyTorch.

usage: train_specs.py FOLDER            writes FOLDER/NAME.json and random data beside it, for `quern model bench --train`
       train_specs.py --torch NAME THREADS SECONDS    measures PyTorch's step (Debian's python3-torch): one JSON object

The two sides see the same shapes, optimiser and loss; PyTorch gets its tensors ready made, ours reads its rows as in training.
"""
import json
import os
import resource
import sys
import time

import numpy as np


def conv(filters, size, **more):
    return {"type": "Conv2D", "filters": filters, "kernel_size": [size, size], **more}


def resnet18(classes):
    """ResNet-18 in layers: basic blocks with projections where the shape changes."""
    layers, last, n = [], "in", 0

    def add(layer, *inputs):
        nonlocal last, n
        n += 1
        layer["name"] = f"l{n}"
        layer["inputs"] = list(inputs) or [last]
        layers.append(layer)
        last = layer["name"]
        return last

    def conv_bn(filters, size, stride, source=None):
        add(conv(filters, size, strides=[stride, stride], padding="same", use_bias=False), *([source] if source else []))
        return add({"type": "BatchNormalization"})

    layers.append({"type": "Input", "name": "in"})
    conv_bn(64, 7, 2)
    add({"type": "Activation", "activation": "relu"})
    add({"type": "MaxPooling2D", "pool_size": [3, 3], "strides": [2, 2], "padding": "same"})
    for i, filters in enumerate((64, 64, 128, 128, 256, 256, 512, 512)):
        stride, source = (2 if i in (2, 4, 6) else 1), last
        conv_bn(filters, 3, stride)
        add({"type": "Activation", "activation": "relu"})
        main = conv_bn(filters, 3, 1)
        short = conv_bn(filters, 1, stride, source) if stride == 2 else source
        add({"type": "Add"}, main, short)
        add({"type": "Activation", "activation": "relu"})
    add({"type": "GlobalAveragePooling2D"})
    add({"type": "Dense", "units": classes, "activation": "softmax"})
    return layers


def transformer(vocabulary):
    layers = [{"type": "Embedding", "input_dim": vocabulary, "output_dim": 128}, {"type": "PositionEmbedding"}]
    layers += [{"type": "TransformerBlock", "num_heads": 4, "use_causal_mask": True, "activation": "gelu"} for _ in range(4)]
    return layers + [{"type": "LayerNormalization"}, {"type": "Dense", "units": vocabulary, "activation": "softmax"}]


# name: (batch, shape of a row, classes, labels of a row, layers, optimiser)
SPECS = {
    "mnist_cnn": (32, (28, 28, 1), 10, (), [conv(32, 3, activation="relu"), {"type": "MaxPooling2D"}, conv(64, 3, activation="relu"), {"type": "MaxPooling2D"},
                                            {"type": "Flatten"}, {"type": "Dense", "units": 128, "activation": "relu"},
                                            {"type": "Dense", "units": 10, "activation": "softmax"}], "adam"),
    "mlp": (64, (784,), 10, (), [{"type": "Dense", "units": 512, "activation": "relu"}, {"type": "Dense", "units": 10, "activation": "softmax"}], "sgd"),
    "lstm": (32, (50, 64), 10, (), [{"type": "LSTM", "units": 256}, {"type": "Dense", "units": 10, "activation": "softmax"}], "adam"),
    "resnet18": (8, (224, 224, 3), 1000, (), resnet18(1000), "sgd"),
    "transformer": (12, (64,), 65, (64,), transformer(65), "adam"),
}


def write(folder):
    rng = np.random.default_rng(1)
    os.makedirs(folder, exist_ok=True)
    for name, (batch, shape, classes, labels, layers, optimizer) in SPECS.items():
        rows = 4 * batch
        x = rng.integers(0, classes, (rows, *shape)) if name == "transformer" else rng.random((rows, *shape), dtype=np.float32)
        np.save(os.path.join(folder, name + ".x.npy"), x)
        np.save(os.path.join(folder, name + ".y.npy"), rng.integers(0, classes, (rows, *labels)))
        spec = {"model": {"input_shape": list(shape), "layers": layers}, "data": {"train": {"x": name + ".x.npy", "y": name + ".y.npy"}, "allow_empty_classes": True},
                "compile": {"optimizer": {"type": optimizer, "learning_rate": 1e-3}, "loss": "sparse_categorical_crossentropy"},
                "fit": {"epochs": 1, "batch_size": batch, "seed": 1}}
        with open(os.path.join(folder, name + ".json"), "w") as f:
            json.dump(spec, f, indent=1)


def torch_net(name):
    import torch
    from torch import nn
    if name == "mnist_cnn":
        return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                             nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10))
    if name == "mlp":
        return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
    if name == "resnet18":
        import torchvision
        return torchvision.models.resnet18(weights=None)

    class Lstm(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(64, 256, batch_first=True), nn.Linear(256, 10)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    class Block(nn.Module):
        """Pre-norm, as TransformerBlock: x + attention(norm(x)), x + mlp(norm(x)), GELU, width 4."""

        def __init__(self, width, heads):
            super().__init__()
            self.n1, self.n2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, t, c = x.shape
            q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in self.qkv(self.n1(x)).split(c, 2))
            s = (q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5
            s = s.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
            x = x + self.out((s @ v).transpose(1, 2).reshape(b, t, c))
            return x + self.down(nn.functional.gelu(self.up(self.n2(x))))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(65, 128), nn.Embedding(64, 128)
            self.blocks, self.norm, self.head = nn.Sequential(*[Block(128, 4) for _ in range(4)]), nn.LayerNorm(128), nn.Linear(128, 65)

        def forward(self, x):
            return self.head(self.norm(self.blocks(self.words(x) + self.places(torch.arange(x.shape[1])))))

    return Lstm() if name == "lstm" else Transformer()


def measure_torch(name, threads, seconds):
    import torch
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    batch, shape, classes, labels, _, optimizer = SPECS[name]
    if len(shape) == 3:
        shape = (shape[2], shape[0], shape[1])
    net = torch_net(name).train()
    step = torch.optim.Adam(net.parameters(), 1e-3) if optimizer == "adam" else torch.optim.SGD(net.parameters(), 1e-3)
    x = torch.randint(0, classes, (batch, *shape)) if name == "transformer" else torch.rand(batch, *shape)
    y = torch.randint(0, classes, (batch, *labels))
    rates, windows = [], 10
    from_, seen, began = None, 0, None
    i = 0
    while len(rates) < windows:
        step.zero_grad()
        out = net(x)
        loss = torch.nn.functional.cross_entropy(out.reshape(-1, classes), y.reshape(-1))
        loss.backward()
        step.step()
        i += 1
        now = time.perf_counter()
        if i == 3:
            from_ = began = now
        elif i > 3:
            seen += batch
            if now - from_ >= seconds / windows:
                rates.append(seen / (now - from_))
                seen, from_ = 0, now
    rates.sort()
    print(json.dumps({"samples_per_s": rates[-1], "samples_per_s_median": rates[len(rates) // 2],
                      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if sys.argv[1] == "--torch":
    measure_torch(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
else:
    write(sys.argv[1])
