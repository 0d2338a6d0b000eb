"""Real models on real data through the engine's library and `quern model run` (TAP). Needs QUERN_TEST_DATA and `make lib`."""
import glob
import gzip
import json
import os
import subprocess
import sys
import tempfile
import wave

import numpy as np
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "it"))
import engine  # noqa: E402
import tap  # noqa: E402


def model(name, **options):
    folder = os.path.join(tap.need_data(), "models")
    if "thread" in engine.SAN:
        raise tap.SkipTest("a library with ThreadSanitizer does not load into Python")
    return engine.Model(os.path.join(folder, name), **options)


def idx(name):
    with gzip.open(os.path.join(tap.need_data(), "datasets", name)) as f:
        raw = f.read()
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def photo(name, size=None):
    image = Image.open(os.path.join(tap.need_data(), "photos", name)).convert("RGB")
    return image.resize(size, Image.BILINEAR) if size else image


def chw(image):
    return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1)[None])


def centre(image, side):
    scale = side * 8 / 7 / min(image.size)
    image = image.resize([round(d * scale) for d in image.size], Image.BILINEAR)
    left, top = [(d - side) // 2 for d in image.size]
    return image.crop((left, top, left + side, top + side))


def test_mnist_recognises_as_many_as_onnx_runtime():
    m = model("mnist-cntk.onnx")
    images, labels = idx("t10k-images-idx3-ubyte.gz").astype(np.float32), idx("t10k-labels-idx1-ubyte.gz")
    right = sum(int(m(images[i].reshape(1, 1, 28, 28))[0].argmax() == labels[i]) for i in range(len(labels)))
    assert right == 9891, right


def test_darknet_names_the_pictures():
    m = model("darknet-tiny-imagenet.onnx")
    with open(os.path.join(tap.need_data(), "models", "imagenet.shortnames.txt"), encoding="utf-8") as f:
        names = f.read().split("\n")
    batch = np.concatenate([chw(centre(photo(p), 224)) / 255 for p in ("coffee.png", "chelsea.png", "dog.jpg")])
    scores = m(batch)[0]
    assert [names[i] for i in scores.argmax(1)] == ["espresso", "Egyptian cat", "dogsled"]
    assert scores[0].max() > 0.8, scores[0].max()
    alone = m(batch[1:2])[0]
    assert np.array_equal(alone[0], scores[1]), "a row has other bits in a batch"
    assert m.batchable() == 1


def test_sentence_boundaries_are_those_recorded():
    folder = os.path.join(tap.need_data(), "models", "lstm-sentence-boundary")
    m = model("lstm-sentence-boundary/model.onnx")
    recorded = np.load(os.path.join(folder, "io.npz"))
    x, want = (recorded[name] for name in recorded.files)
    got = m(x)[0]
    assert got.shape == want.shape and np.allclose(got, want, rtol=1e-3, atol=1e-5), np.abs(got - want).max()


def test_stories_are_told_word_for_word():
    m = model("stories260K.onnx")
    folder = os.path.join(tap.need_data(), "models")
    with open(os.path.join(folder, "stories260K.vocab.json"), encoding="utf-8") as f:
        vocab = json.load(f)["vocab"]
    with open(os.path.join(folder, "stories260K.expected.txt"), encoding="utf-8") as f:
        expected = f.read().strip()
    token, text = 1, ""
    cache = [np.zeros((1, 4, 0, 8), np.float32)] * 10
    for position in range(256):
        logits, *cache = m(np.array([[token]]), np.ones((1, position + 1), np.int64), np.array([[position]]), *cache)
        token = int(logits[0, -1].argmax())
        if token in (1, 2):
            break
        text += "\n" if vocab[token] == "<0x0A>" else vocab[token]
    assert text.strip().startswith(expected), text


def speech_frames(name):
    m = model(name)
    with wave.open(os.path.join(tap.need_data(), "datasets", "speech-60s-16k.wav")) as w:
        sound = np.frombuffer(w.readframes(w.getnframes()), np.int16).astype(np.float32) / 32768
    state, context, n = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), 0
    for i in range(625):
        frame = np.concatenate([context, sound[i * 512 : (i + 1) * 512]])
        score, state = m(frame[None], state, np.array(16000))
        n += int(score[0, 0] > 0.5)
        context = frame[-64:]
    return n


def test_voice_activity_counts_the_frames_of_speech():
    assert speech_frames("silero-vad-v5-16k.onnx") == 440


def test_voice_activity_with_nested_ifs_counts_the_same():
    assert speech_frames("silero-vad-v5.onnx") == 440


