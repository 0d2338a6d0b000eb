"""A row has the same bits in any batch, at any position, with 1 and 2 threads, at every ISA level of the machine (TAP).

The nets of models/ (made by models/make.py: a CNN in f32 and int8, recurrent, Transformer) and, with QUERN_TEST_DATA, real ones. For each
level every result is compared, bit by bit, with the row alone on one thread, and that with the plain level's.
`quern score` gives the same bits too, whatever rows it runs together and on however many lanes."""
import glob
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "it"))
import tap  # noqa: E402

LEVELS = ("generic", "avx2", "avx512", "vnni", "amx")
ROWS = 7
BATCHES = ([0, 1, 2], [5, 2, 0], list(range(ROWS)), list(range(ROWS - 1, -1, -1)), [3] * 4)
ALONE = (0, 2, 3, 5)  # rows that run alone; each is at several positions above


def run(path, inputs, rows, folder, level, threads, precision="fp32"):
    """{output's file name: array} of these rows of the inputs."""
    command = [tap.QUERN, "model", "run", path, "--output", f"{folder}/out", "--cpu", level, "--threads", str(threads), "--precision", precision]
    for name, array in inputs.items():
        np.save(f"{folder}/{name}.npy", np.ascontiguousarray(array[rows]))
        command += ["--input", f"{name}={folder}/{name}.npy"]
    for f in glob.glob(f"{folder}/out/*"):
        os.remove(f)
    p = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if "has no ISA level" in p.stdout:
        raise tap.SkipTest(f"this machine has no {level}")
    assert p.returncode == 0, p.stdout
    return {os.path.basename(f): np.load(f) for f in sorted(glob.glob(f"{folder}/out/*.npy"))}


def check_level(path, inputs, folder, level, precision="fp32"):
    alone = {r: run(path, inputs, [r], folder, level, 1, precision) for r in ALONE}
    for threads in (1, 2):
        for rows in BATCHES:
            got = run(path, inputs, rows, folder, level, threads, precision)
            assert got, "no outputs"
            for name, array in got.items():
                assert array.shape[0] == len(rows), f"{name} is {array.shape} for {len(rows)} rows"
                assert np.isfinite(array).all() and array.std() > 0, f"{name} shows nothing"
                for position, r in enumerate(rows):
                    same = r not in alone or array[position].tobytes() == alone[r][name][0].tobytes()
                    assert same, f"{name}: row {r} at position {position} of {len(rows)}, {threads} threads, {level}: other bits than alone"
    return alone[ALONE[0]]


def bits(path, level, make_inputs):
    def test():
        full = path() if callable(path) else os.path.join(HERE, "models", path)
        with tempfile.TemporaryDirectory() as folder:
            inputs = make_inputs(np.random.default_rng(11))
            here = check_level(full, inputs, folder, level)
            plain = run(full, inputs, [ALONE[0]], folder, "generic", 1)
            for name, array in here.items():
                worst = np.abs(array.astype(np.float64) - plain[name]).max() / np.abs(plain[name]).max()
                assert array.tobytes() == plain[name].tobytes(), f"{name}: {level} has other bits than generic, {worst:.1e} of the largest value"
    return test


def bits_bf16(path, level, make_inputs):
    """As in f32; the levels without an instruction for it have each other's bits, and the results are near those of f32 but not the same."""
    def test():
        full = os.path.join(HERE, "models", path)
        with tempfile.TemporaryDirectory() as folder:
            inputs = make_inputs(np.random.default_rng(11))
            here = check_level(full, inputs, folder, level, "bf16")
            exact = run(full, inputs, [ALONE[0]], folder, level, 1)
            plain = run(full, inputs, [ALONE[0]], folder, "generic", 1, "bf16")
            for name, array in here.items():
                worst = np.abs(array.astype(np.float64) - exact[name]).max() / np.abs(exact[name]).max()
                assert 0 < worst < 0.03, f"{name}: {worst:.1e} of the largest value from f32"
                assert level in ("vnni", "amx") or array.tobytes() == plain[name].tobytes(), f"{name}: {level} has other bits than generic"
    return test


def score(model, make_inputs):
    def test():
        full = os.path.join(HERE, "models", model)
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(f"{folder}/run")
            (rows,) = make_inputs(np.random.default_rng(12)).values()
            rows = np.concatenate([rows, rows[::-1], rows[2:5]])
            np.save(f"{folder}/rows.npy", rows)
            (alone,) = zip(*(run(full, {"x": rows}, [r], f"{folder}/run", "generic", 1).values() for r in range(len(rows))))
            for batch, lanes in ((1, 1), (3, 1), (5, 2), (32, 2)):
                out = f"{folder}/{batch}.npy"
                p = subprocess.run([tap.QUERN, "score", "--model", full, "--input", f"{folder}/rows.npy", "--output", out, "--batch-rows-max", str(batch), "--lanes", str(lanes),
                                    "--cpu", "generic"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                assert p.returncode == 0, p.stdout
                got = np.load(out)
                assert got.shape[0] == len(rows), got.shape
                for r, want in enumerate(alone):
                    assert got[r].tobytes() == want.tobytes(), f"row {r}: other bits than alone, batches of up to {batch}, {lanes} lanes"
    return test


def reals(*shape):
    return lambda random: {"x": (random.random((ROWS, *shape)) * 2 - 1).astype(np.float32)}


def words(length):
    return lambda random: {"x": random.integers(0, 60, (ROWS, length))}


def real_model(name):
    return lambda: os.path.join(tap.need_data(), "models", name)


def story(random):
    """One step of a small language model with three words in its cache."""
    cache = {f"past_key_values.{i}.{kind}": random.standard_normal((ROWS, 4, 3, 8)).astype(np.float32) for i in range(5) for kind in ("key", "value")}
    return {"input_ids": random.integers(0, 500, (ROWS, 1)), "attention_mask": np.ones((ROWS, 4), np.int64), "position_ids": np.full((ROWS, 1), 3), **cache}


MODELS = {
    "cnn": ("cnn.onnx", reals(3, 24, 20)), "cnn_larger": ("cnn.onnx", reals(3, 65, 47)), "cnn_int8": ("cnn-int8.onnx", reals(3, 25, 32)),
    "lstm": ("lstm.onnx", reals(9, 12)), "lstm_long": ("lstm.onnx", reals(50, 12)), "transformer": ("transformer.onnx", words(7)),
    "transformer_long": ("transformer.onnx", words(33)), "transformer_int8": ("transformer-int8.onnx", words(9)),
}
REAL = {
    "darknet": (real_model("darknet-tiny-imagenet.onnx"), lambda random: {"image": random.random((ROWS, 3, 224, 224), np.float32)}),
    "sentence_boundaries": (real_model("lstm-sentence-boundary/model.onnx"), lambda random: {"input": random.integers(32, 127, (ROWS, 40)).astype(np.uint8)}),
    "stories": (real_model("stories260K.onnx"), story),
}
tests = {f"test_{name}_{level}": bits(path, level, make) for name, (path, make) in MODELS.items() for level in LEVELS}
tests.update({f"test_{name}_{level}": bits(path, level, make) for name, (path, make) in REAL.items() for level in LEVELS[-1:] + LEVELS[:1] * (name != "darknet")})
tests.update({f"test_{name}_bf16_{level}": bits_bf16(*MODELS[name][:1], level, MODELS[name][1]) for name in ("cnn_larger", "transformer_long") for level in LEVELS})
tests.update({f"test_score_{name}": score(MODELS[name][0], MODELS[name][1]) for name in ("cnn", "cnn_int8", "transformer", "transformer_int8")})
tap.main(tests)
