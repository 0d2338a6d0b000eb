#!/usr/bin/python3
"""Real architectures through quern and through ONNX Runtime: random weights, the same random input, outputs compared.

    zoo.py [--folder build/zoo] [--peers DIR] [--table FILE.md] [--all] [--keep] [WORD …]

Every torchvision architecture that PyTorch exports (a size or two of each family; --all: every size), and PyTorch's recurrent and
Transformer modules. WORDs choose models whose name holds one. Weights come from a fixed seed; BatchNorm gets the statistics of a
noise batch, and parameters that start as constants (norm scales, layer scales, heads of zeros) get random values too, for
otherwise whole branches of a net would not reach its output. Opsets 11, 13, 16 and 17 take turns.

The measure: the largest difference of any output element over the largest magnitude of that output, at most 1e-3.
Detections are compared as they come: same number, same order. Integer outputs must be equal.

Where quern says that rows stack, three rows in one batch, with 1 and 2 threads, must have the bits that they have alone.

Needs Debian's python3-torch, python3-torchvision, python3-onnx, and onnxruntime-node below DIR (`npm install` of tests/bench's
package.json). --table merges its rows into FILE.md, by name. It is a tool, no test of `make check`: PyTorch is large, and an hour is
soon gone. The exit code is 1 where a model differs or does not run.
"""
import argparse
import os
import re
import subprocess
import sys
import time
import warnings

import numpy as np
import onnx
import torch
import torchvision
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
QUERN = os.path.abspath(os.environ.get("QUERN", os.path.join(HERE, "..", "..", "build", "quern")))
OPSETS = (11, 13, 16, 17)
LIMIT = 1e-3
TV = torchvision.models
HEADER = "| model | opset | nodes | largest relative difference | batches |\n| --- | --- | --- | --- | --- |\n"

FAMILIES = """alexnet convnext_tiny densenet121 densenet161 efficientnet_b0 efficientnet_b3 efficientnet_v2_s googlenet inception_v3 maxvit_t
mnasnet0_5 mnasnet1_3 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf regnet_y_1_6gf resnet18 resnet50
resnext50_32x4d wide_resnet50_2 shufflenet_v2_x0_5 shufflenet_v2_x1_5 squeezenet1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vgg13_bn vit_b_16
vit_b_32""".split()
TOO_LARGE = ("regnet_y_128gf", "vit_h_14")  # beyond 2 GiB: one ONNX file cannot hold them


# --- weights -----------------------------------------------------------------------------------


def randomise(net):
    """Parameters that a fresh net sets to one constant get values around it."""
    with torch.no_grad():
        for p in net.parameters():
            if p.dtype.is_floating_point and p.numel() > 1 and p.max() == p.min():
                c = p.flatten()[0].item()
                p.copy_(1 + 0.1 * torch.randn_like(p) if c > 0.5 else 0.3 * torch.rand_like(p) if 0 < c < 0.01 else c + 0.05 * torch.randn_like(p))
    return net


def calibrate(net, inputs):
    """BatchNorm keeps the statistics of these inputs and of noise like them, so that activations stay in the range they have in a
    trained net. More than one input: the variance of a 1×1 map of one image is 0."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        m.momentum = None
        m.train()
    if norms:
        more = [x + [torch.rand_like(x[0]) for _ in range(3)] if isinstance(x, list) else torch.cat([x, torch.rand(3, *x.shape[1:]) * 2 - 1]) for x in inputs]
        with torch.no_grad():
            net(*more)
    for m in norms:
        m.eval()
    return net


class First(nn.Module):
    """Only the outputs that `pick` takes from the net's answer."""

    def __init__(self, net, pick):
        super().__init__()
        self.net = net
        self.pick = pick

    def forward(self, *x):
        return self.pick(self.net(*x))


# --- what there is -----------------------------------------------------------------------------
# A model is a function without arguments that gives (net, inputs, names of inputs whose first dimension is free).


def image(side, channels=3):
    return torch.rand(1, channels, side, side) * 2 - 1


def classifier(name):
    side = 224 if name.startswith(("alexnet", "maxvit", "vgg", "vit")) else {"inception_v3": 139, "googlenet": 96, "swin_v2_t": 128}.get(name, 64)

    def make():
        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        if name in ("googlenet", "inception_v3"):
            options["aux_logits"] = False
        net = getattr(TV, name)(weights=None, **options).eval()
        return net, [image(side)], True
    return make