def test_faces_are_found():
    m = model("ultraface-rfb-320.onnx")
    for path in sorted(glob.glob(os.path.join(tap.need_data(), "photos", "faces-*.jpg"))):
        scores, boxes = m((chw(photo(os.path.basename(path), (320, 240))) - 127) / 128)
        sure = scores[0, :, 1] > 0.7
        assert sure.any(), path
        x0, y0, x1, y1 = boxes[0][sure].T
        assert (x0 < x1).all() and (y0 < y1).all() and x1.max() < 1.2, path


def test_persons_are_found():
    m = model("fastestdet.onnx")
    out = m(chw(photo("fastestdet-3.jpg", (352, 352)))[:, ::-1] / 255)[0][0]  # (85, 22, 22): objectness, box, 80 classes
    score = out[0] * out[5:].max(0)
    best = np.argsort(-score.ravel())[:5]
    assert score.max() > 0.7, score.max()
    assert (out[5:].reshape(80, -1).argmax(0)[best] == 0).all(), "class 0 is person"


def test_all_models_agree_with_the_reference():
    """Passes, fused kernels and plans against plain C without any, on random inputs of small shapes."""
    random = np.random.default_rng(1)
    for path in sorted(glob.glob(os.path.join(tap.need_data(), "models", "**", "*.onnx"), recursive=True)):
        name = os.path.relpath(path, os.path.join(tap.need_data(), "models"))
        fast, plain, threads = model(name), model(name, reference=True), model(name, n_threads=2)
        arrays = []
        for io in fast.inputs:
            if io.optional:
                continue
            shape = [io.dims[d] if io.dims[d] >= 0 else {"sequence": 576}.get((io.symbols[d] or b"").decode(), 1) for d in range(io.rank)]
            if name.startswith("silero") and io.name == b"input":
                shape[1] = 576
            kind = engine.TYPES[io.dtype]
            if name.startswith("stories") and b"past" not in io.name:
                shape = [1, 2 if io.name == b"attention_mask" else 1]
            values = random.random(shape) if kind == np.float32 else random.integers(0, 200, shape) if kind == np.uint8 else np.full(shape, 16000 if io.name == b"sr" else 1)
            arrays.append(values.astype(kind))
        for a, b, c in zip(fast(*arrays), plain(*arrays), threads(*arrays)):
            assert a.dtype == b.dtype and a.shape == b.shape, name
            assert np.allclose(a, b, rtol=1e-3, atol=1e-4), (name, np.abs(a - b).max())
            assert np.array_equal(a, c), f"{name}: two threads give other bits"


def test_model_run_writes_what_the_library_gives():
    tap.need_data()
    path = os.path.join(tap.need_data(), "models", "mnist-cntk.onnx")
    with tempfile.TemporaryDirectory() as folder:
        x = idx("t10k-images-idx3-ubyte.gz")[:1].astype(np.float32).reshape(1, 1, 28, 28)
        np.save(os.path.join(folder, "x.npy"), x)
        p = subprocess.run([tap.QUERN, "model", "run", path, "--input", f"Input3={folder}/x.npy", "--output", f"{folder}/out"], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
        assert p.returncode == 0, p.stdout
        got = np.load(os.path.join(folder, "out", "Plus214_Output_0.npy"))
        assert got.shape == (1, 10) and got.argmax() == 7
        p = subprocess.run([tap.QUERN, "model", "run", path, "--input", f"nothing={folder}/x.npy", "--output", f"{folder}/out"], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
        assert p.returncode == 1 and "Input3" in p.stdout, p.stdout


def test_a_model_whose_weights_are_inputs_is_served():
    path = os.path.join(tap.need_data(), "models", "ultraface-rfb-320.onnx")  # 1 input, 244 more that may be left out
    p = subprocess.run([tap.QUERN, "model", "show", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert p.returncode == 0 and "f32[1,3,240,320]" in p.stdout, p.stdout


def test_model_bench_prints_its_object():
    path = os.path.join(tap.need_data(), "models", "mnist-cntk.onnx")
    p = subprocess.run([tap.QUERN, "model", "bench", path, "--seconds", "0.2", "--lanes", "2", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.returncode == 0, p.stderr
    o = json.loads(p.stdout)
    for key in "model batch threads precision isa items_per_s items_per_s_median p50_ms p99_ms load_ms peak_bytes flops".split():
        assert key in o, key
    assert o["items_per_s"] >= o["items_per_s_median"] > 0 and o["p99_ms"] >= o["p50_ms"] > 0


tap.main(globals())
