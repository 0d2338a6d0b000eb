"""Random graphs, rewritten and run by the kernels, against the plain reference without any pass (TAP).

Each graph is a chain of blocks as exporters write them (random_graph.py): convolutions with normalisation, activation and residual
sums, matrix products with bias and GELU, LayerNorm and attention written out, arithmetic on shapes that ends in a Reshape, gates,
Ifs, recurrent layers, repeated and unused nodes. A graph runs with all passes, with each pass alone, with none, and at a random ISA level or
thread count; each must agree with `quern model run --reference` within the tolerance.

QUERN_GRAPHS (100) sets the number of graphs, QUERN_SEED (1) the first seed; a failing graph is kept below /tmp."""
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "it"))
import random_graph  # noqa: E402
import tap  # noqa: E402

PASSES = "identity fold inline_if cse fold_batchnorm fuse_swish fuse_gelu fuse_layer_norm sink_transpose fuse_attention fuse_quantized fuse_quantized_images fold_weights fuse_epilogue channels_last fuse_quant_add fuse_strips dead".split()
with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
    HAS_AVX2 = " avx2 " in cpuinfo.read().replace("\n", " ")
TOLERANCE = 2e-4  # of the largest magnitude of an output: sums in another order, polynomials for libm


# --- running -------------------------------------------------------------------------------------


def run(folder, out, *options):
    p = subprocess.run([tap.QUERN, "model", "run", f"{folder}/model.onnx", "--input", f"{folder}/x.npy", "--output", f"{folder}/{out}", *options],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert p.returncode == 0, f"{' '.join(options)}: ended with {p.returncode}: {p.stdout[-2000:]}"


def check(folder, outputs, out, options):
    run(folder, out, *options)
    for name, shape in outputs:
        want, got = np.load(f"{folder}/reference/{name}.npy"), np.load(f"{folder}/{out}/{name}.npy")
        assert want.shape == shape and got.shape == shape, f"{options}: {name} is {got.shape}, the reference {want.shape}, expected {shape}"
        assert np.isfinite(want).all(), f"{name}: the reference is not finite"
        worst = np.abs(want - got).max() / (np.abs(want).max() + 1e-6)
        assert worst <= TOLERANCE, f"{' '.join(options) or 'all passes'}: {name} differs by {worst:.2e} of the largest value"


def one_graph(seed, folder):
    model, x, outputs = random_graph.make(seed)
    onnx.save(model, f"{folder}/model.onnx")
    np.save(f"{folder}/x.npy", x)
    run(folder, "reference", "--reference")
    check(folder, outputs, "all", ())
    check(folder, outputs, "one", ("--passes", PASSES[seed % len(PASSES)]))
    check(folder, outputs, "none", ("--passes", ""))
    more = [("--cpu", "generic"), ("--threads", "2"), ("--cpu", "avx2")][seed % (3 if HAS_AVX2 else 2)]
    check(folder, outputs, "more", more)


def some_graphs(first, n):
    def test():
        for seed in range(first, first + n):
            folder = tempfile.mkdtemp(prefix="quern-graph-")
            try:
                one_graph(seed, folder)
            except AssertionError as e:
                raise AssertionError(f"seed {seed}, kept in {folder}: {e}") from None
            shutil.rmtree(folder)
    return test


def an_unknown_pass_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        model, x, _ = random_graph.make(1)
        onnx.save(model, f"{folder}/model.onnx")
        np.save(f"{folder}/x.npy", x)
        p = subprocess.run([tap.QUERN, "model", "run", f"{folder}/model.onnx", "--input", f"{folder}/x.npy", "--output", folder, "--passes", "dead,fuse"],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert p.returncode == 1 and 'no pass "fuse"' in p.stdout, p.stdout
        for name in PASSES:
            assert name in p.stdout, f"the list of passes has no {name}: {p.stdout}"


N, SEED = int(os.environ.get("QUERN_GRAPHS", "30" if os.environ.get("SAN") else "100")), int(os.environ.get("QUERN_SEED", "1"))
STEP = max(1, N // 10)
tap.main({"test_an_unknown_pass_is_refused": an_unknown_pass_is_refused,
          **{f"test_graphs_{a}_to_{min(a + STEP, SEED + N) - 1}": some_graphs(a, min(STEP, SEED + N - a)) for a in range(SEED, SEED + N, STEP)}})
