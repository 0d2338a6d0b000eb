"""A worker's life: start, drain, kill -9, stuck lanes, suspects, new models, settings, systemd's socket."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import numpy as np

import jobs
import tap
import tiny_onnx
from server import Server

SLOWISH = 20_000 if os.environ.get("SAN") else 400_000  # turns: about 0.3 s
QUICK = ("--beat-ms", "200", "--lease-ms", "2000")


def models(folder, **more):
    return jobs.store(folder, double=tiny_onnx.affine(2), slow=tiny_onnx.slow(30_000_000), slowish=tiny_onnx.slow(SLOWISH), **more)


def infer(model, **more):
    return dict({"op": "infer", "model": model, "input": [1, 2, 3, 4]}, **more)


def running(s, n=1):
    """Waits until n jobs are in workers' hands."""
    return jobs.until(lambda: sum(s.client.hlen(k) for k in s.client.keys("quern:{default}:a:*")) >= n, f"{n} running jobs")


def test_idle_it_is_small_and_starts_soon():
    with Server() as s:
        p = s.worker("--lanes", "2")
        with open(f"/proc/{p.pid}/status") as f:
            rss_kb = int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))
        if "address" not in os.environ.get("SAN", "") and "thread" not in os.environ.get("SAN", ""):
            assert rss_kb <= 15 * 1024, rss_kb
        assert "worker_ready" in s.log() and "lanes=2" in s.log(), s.log()


def test_a_dead_letter_says_what_killed_the_workers():
    with Server() as s:
        doomed = s.worker("--lanes", "1", *QUICK)
        s.client.lpush("quern:{default}:in", '~1,0,2,1700000000000,~{"id":"killer","op":"ping","params":{"sleep_ms":60000}}')
        running(s)
        doomed.send_signal(signal.SIGSEGV)
        doomed.wait(30)
        s.worker("--lanes", "1", *QUICK)
        e = jobs.wait(s, "killer")
        assert e["state"] == "dead" and e["error"]["code"] == "crashed", e
        if not os.environ.get("SAN"):  # a sanitizer hears the signal itself
            assert e["error"]["signal"] == signal.SIGSEGV and 1000 < e["error"]["rss_kb"] < 100_000, e["error"]


def test_sigterm_finishes_what_runs_and_hands_back_the_rest_uncounted():
    with Server() as s:
        store = models(s.folder)
        p = s.worker("--models", store, "--lanes", "1", "--preload", "slowish")
        ids = [jobs.push(s, {"op": "ping", "params": {"sleep_ms": 700, "echo": "woken"}})]
        ids += [jobs.push(s, infer("slowish")) for _ in range(4)]
        # One is done: so the others have been handed out, and the next is on the lane.
        jobs.until(lambda: [i for i in ids[1:] if s.client.exists("quern:{default}:r:" + i)], "the first result")
        p.send_signal(signal.SIGTERM)
        assert p.wait(30) == 0, s.log()
        done = [i for i in ids if s.client.exists("quern:{default}:r:" + i)]
        assert ids[0] in done and len(done) >= 2, done  # what slept and what ran
        assert s.client.keys("quern:{default}:a:*") == []
        s.worker("--models", store)
        for i in ids:
            e = jobs.wait(s, i)
            assert e["state"] == "done" and e["attempt"] == 1 and e["crashes"] == 0, e


def test_a_second_sigterm_hands_back_what_runs_too():
    with Server() as s:
        store = models(s.folder)
        p = s.worker("--models", store, "--lanes", "1", "--preload", "slow")
        ids = [jobs.push(s, infer("slow")), jobs.push(s, {"op": "ping", "params": {"sleep_ms": 60000}})]
        running(s, 2)
        time.sleep(0.3)
        p.send_signal(signal.SIGTERM)
        jobs.until(lambda: "drain" in s.log(), "the drain")
        time.sleep(0.2)
        assert p.poll() is None
        p.send_signal(signal.SIGTERM)
        assert p.wait(10) == 0, s.log()
        left = s.client.lrange("quern:{default}:in", 0, -1)
        assert len(left) == 2 and all(e.startswith(b"~1,0,0,") for e in left), left
        for i in ids:
            assert not s.client.exists("quern:{default}:r:" + i)


