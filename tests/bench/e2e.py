"""Images through quern's queue: producer, Redis and a worker of two lanes on the same cores. Prints one JSON object.

usage: e2e.py QUERN MODEL JOBS FORM [JPEG]
FORM: b64 (the tensor in the job), redis (raw floats under a key, a redis: reference) or jpeg (the file in base64, decoded, resized and
normalised by the model's pipeline). The clock runs from the first push to the last result.
"""
import base64
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import redis

quern, model, jobs, form = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
folder = tempfile.mkdtemp(prefix="quern-e2e-")
socket = os.path.join(folder, "redis.sock")
server = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", folder], stdout=subprocess.DEVNULL)
store = os.path.join(folder, "store/m/1")
os.makedirs(store)
shutil.copy(model, os.path.join(store, "model.onnx"))
if form == "jpeg":
    with open(os.path.join(store, "model.json"), "w") as f:
        json.dump({"quern": 1, "pipeline": [
            {"decode_image": {}}, {"resize": {"size": 256, "fit": "shortest", "filter": "pil.bilinear"}}, {"crop": {"w": 224, "h": 224}},
            {"pixels": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
            {"run": {"in": {"x": "."}, "out": ["y"]}}, {"topk": {"k": 1}}, {"emit": {"fields": ["top"]}}]}, f)
worker = None
try:
    while not os.path.exists(socket):
        time.sleep(0.02)
    client = redis.Redis(unix_socket_path=socket)
    worker = subprocess.Popen([quern, "worker", "--redis", f"unix:{socket}", "--lanes", "2", "--models", os.path.join(folder, "store"), "--preload", "m",
                               "--log-level", "warn"])
    pixels = struct.pack("<150528f", *(math.sin(i) for i in range(150528)))
    if form == "jpeg":
        with open(sys.argv[5], "rb") as f:
            value = json.dumps({"b64": base64.b64encode(f.read()).decode()})
    elif form == "b64":
        value = json.dumps({"dtype": "f32", "shape": [3, 224, 224], "b64": base64.b64encode(pixels).decode()})
    else:
        client.set("image", pixels)
        value = json.dumps({"dtype": "f32", "shape": [3, 224, 224], "ref": "redis:image"})

    rest = f'","op":"infer","model":"m","encoding":"b64","reply_to":"quern:{{default}}:rep:e2e","input":{value}}}'.encode()

    def push(first, n):
        pipe = client.pipeline(transaction=False)
        for i in range(first, first + n):
            pipe.lpush("quern:{default}:in", b'{"id":"%d' % i + rest)
        pipe.execute()

    def take(n):
        for _ in range(n):
            reply = client.blpop("quern:{default}:rep:e2e", 60)
            assert reply, "no reply within 60 s"
            envelope = json.loads(reply[1])
            assert envelope["state"] == "done", envelope

    push(10**6, 8)  # warm: the model is loaded and planned
    take(8)
    start = time.monotonic()
    pushed = finished = 0
    while finished < jobs:
        while pushed < jobs and pushed - finished < 64:
            push(pushed, 8)
            pushed += 8
        take(8)
        finished += 8
    print(json.dumps({"jobs": jobs, "form": form, "items_per_s": finished / (time.monotonic() - start)}))
    worker.terminate()
    worker.wait(30)
finally:
    if worker and worker.poll() is None:
        worker.kill()
    server.kill()
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)
