"""Training specs and folders for tests of training."""
import copy
import json
import os
import resource
import shutil
import subprocess
import tempfile

import tap
from server import CLEAN

DIGITS = os.path.abspath("configs/examples/digits/digits.csv.gz")
SPEC = {
    "model": {"input_shape": [8, 8, 1], "layers": [
        {"type": "Conv2D", "filters": 8, "kernel_size": 3, "padding": "same"},
        {"type": "BatchNormalization", "momentum": 0.9},
        {"type": "ReLU"},
        {"type": "MaxPooling2D"},
        {"type": "Flatten"},
        {"type": "Dropout", "rate": 0.2},
        {"type": "Dense", "units": 10, "activation": "softmax"}]},
    "data": {"train": {"x": DIGITS, "target": 64, "header": False}, "test_split": 0.25,
             "preprocess": [{"type": "Rescaling", "scale": 0.0625}]},
    "compile": {"optimizer": {"type": "Adam", "learning_rate": 0.005}, "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
    "fit": {"epochs": 6, "batch_size": 32, "validation_split": 0.1, "seed": 3},
}


def digits_store(folder):
    """A model store with the digits of the examples, trained as the README says; its path."""
    store = os.path.join(folder, "store")
    done = subprocess.run([tap.QUERN, "train", "configs/examples/digits/train.json", "--output", os.path.join(folder, "digits"), "--models", store],
                          capture_output=True, text=True, timeout=300, env=dict(CLEAN, HOME="/nonexistent"))
    assert done.returncode == 0 and "published as digits@1" in done.stdout, done
    return store


class Folder:
    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="quern-train-")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)

    def at(self, *names):
        return os.path.join(self.path, *names)

    def spec(self, spec, name="spec.json"):
        with open(self.at(name), "w") as f:
            json.dump(spec, f)
        return self.at(name)

    def start(self, spec, output, *options, file_bytes_max=None):
        limit = file_bytes_max and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max)))
        return subprocess.Popen([tap.QUERN, "train", self.spec(spec), "--output", self.at(output), *options], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env=dict(CLEAN, HOME="/nonexistent"), preexec_fn=limit)

    def train(self, spec, output="out", *options, rc=0):
        p = self.start(spec, output, *options)
        out, err = p.communicate(timeout=300)
        assert p.returncode == rc, (p.returncode, out, err)
        return out, err

    def checkpoint(self, output):
        """The file of the state that a stopped run has left; None where there is none."""
        for n in os.listdir(self.at(output)) if os.path.isdir(self.at(output)) else []:
            if n.startswith(".train-") and not n.endswith(".tmp") and os.path.getsize(self.at(output, n)):
                return self.at(output, n)
        return None

    def read(self, *names):
        with open(self.at(*names), "rb") as f:
            return f.read()


def changed(spec=SPEC, **paths):
    """A copy with values at paths: fit__epochs=2."""
    spec = copy.deepcopy(spec)
    for path, value in paths.items():
        at = spec
        *way, last = path.split("__")
        for w in way:
            at = at[w]
        at[last] = value
    return spec