def segmentation(name):
    def make():
        net = getattr(TV.segmentation, name)(weights=None, weights_backbone=None, aux_loss=None if "lraspp" in name else True).eval()
        return First(net, lambda o: tuple(o.values())), [image(96)], True
    return make


def detection(name, **options):
    def make():
        if "ssd" not in name:
            options.update(min_size=128, max_size=160)
        net = getattr(TV.detection, name)(weights=None, weights_backbone=None, **options).eval()
        side = 320 if "ssdlite" in name else 300 if "ssd" in name else 128
        return First(net, lambda o: tuple(o[0].values())), [[torch.rand(3, side, side)]], False
    return make


def video(name):
    def make():
        net = getattr(TV.video, name)(weights=None).eval()
        frames, side = (16, 224) if "mvit" in name else (14, 224) if name == "s3d" else (8, 56)
        return net, [torch.rand(1, 3, frames, side, side) * 2 - 1], name != "s3d"
    return make


def flow(name):
    def make():
        net = getattr(TV.optical_flow, name)(weights=None).eval()
        return First(net, lambda o: o[-1]), [image(128), image(128)], False
    return make


class TimeFirst(nn.Module):
    """Gives a recurrent module's output and last states as one tuple."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        y, state = self.net(x)
        return (y, *state) if isinstance(state, tuple) else (y, state)


def recurrent(kind, **options):
    def make():
        return TimeFirst(getattr(nn, kind)(24, 40, **options).eval()), [torch.randn(2, 15, 24) if options.get("batch_first") else torch.randn(15, 2, 24)], False
    return make


def encoder(**options):
    def make():
        layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, **options)
        return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval(), [torch.randn(2, 11, 48)], True
    return make


def decoder(**options):
    def make():
        layer = nn.TransformerDecoderLayer(48, 4, 96, batch_first=True, **options)
        net = nn.TransformerDecoder(layer, 3).eval()
        mask = torch.triu(torch.full((9, 9), float("-inf")), 1)
        return Masked(net, mask), [torch.randn(2, 9, 48), torch.randn(2, 11, 48)], True
    return make


class Masked(nn.Module):
    def __init__(self, net, mask):
        super().__init__()
        self.net = net
        self.register_buffer("mask", mask)

    def forward(self, x, memory):
        return self.net(x, memory, tgt_mask=self.mask)


def whole_transformer():
    return nn.Transformer(48, 4, 2, 2, 96, batch_first=True).eval(), [torch.randn(2, 11, 48), torch.randn(2, 9, 48)], True


def attention(**options):
    def make():
        return nn.MultiheadAttention(48, 4, batch_first=True, **options).eval(), [torch.randn(2, 9, 48), torch.randn(2, 11, options.get("kdim", 48)),
                                                                                 torch.randn(2, 11, options.get("vdim", 48))], True
    return make


def catalogue(every):
    names = [n for n in TV.list_models(TV) if n not in TOO_LARGE] if every else FAMILIES
    jobs = {n: classifier(n) for n in names}
    for n in "fcn_resnet50 deeplabv3_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large".split() + ["fcn_resnet101", "deeplabv3_resnet101"] * every:
        jobs[n] = segmentation(n)
    two_stage = {"box_score_thresh": 0.0, "box_detections_per_img": 20, "rpn_post_nms_top_n_test": 60, "rpn_pre_nms_top_n_test": 200}
    for n in "fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_mobilenet_v3_large_320_fpn".split():
        jobs[n] = detection(n, **two_stage)
    for n in "maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2 keypointrcnn_resnet50_fpn".split():
        jobs[n] = detection(n, **two_stage)
    for n in "retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 fcos_resnet50_fpn".split():
        jobs[n] = detection(n, score_thresh=0.0, detections_per_img=20)
    for n in "ssd300_vgg16 ssdlite320_mobilenet_v3_large".split():
        jobs[n] = detection(n, score_thresh=0.0, detections_per_img=20)
    for n in "r3d_18 mc3_18 r2plus1d_18 s3d mvit_v1_b mvit_v2_s".split():
        jobs[n] = video(n)
    for n in "raft_small raft_large".split():
        jobs[n] = flow(n)
    jobs.update({
        "LSTM": recurrent("LSTM"), "LSTM, 2 layers, both directions": recurrent("LSTM", num_layers=2, bidirectional=True),
        "LSTM, batch first": recurrent("LSTM", batch_first=True), "LSTM, no bias": recurrent("LSTM", bias=False),
        "LSTM, projection": recurrent("LSTM", proj_size=16),
        "GRU": recurrent("GRU"), "GRU, 3 layers, both directions": recurrent("GRU", num_layers=3, bidirectional=True),
        "RNN, tanh": recurrent("RNN"), "RNN, ReLU, 2 layers, both directions": recurrent("RNN", nonlinearity="relu", num_layers=2, bidirectional=True),
        "TransformerEncoder, ReLU": encoder(), "TransformerEncoder, GELU, norm first": encoder(activation="gelu", norm_first=True),
        "TransformerDecoder, masked": decoder(), "TransformerDecoder, GELU, norm first": decoder(activation="gelu", norm_first=True),
        "Transformer": whole_transformer, "MultiheadAttention": attention(),
        "MultiheadAttention, own key and value widths, bias of keys": attention(kdim=32, vdim=40, add_bias_kv=True),
    })
    return jobs


# --- one model ---------------------------------------------------------------------------------


def export(net, inputs, free, path, opset):
    names = [f"x{i}" for i in range(len(inputs))]
    axes = {n: {0: "N"} for n in names} if free else None
    words = ""
    zero, torch.Tensor.zero_ = torch.Tensor.zero_, lambda t: t  # Swin V2 zeroes its keys' bias in place, for which there is no export: here it stays
    for version in (opset, 16, 17, 14):
        try:
            torch.onnx.export(net, tuple(inputs), path, input_names=names, dynamic_axes=axes, opset_version=version)
            torch.Tensor.zero_ = zero
            return version, ""
        except Exception as e:  # what PyTorch cannot export raises many types
            words = words or f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"
    torch.Tensor.zero_ = zero
    return None, words


def call(command):
    start = time.monotonic()
    p = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    words = p.stderr.strip().splitlines()
    return ("" if p.returncode == 0 else f"ended with {p.returncode}: " + " ".join(words[-3:])[:400]), time.monotonic() - start


def difference(ours, theirs):
    """(largest relative difference, what else is wrong)"""
    worst = 0.0
    files = sorted(os.listdir(theirs))
    if not files:
        return 1.0, "no output"
    for name in files:
        a, b = np.load(os.path.join(ours, name)), np.load(os.path.join(theirs, name))
        if a.shape != b.shape or a.dtype != b.dtype:
            return 1.0, f"{name} is {a.dtype}{list(a.shape)}, ONNX Runtime gives {b.dtype}{list(b.shape)}"
        if b.size == 0:
            continue
        if b.dtype.kind != "f":
            worst = max(worst, 0.0 if np.array_equal(a, b) else 1.0)
            continue
        if not np.isfinite(b).all():
            return 1.0, f"{name}: ONNX Runtime's output is not finite"
        scale = np.abs(b).max()
        if b.size > 1 and not b.std() > 0 and scale == 0:
            return 1.0, f"{name} is all zeros: the weights show nothing"
        worst = max(worst, float(np.abs(a.astype(np.float64) - b).max() / (scale + 1e-30)))
    return worst, ""


def run(model, folder, arrays, *options):
    """quern's outputs in `folder`; what went wrong, the seconds it took."""
    command = ["nice", QUERN, "model", "run", model, "--output", folder, *options]
    for i, array in enumerate(arrays):
        np.save(os.path.join(folder, f"in{i}"), array)
        command += ["--input", f"x{i}={folder}/in{i}.npy"]
    result = call(command)
    for i in range(len(arrays)):
        os.remove(os.path.join(folder, f"in{i}.npy"))
    return result