def test_a_killed_workers_jobs_run_elsewhere():
    with Server() as s:
        first = s.worker(*QUICK, "--name", "first")
        ids = [jobs.push(s, {"op": "ping", "params": {"sleep_ms": 1000, "echo": i}}) for i in range(40)]
        running(s, 40)
        first.kill()
        first.wait()
        s.worker(*QUICK, "--name", "second")
        for n, i in enumerate(ids):
            e = jobs.wait(s, i)
            assert e["state"] == "done" and e["result"] == n and e["crashes"] == 1 and e["worker"] == "second", e


def test_after_a_crash_the_suspects_run_alone_and_all_end():
    with Server() as s:
        store = models(s.folder)
        first = s.worker(*QUICK, "--models", store, "--lanes", "2", "--preload", "slowish")
        ids = [jobs.push(s, infer("slowish")) for _ in range(6)]
        running(s, 4)
        first.kill()
        first.wait()
        s.worker(*QUICK, "--models", store, "--lanes", "2")
        late = [jobs.push(s, infer("double")) for _ in range(5)]
        for i in ids + late:
            e = jobs.wait(s, i)
            assert e["state"] == "done" and e["crashes"] <= 1, e
        crashed = [i for i in ids if json.loads(s.client.get("quern:{default}:r:" + i))["crashes"] == 1]
        assert len(crashed) >= 4 and s.log(1).count("suspect_runs_alone") >= len(crashed) - 1, (crashed, s.log(1))
        for i in crashed:
            assert json.loads(s.client.get("quern:{default}:r:" + i))["batch"] == 1


def no_sanitizer():
    if os.environ.get("SAN"):
        raise tap.SkipTest("one node that takes seconds takes minutes with a sanitizer")


def stalls(**more):
    return dict({"op": "infer", "model": "stall", "input": [[7000]]}, **more)


STRICT = ("--lanes", "2", "--lane-limit-ms", "1000")  # longer than the Expand, shorter than the MatMul


def test_a_lane_that_does_not_come_back_is_a_crash_of_its_job_alone():
    no_sanitizer()
    with Server() as s:
        store = models(s.folder, stall=tiny_onnx.stall())
        p = s.worker(*QUICK, *STRICT, "--models", store, "--preload", "stall")
        stuck = jobs.push(s, stalls())
        other = jobs.push(s, {"op": "ping", "params": {"sleep_ms": 1500, "echo": 1}})
        assert p.wait(60) == 70, s.log()
        log = s.log()
        assert "lane_stands_still" in log and "lane_lost" in log and stuck in log, log
        assert "lane_stack" in log and "stack=" in log, log
        s.worker(*QUICK, "--models", store, "--lanes", "2")
        e = jobs.wait(s, stuck, 120)
        assert e["state"] == "done" and e["crashes"] == 1 and np.isclose(e["result"]["outputs"]["y"]["data"][0], 7000.0**3, rtol=1e-3), e
        e = jobs.wait(s, other)
        assert e["state"] == "done" and e["crashes"] == 0 and e["attempt"] == 1, e


def test_a_job_that_kills_three_workers_is_dead_and_the_innocent_are_done():
    no_sanitizer()
    with Server() as s:
        store = models(s.folder, stall=tiny_onnx.stall())
        killer = jobs.push(s, stalls())
        innocent = [jobs.push(s, stalls(input=[[i]])) for i in range(1, 6)] + [jobs.push(s, infer("double")) for _ in range(5)]
        ends = 0
        for _ in range(6):
            p = s.worker(*QUICK, *STRICT, "--models", store, "--batch-delay-ms", "50")
            jobs.until(lambda: p.poll() is not None or s.client.exists("quern:{default}:r:" + killer), "the killer's next turn", 60)
            if p.poll() is None:
                break
            ends += 1
            assert p.returncode == 70, s.log(ends - 1)
        e = jobs.wait(s, killer)
        assert e["state"] == "dead" and e["error"]["code"] == "crashed" and e["crashes"] == 3 and ends == 3, (ends, e)
        for i in innocent:
            e = jobs.wait(s, i)
            assert e["state"] == "done" and e["crashes"] <= 1, e


