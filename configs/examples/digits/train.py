#!/usr/bin/python3
"""Makes store/digits/1/model.onnx: a small CNN for the UCI handwritten digits (8x8, values 0 to 16).

Needs Debian's python3-torch; quern itself does not. Rows whose index is a multiple of 3 are held out (599 of
1,797); the demo reports its accuracy on those only. Run in this folder: ./train.py
"""
import gzip

import numpy as np
import torch
from torch import nn

torch.manual_seed(1)
torch.set_num_threads(1)

with gzip.open("digits.csv.gz", "rt") as f:
    table = np.loadtxt(f, delimiter=",", dtype=np.float32)
held_out = np.arange(len(table)) % 3 == 0
x, y = torch.tensor(table[:, :64]), torch.tensor(table[:, 64], dtype=torch.long)


class Digits(nn.Module):
    """f32[N,64] pixels, row by row -> f32[N,10] probabilities."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))

    def forward(self, pixels):
        scores = self.head(self.features((pixels / 16).reshape(-1, 1, 8, 8)))
        return scores if self.training else scores.softmax(1)


model = Digits()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
train = np.flatnonzero(~held_out)
epochs, batch = 40, 32
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * ((len(train) + batch - 1) // batch))
for epoch in range(epochs):
    model.train()
    for rows in np.array_split(np.random.RandomState(epoch).permutation(train), (len(train) + batch - 1) // batch):
        # A pixel's shift in each direction is the same digit.
        image = x[rows].reshape(-1, 8, 8)
        image = torch.roll(image, tuple(np.random.RandomState(epoch * 1000 + int(rows[0])).randint(-1, 2, 2)), (1, 2)) if epoch % 2 else image
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image.reshape(-1, 64)), y[rows], label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
model.eval()
with torch.no_grad():
    right = model(x).argmax(1) == y
print(f"held out: {right[held_out].float().mean():.4f} of {held_out.sum()}, trained on: {right[~held_out].float().mean():.4f}")
torch.onnx.export(model, x[:2], "store/digits/1/model.onnx", input_names=["pixels"], output_names=["probabilities"],
                  dynamic_axes={"pixels": {0: "N"}, "probabilities": {0: "N"}}, opset_version=13)
