"""A real classifier behind a real pipeline: the golden samples of its model.json hold, and a wrong step makes them fail (TAP)."""
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "it"))
import tap  # noqa: E402

TOP = {"coffee.png": ("espresso", 0.879), "chelsea.png": ("Egyptian cat", 0.687), "dog.jpg": ("dogsled", None), "eagle.jpg": ("hen", None)}
STEPS = [{"decode_image": {}}, {"crop": {"ratio": 1}}, {"resize": {"size": 224}}, {"pixels": {}}, {"run": {"in": {"image": "."}, "out": ["scores"]}},
         {"topk": {"k": 5, "labels": "labels.txt"}}]


def check(folder, steps):
    golden = []
    for name, (label, score) in TOP.items():
        best = {"label": label} if score is None else {"label": label, "score": score}
        golden.append({"input": name, "expect": {"top": [best]}, "tol": 0.005})
    with open(os.path.join(folder, "model.json"), "w") as f:
        json.dump({"quern": 1, "pipeline": steps, "golden": golden}, f)
    p = subprocess.run([tap.QUERN, "model", "check", folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    return p.returncode, p.stdout.decode("utf-8", "replace")


def folder_of_model():
    data = tap.need_data()
    folder = tempfile.mkdtemp(prefix="quern-golden-")
    os.symlink(os.path.join(data, "models", "darknet-tiny-imagenet.onnx"), os.path.join(folder, "model.onnx"))
    shutil.copy(os.path.join(data, "models", "imagenet.shortnames.txt"), os.path.join(folder, "labels.txt"))
    for name in TOP:
        shutil.copy(os.path.join(data, "photos", name), folder)
    return folder


def test_golden_samples_of_a_classifier():
    folder = folder_of_model()
    try:
        code, text = check(folder, STEPS)
        assert code == 0, text
    finally:
        shutil.rmtree(folder)


def test_a_swapped_channel_is_found():
    folder = folder_of_model()
    try:
        for wrong in ([{"decode_image": {"color": "bgr"}}] + STEPS[1:], STEPS[:3] + [{"pixels": {"scale": 1}}] + STEPS[4:]):
            code, text = check(folder, wrong)
            assert code == 1 and "expected" in text, text
        code, text = check(folder, STEPS[:5] + [{"activate": {"kind": "softmax"}}] + STEPS[5:])
        assert code == 1 and "softmax of its own" in text, text
    finally:
        shutil.rmtree(folder)


tap.main(globals())