def test_a_new_version_is_used_without_a_restart():
    with Server() as s:
        store = models(s.folder)
        s.worker("--models", store, "--models-poll-ms", "100")
        assert jobs.result(s, infer("double"))["outputs"]["y"]["data"] == [2, 4, 6, 8]
        old = jobs.push(s, infer("slowish"))
        tiny_onnx.write(os.path.join(store, "double", "2", "model.onnx"), tiny_onnx.affine(10))
        jobs.until(lambda: jobs.run(s, infer("double"))["version"] == "2", "version 2")
        assert jobs.result(s, infer("double"))["outputs"]["y"]["data"] == [10, 20, 30, 40]
        assert jobs.result(s, infer("double@1"))["outputs"]["y"]["data"] == [2, 4, 6, 8]
        with open(os.path.join(store, "double", "labels.json"), "w") as f:
            f.write('{"prod": 1}')
        jobs.until(lambda: jobs.run(s, infer("double@prod"))["state"] == "done", "the label")
        # in place, as cp does it: truncated, then written
        with open(os.path.join(store, "double", "2", "model.onnx"), "wb") as f:
            f.write(tiny_onnx.affine(100))
        jobs.until(lambda: jobs.result(s, infer("double"))["outputs"]["y"]["data"] == [100, 200, 300, 400], "the changed file")
        tiny_onnx.write(os.path.join(store, "double", "3", "model.onnx"), b"broken")
        jobs.until(lambda: "model_refused" in s.log(), "the refusal")
        assert jobs.result(s, infer("double"))["outputs"]["y"]["data"] == [100, 200, 300, 400]
        jobs.error(s, infer("double@3"), "bad_model", "double")
        shutil.rmtree(os.path.join(store, "double"))
        jobs.until(lambda: jobs.run(s, infer("double"))["state"] == "failed", "its end")
        assert jobs.wait(s, old)["state"] == "done"


def test_cancelling_and_timing_out_stop_a_run_between_nodes():
    with Server() as s:
        s.worker(*QUICK, "--models", models(s.folder), "--lanes", "1", "--preload", "slow")
        e = jobs.run(s, infer("slow", timeout_ms=200))
        assert e["state"] == "failed" and e["error"]["code"] == "timeout" and "200" in e["error"]["message"], e
        job = jobs.push(s, infer("slow"))
        running(s)
        time.sleep(0.1)
        assert s.quern("cancel", job).returncode == 0
        e = jobs.wait(s, job)
        assert e["state"] == "cancelled", e
        assert jobs.run(s, infer("double"))["state"] == "done"


def test_sighup_reloads_and_says_what_it_cannot():
    with Server() as s:
        path = os.path.join(s.folder, "quern.json")
        with open(path, "w") as f:
            json.dump({"log_level": "info", "batch_rows_max": 8, "drain_ms": 1000}, f)
        p = s.worker("--config", path)
        with open(path, "w") as f:
            json.dump({"log_level": "notice", "batch_rows_max": 9, "drain_ms": 2000}, f)
        p.send_signal(signal.SIGHUP)
        jobs.until(lambda: " reloaded " in s.log(), "the reload")
        log = s.log()
        assert "setting_reloaded key=batch_rows_max" in log and "setting_not_reloaded key=drain_ms" in log, log
        with open(path, "w") as f:
            f.write('{"batch_rows_mx": 9}')
        p.send_signal(signal.SIGHUP)
        jobs.until(lambda: "reload_failed" in s.log(), "the refusal")
        assert "batch_rows_max" in s.log().split("reload_failed")[1]
        assert jobs.run(s, {"op": "ping"})["state"] == "done"


def test_systemd_is_told_and_its_watchdog_fed():
    with Server() as s:
        path = os.path.join(s.folder, "notify.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(path)
        listener.settimeout(20)
        p = s.worker(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"})

        def heard(word):
            while True:
                text = listener.recv(1000).decode()
                if word in text:
                    return text

        heard("READY=1")
        heard("WATCHDOG=1")
        heard("WATCHDOG=1")
        p.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in heard("RELOADING=1")
        heard("READY=1")
        p.send_signal(signal.SIGTERM)
        heard("STOPPING=1")
        assert p.wait(20) == 0


def test_bad_settings_end_it_with_the_right_code():
    def start(*args):
        p = subprocess.run([tap.QUERN, "worker", *args], capture_output=True, text=True, timeout=30, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"})
        return p.returncode, p.stderr

    code, text = start("--models", "/nonexistent/models")
    assert code == 78 and "/nonexistent/models" in text, (code, text)
    code, text = start("--files", "/nonexistent/files")
    assert code == 78 and "/nonexistent/files" in text, (code, text)
    code, text = start("--redis", "http://x")
    assert code == 78 and "redis" in text.lower(), (code, text)
    code, text = start("--queues", "a:0")
    assert code == 78 and "a:0" in text, (code, text)
    code, text = start("--lanes", "many")
    assert code == 2 and "lanes" in text, (code, text)


tap.main(globals())