def outputs(folder):
    return {f: np.load(os.path.join(folder, f)) for f in sorted(os.listdir(folder))}


def batches(model, folder, arrays):
    """What the column of that name says, and whether it is well."""
    p = subprocess.run([QUERN, "model", "show", model], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kind = re.search(r"^  batches +(.*)$", p.stdout, re.M)
    if not kind:
        return f"`model show` ended with {p.returncode}: {p.stdout[-200:]}", False
    if not kind[1].startswith("rows stack"):
        return kind[1], True
    random = np.random.default_rng(9)
    rows = [np.concatenate([a[:1]] + [random.permutation(a[:1].ravel()).reshape(a[:1].shape) for _ in range(2)]) for a in arrays]
    alone = []
    for r in range(3):
        words, _ = run(model, folder, [a[r : r + 1] for a in rows])
        if words:
            return f"a row alone: {words}", False
        alone.append(outputs(folder))
    for threads in (1, 2):
        words, _ = run(model, folder, rows, "--threads", str(threads))
        if words:
            return f"three rows: {words}", False
        for f, array in outputs(folder).items():
            for r in range(3):
                if array.shape[0] != 3 or array[r].tobytes() != alone[r][f][0].tobytes():
                    return f"row {r} of {f} has other bits in a batch of 3, {threads} threads", False
    return "rows stack, same bits", True


def short(words):
    words = re.sub(r"\. Please feel free.*|\. Please open a bug.*", "", words.replace("|", "/"))
    return words[:200]


def nodes_of(graph):
    return sum(1 + sum(nodes_of(a.g) for a in n.attribute if a.HasField("g")) for n in graph.node)


def one(name, make, opset, args):
    """The row of the table, and whether all is well (None: PyTorch does not export it)."""
    stem = re.sub(r"[^a-z0-9_]+", "-", name.lower())
    folder = os.path.join(args.folder, stem)
    paths = {k: os.path.join(folder, k) for k in ("in", "ours", "theirs", "rows")}
    for p in paths.values():
        os.makedirs(p, exist_ok=True)
        for f in os.listdir(p):
            os.remove(os.path.join(p, f))
    model = os.path.join(folder, "model.onnx")
    torch.manual_seed(7)
    try:
        net, inputs, free = make()
    except ValueError as e:
        return f"| {name} | | | PyTorch refuses: {e} | |", None
    calibrate(randomise(net), inputs)
    version, words = export(net, inputs, free, model, opset)
    del net
    if version is None:
        return f"| {name} | | | PyTorch 1.13 does not export it: {short(words)} | |", None
    nodes = nodes_of(onnx.load(model).graph)
    arrays = [(v[0] if isinstance(v, list) else v).numpy() for v in inputs]
    for i, array in enumerate(arrays):
        np.save(os.path.join(paths["in"], f"x{i}.npy"), array)
    words, ours_s = run(model, paths["ours"], arrays)
    theirs, theirs_s = call(["nice", "node", os.path.join(HERE, "zoo_ort.mjs"), args.peers, model, paths["in"], paths["theirs"]])
    print(f"    {name}: opset {version}, {nodes} nodes, quern {ours_s:.1f} s, ONNX Runtime {theirs_s:.1f} s", flush=True)
    worst, wrong = (1.0, f"quern {words}") if words else (1.0, f"ONNX Runtime {theirs}") if theirs else difference(paths["ours"], paths["theirs"])
    good = not wrong and worst <= LIMIT
    stacking, fine = ("", False) if words else batches(model, paths["rows"], arrays)
    if good and fine and not args.keep:
        os.remove(model)
    return f"| {name} | {version} | {nodes} | {wrong or f'{worst:.1e}'} | {stacking} |", good and fine


def merge(path, rows):
    """The table of `path` with these rows in it; what is around the table stays."""
    text = open(path, encoding="utf-8").read() if os.path.exists(path) else ""
    before, _, rest = text.partition(HEADER)
    lines = rest.split("\n")
    n = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    table = {line.split(" | ")[0]: line for line in lines[:n]}
    table.update({row.split(" | ")[0]: row for row in rows})
    with open(path, "w", encoding="utf-8") as f:
        f.write(before + HEADER + "\n".join(table.values()) + "\n" + "\n".join(lines[n:]).lstrip("\n"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--folder", default="build/zoo")
    parser.add_argument("--peers", default="build/bench")
    parser.add_argument("--table")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--keep", action="store_true", help="keep the exported files (those of models that differ always stay)")
    args = parser.parse_args()
    args.peers = os.path.abspath(args.peers)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    bad = 0
    for i, (name, make) in enumerate(catalogue(args.all).items()):
        if args.words and not any(w.lower() in name.lower() for w in args.words):
            continue
        row, good = one(name, make, OPSETS[i % len(OPSETS)], args)
        print(row, flush=True)
        bad += good is False
        if args.table:
            merge(args.table, [row])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
