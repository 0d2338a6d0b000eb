"""PyTorch's own modules with random weights, exported to ONNX and run by `quern model run`: its output is PyTorch's within
1e-3 relative. A test a module. PyTorch (python3-torch) is large and not installed by `make check`: without it all skip."""
import os
import subprocess
import sys
import tempfile
import warnings

import numpy

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "it"))
import tap

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError:
    torch = None


def compare(module, inputs, opset=16, dynamic=True):
    """Exports with the first dimension free, runs with other data and compares every output."""
    torch.manual_seed(7)
    module.eval()
    names = [f"in{i}" for i in range(len(inputs))]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = module(*inputs)
        expected = flat(expected)
        path = os.path.join(folder, "m.onnx")
        outs = [f"out{i}" for i in range(len(expected))]
        axes = {n: {0: "n"} for n in names} if dynamic else None
        torch.onnx.export(module, tuple(inputs), path, input_names=names, output_names=outs, opset_version=opset, dynamic_axes=axes)
        command = [tap.QUERN, "model", "run", path, "--output", folder]
        for name, value in zip(names, inputs):
            numpy.save(os.path.join(folder, name + ".npy"), value.numpy())
            command += ["--input", f"{name}={folder}/{name}.npy"]
        for more in ([], ["--reference"]):
            r = subprocess.run(command + more, capture_output=True, text=True)
            assert r.returncode == 0, r.stderr
            for name, want in zip(outs, expected):
                got = numpy.load(os.path.join(folder, name + ".npy"))
                want = want.detach().numpy()
                assert got.shape == want.shape, f"{name} is {got.shape}, expected {want.shape}"
                worst = numpy.abs(got - want).max() / (1e-6 + numpy.abs(want).max())
                assert worst < 1e-3, f"{name} {more} differs by {worst:.2e} of the largest value"


def flat(value):
    return [value] if torch.is_tensor(value) else [t for v in value if v is not None for t in flat(v)]


def weights(module):
    """Random everywhere: a fresh norm is all ones and zeros, and would hide a swapped input."""
    with torch.no_grad():
        for name, p in list(module.named_parameters()) + list(module.named_buffers()):
            if p.dtype.is_floating_point:
                p.copy_(torch.rand_like(p) * 0.8 + 0.2 if "var" in name else torch.randn_like(p) * 0.2)
    return module


class Lambda(nn.Module if torch else object):
    """f(x…), which uses `modules`."""
    def __init__(self, f, *modules):
        super().__init__()
        self.f = f
        self.used = nn.ModuleList(modules)

    def forward(self, *x):
        return self.f(*x)


def recurrent(kind, **options):
    return lambda: compare(weights(getattr(nn, kind)(12, 20, **options)), [torch.randn(9, 4, 12)], dynamic=False)


def layer(make, *shape, opset=16):
    return lambda: compare(weights(make()), [torch.randn(*shape)], opset)


def function(f, *shapes, opset=16):
    return lambda: compare(Lambda(f), [torch.rand(*s) * 2 - 1 for s in shapes], opset)


def attention():
    m = weights(nn.MultiheadAttention(24, 4, batch_first=True))
    mask = torch.triu(torch.full((7, 7), float("-inf")), 1)
    compare(Lambda(lambda q, k, v: m(q, k, v, attn_mask=mask)[0], m), [torch.randn(3, 7, 24) for _ in range(3)])


def encoder(**options):
    def run():
        one = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, **options)
        m = weights(nn.TransformerEncoder(one, 2, enable_nested_tensor=False))
        compare(m, [torch.randn(3, 7, 24)], 14)
    return run


