"""Jobs pushed the way any client would, and their envelopes."""
import json
import os
import time

import tiny_onnx

_count = 0


def push(s, job, queue="default"):
    """Pushes a job (a dict) and returns its id."""
    global _count
    _count += 1
    job = dict({"id": f"job{_count}", "wait": True}, **job)
    s.client.lpush(f"quern:{{{queue}}}:in", json.dumps(job))
    return job["id"]


def wait(s, job_id, timeout=30, queue="default"):
    """The envelope of a final job."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        text = s.client.get(f"quern:{{{queue}}}:r:{job_id}")
        if text:
            return json.loads(text)
        s.client.blpop([f"quern:{{{queue}}}:n:{job_id}"], timeout=0.2)
    raise AssertionError(f"job {job_id} is not final after {timeout} s")


def run(s, job, timeout=30):
    return wait(s, push(s, job), timeout)


def result(s, job, timeout=30):
    """The result of a job that must end done."""
    e = run(s, job, timeout)
    assert e["state"] == "done", e
    return e["result"]


def error(s, job, code, *words, state="failed"):
    """A job must end with this code, and a sentence that holds the words."""
    e = run(s, job)
    assert e["state"] == state, e
    assert e["error"]["code"] == code, e["error"]
    for w in words:
        assert w in e["error"]["message"], e["error"]
    return e


def until(condition, what, timeout=30):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {what}")


def store(folder, **models):
    """A model store with version 1 of each model given as bytes; returns its path."""
    path = os.path.join(folder, "models")
    for name, data in models.items():
        tiny_onnx.write(os.path.join(path, name, "1", "model.onnx"), data)
    return path