TESTS = {} if torch is None else {
    "rnn_tanh": recurrent("RNN"),
    "rnn_relu_bidirectional": recurrent("RNN", nonlinearity="relu", bidirectional=True),
    "gru": recurrent("GRU"),
    "gru_two_layers_bidirectional": recurrent("GRU", num_layers=2, bidirectional=True),
    "gru_without_bias": recurrent("GRU", bias=False),
    "lstm": recurrent("LSTM"),
    "lstm_two_layers_bidirectional": recurrent("LSTM", num_layers=2, bidirectional=True),
    "lstm_batch_first": recurrent("LSTM", batch_first=True),
    "transformer_encoder_relu": encoder(),
    "transformer_encoder_gelu_norm_first": encoder(activation="gelu", norm_first=True),
    "multihead_attention_causal": attention,
    "conv1d": layer(lambda: nn.Conv1d(6, 8, 5, stride=2, padding=3, dilation=2), 3, 6, 40),
    "conv2d": layer(lambda: nn.Conv2d(6, 8, 3, padding=1), 3, 6, 17, 19),
    "conv2d_reflect": layer(lambda: nn.Conv2d(6, 8, 3, padding=2, padding_mode="reflect"), 3, 6, 17, 19),
    "conv2d_depthwise": layer(lambda: nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6), 3, 6, 17, 19),
    "conv2d_groups": layer(lambda: nn.Conv2d(6, 9, (3, 1), groups=3, bias=False), 3, 6, 17, 19),
    "conv3d": layer(lambda: nn.Conv3d(3, 5, 3, stride=(1, 2, 1), padding=1), 2, 3, 6, 9, 8),
    "conv_transpose1d": layer(lambda: nn.ConvTranspose1d(6, 8, 5, stride=3, padding=1, output_padding=2), 3, 6, 14),
    "conv_transpose2d": layer(lambda: nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1), 3, 6, 9, 11),
    "conv_transpose2d_groups": layer(lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, dilation=2), 3, 6, 9, 11),
    "conv_transpose3d": layer(lambda: nn.ConvTranspose3d(3, 4, 3, stride=2, padding=1, output_padding=1), 2, 3, 4, 5, 6),
    "max_pool1d": layer(lambda: nn.MaxPool1d(3, stride=2, padding=1), 3, 6, 40),
    "max_pool2d_ceil": layer(lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), 3, 6, 18, 21),
    "max_pool2d_dilation": layer(lambda: nn.MaxPool2d((2, 3), stride=1, dilation=2), 3, 6, 18, 21),
    "max_pool3d": layer(lambda: nn.MaxPool3d(2, padding=1), 2, 3, 6, 9, 8),
    "avg_pool1d": layer(lambda: nn.AvgPool1d(4, stride=3, padding=2), 3, 6, 40),
    "avg_pool2d_ceil_without_pad": layer(lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), 3, 6, 18, 21),
    "avg_pool3d": layer(lambda: nn.AvgPool3d(3, stride=2, padding=1), 2, 3, 7, 9, 8),
    "adaptive_avg_pool": layer(lambda: nn.AdaptiveAvgPool2d((3, 7)), 3, 6, 18, 21),
    "global_max_pool": layer(lambda: nn.AdaptiveMaxPool2d(1), 3, 6, 18, 21),
    "batch_norm": layer(lambda: nn.BatchNorm2d(6), 3, 6, 8, 9),
    "instance_norm": layer(lambda: nn.InstanceNorm2d(6, affine=True), 3, 6, 8, 9),
    "group_norm": layer(lambda: nn.GroupNorm(3, 6), 3, 6, 8, 9),
    "layer_norm_opset_16": layer(lambda: nn.LayerNorm((8, 9)), 3, 6, 8, 9),
    "layer_norm_opset_17": layer(lambda: nn.LayerNorm(9), 3, 6, 8, 9, opset=17),
    "local_response_norm": layer(lambda: nn.LocalResponseNorm(3, alpha=0.1), 3, 6, 8, 9),
    "prelu": layer(lambda: nn.PReLU(6), 3, 6, 8, 9),
    "pixel_shuffle": layer(lambda: nn.PixelShuffle(2), 3, 8, 5, 6),
    "interpolate_nearest": function(lambda x: F.interpolate(x, scale_factor=2), (2, 3, 7, 9)),
    "interpolate_nearest_sizes": function(lambda x: F.interpolate(x, size=(11, 5)), (2, 3, 7, 9)),
    "interpolate_nearest_odd_scale": function(lambda x: F.interpolate(x, scale_factor=(0.6, 2.3)), (2, 3, 10, 9)),
    "interpolate_linear": function(lambda x: F.interpolate(x, size=17, mode="linear"), (2, 3, 9)),
    "interpolate_bilinear": function(lambda x: F.interpolate(x, scale_factor=2.5, mode="bilinear"), (2, 3, 8, 10)),
    "interpolate_bilinear_corners": function(lambda x: F.interpolate(x, size=(5, 21), mode="bilinear", align_corners=True), (2, 3, 7, 9)),
    "interpolate_bicubic": function(lambda x: F.interpolate(x, size=(12, 30), mode="bicubic"), (2, 3, 7, 9)),
    "interpolate_trilinear": function(lambda x: F.interpolate(x, size=(5, 9, 4), mode="trilinear"), (1, 2, 4, 6, 7)),
    "grid_sample_zeros": function(lambda x, g: F.grid_sample(x, g * 1.2, align_corners=False), (2, 3, 7, 9), (2, 5, 6, 2)),
    "grid_sample_border_corners": function(lambda x, g: F.grid_sample(x, g * 1.5, padding_mode="border", align_corners=True), (2, 3, 7, 9), (2, 5, 6, 2)),
    "grid_sample_reflection": function(lambda x, g: F.grid_sample(x, g * 2.5, padding_mode="reflection", align_corners=False), (2, 3, 7, 9), (2, 5, 6, 2)),
    "grid_sample_bicubic": function(lambda x, g: F.grid_sample(x, g, mode="bicubic", align_corners=False), (2, 3, 7, 9), (2, 5, 6, 2)),
    "log_softmax": function(lambda x: F.log_softmax(x, 1), (3, 6, 8)),
    "gelu_and_mish": function(lambda x: F.gelu(x) + F.mish(x), (3, 50)),
    "cumsum_topk": function(lambda x: torch.topk(torch.cumsum(x, 1), 3, 1).values, (4, 30)),
    "einsum": function(lambda a, b: torch.einsum("bij,bkj->bik", a, b), (3, 4, 5), (3, 6, 5)),
}


def skipped():
    raise tap.SkipTest("python3-torch is not installed")


tap.main({f"test_{n}": f for n, f in TESTS.items()} if TESTS else {"test_torch_modules": skipped})
