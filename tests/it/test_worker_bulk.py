"""bulk jobs and quern score: formats, order, failed rows, several workers, resuming after kill -9."""
import csv
import json
import os
import subprocess
import time

import numpy as np

import jobs
import tap
import tiny_onnx
from server import CLEAN, Server

QUICK = ("--beat-ms", "200", "--lease-ms", "2000")
rng = np.random.default_rng(2)


def models(folder):
    path = jobs.store(folder, double=tiny_onnx.affine(2), top=tiny_onnx.affine(1), slow=tiny_onnx.slow(60 if os.environ.get("SAN") else 3000))
    with open(os.path.join(path, "top/1/model.json"), "w") as f:
        f.write('{"quern": 1, "pipeline": [{"run": {}}, {"topk": {"k": 1}}]}')
    return path


def bulk(model, source, output, **params):
    return {"op": "bulk", "model": model, "input_ref": "file:" + source, "output_ref": "file:" + output, "params": params}


def lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def write_rows(folder, n):
    x = rng.integers(-1000, 1000, (n, 4)).astype(np.float32)
    np.save(os.path.join(folder, "x.npy"), x)
    with open(os.path.join(folder, "x.csv"), "w") as f:
        f.write("a,b,c,d,label\n")
        f.writelines(",".join(str(int(v)) for v in row) + f",{i % 3}\n" for i, row in enumerate(x))
    with open(os.path.join(folder, "x.jsonl"), "w") as f:
        f.writelines(json.dumps([int(v) for v in row]) + "\n" for row in x)
    return x


def test_every_format_in_and_out_in_the_order_of_the_input():
    with Server() as s:
        x = write_rows(s.folder, 3000)
        s.worker("--models", models(s.folder), "--files", s.folder, "--lanes", "2")
        for source, params in (("x.npy", {}), ("x.csv", {"target": "label"}), ("x.jsonl", {})):
            r = jobs.result(s, bulk("double", source, "out.npy", **params))
            assert r["rows"] == 3000 and r["ok"] == 3000 and r["failed"] == 0, r
            assert np.array_equal(np.load(os.path.join(s.folder, "out.npy")), 2 * x), source
        jobs.result(s, bulk("double", "x.npy", "out.jsonl"))
        got = lines(os.path.join(s.folder, "out.jsonl"))
        assert [g["row"] for g in got] == list(range(3000))
        assert np.array_equal(np.array([g["outputs"]["y"]["data"] for g in got], np.float32).reshape(-1, 4), 2 * x)
        jobs.result(s, bulk("top", "x.npy", "out.csv"))
        with open(os.path.join(s.folder, "out.csv")) as f:
            table = list(csv.reader(f))
        assert len(table) == 3001, table[:2]
        assert not [n for n in os.listdir(s.folder) if ".parts" in n or ".errors" in n or ".tmp" in n]


def test_rows_that_fail_stand_in_the_error_file_and_harm_nobody():
    with Server() as s:
        bad = {5: "1,2,3", 77: "1,x,3,4", 400: "1,2,3,4,5", 999: "nan,,1,2"}
        with open(os.path.join(s.folder, "x.csv"), "w") as f:
            f.writelines(bad.get(i, f"{i},1,2,3") + "\n" for i in range(1000))
        s.worker("--models", models(s.folder), "--files", s.folder, "--lanes", "2")
        r = jobs.result(s, bulk("double", "x.csv", "out.jsonl"))
        errors = lines(os.path.join(s.folder, "out.jsonl.errors.jsonl"))
        failed = {e["row"]: e for e in errors}
        assert r["failed"] == len(errors) and r["ok"] == 1000 - len(errors) and r["errors"] == "file:out.jsonl.errors.jsonl", r
        assert set(failed) >= {5, 77, 400} and set(failed) <= set(bad), failed
        assert all(e["code"] and e["message"] and e["line"] == e["row"] + 1 for e in errors), errors
        got = lines(os.path.join(s.folder, "out.jsonl"))
        assert [g["row"] for g in got] == [i for i in range(1000) if i not in failed]
        assert all(g["outputs"]["y"]["data"][0] == 2 * g["row"] for g in got if g["row"] not in bad)


def test_progress_is_told_while_it_runs():
    with Server() as s:
        write_rows(s.folder, 2000)
        s.worker("--models", models(s.folder), "--files", s.folder, "--lanes", "1")
        job = jobs.push(s, dict(bulk("slow", "x.npy", "out.npy"), progress_ms=50))

        def told():
            p = s.client.hget("quern:{default}:s:" + job, "progress")
            p = json.loads(p) if p else {}
            return p if 0 < p.get("done", 0) < 2000 else None

        p = jobs.until(told, "progress")
        assert p["total"] == 2000 and p["per_s"] > 0 and p["eta_s"] > 0, p
        assert jobs.wait(s, job, 120)["state"] == "done"


def test_kill_nine_in_the_middle_and_the_output_is_exactly_right():
    with Server() as s:
        x = write_rows(s.folder, 4000)
        store = models(s.folder)
        options = (*QUICK, "--models", store, "--files", s.folder, "--lanes", "2")
        workers = [s.worker(*options), s.worker(*options)]
        job = jobs.push(s, bulk("slow", "x.npy", "out.jsonl"))

        def done():
            return int(s.client.hget("quern:{default}:b:" + job, "done") or 0)

        for at in (100, 600):
            jobs.until(lambda: done() >= at or s.client.exists("quern:{default}:r:" + job), f"{at} grains", 60)
            victim = workers.pop(0)
            victim.kill()
            victim.wait()
            workers.append(s.worker(*options))
        e = jobs.wait(s, job, 180)
        assert e["state"] == "done" and e["result"]["ok"] == 4000 and e["result"]["failed"] == 0, e
        got = lines(os.path.join(s.folder, "out.jsonl"))
        assert [g["row"] for g in got] == list(range(4000))
        assert np.array_equal(np.array([g["outputs"]["y"]["data"] for g in got], np.float32).reshape(-1, 4), x)
        assert not os.path.exists(os.path.join(s.folder, "out.jsonl.parts"))


def test_a_row_that_kills_its_worker_is_found_and_written_off():
    if os.environ.get("SAN"):
        raise tap.SkipTest("one node that takes seconds takes minutes with a sanitizer")
    with Server() as s:
        store = jobs.store(s.folder, stall=tiny_onnx.stall())
        values = [float(i % 9 + 1) for i in range(60)]
        values[23] = 7000.0
        with open(os.path.join(s.folder, "x.jsonl"), "w") as f:
            f.writelines(f"[[{v}]]\n" for v in values)
        job = jobs.push(s, bulk("stall", "x.jsonl", "out.jsonl", grain_rows=4))
        for ends in range(6):
            p = s.worker(*QUICK, "--models", store, "--files", s.folder, "--lanes", "2", "--lane-limit-ms", "1000")
            jobs.until(lambda: p.poll() is not None or s.client.exists("quern:{default}:r:" + job), "the end of the job or of the worker", 60)
            if p.poll() is None:
                break
        e = jobs.wait(s, job)
        assert e["state"] == "done" and e["result"]["failed"] == 1 and e["result"]["ok"] == 59 and ends == 2, (ends, e)
        errors = lines(os.path.join(s.folder, "out.jsonl.errors.jsonl"))
        assert [(x["row"], x["code"]) for x in errors] == [(23, "crashed")], errors
        got = lines(os.path.join(s.folder, "out.jsonl"))
        assert [(g["row"], g["outputs"]["y"]["data"][0]) for g in got] == [(i, v**3) for i, v in enumerate(values) if i != 23]


def test_all_workers_gone_and_the_undone_shards_are_finished_later():
    with Server() as s:
        x = write_rows(s.folder, 3000)
        options = (*QUICK, "--models", models(s.folder), "--files", s.folder, "--lanes", "2")
        first = s.worker(*options)
        job = jobs.push(s, bulk("slow", "x.npy", "out.npy"))
        done = jobs.until(lambda: int(s.client.hget("quern:{default}:b:" + job, "done") or 0), "some grains")
        first.kill()
        first.wait()
        assert not s.client.exists("quern:{default}:r:" + job) and done < 3000
        s.worker(*options)
        assert jobs.wait(s, job, 120)["result"]["ok"] == 3000
        assert np.array_equal(np.load(os.path.join(s.folder, "out.npy")).reshape(-1, 4), x)


def test_a_drained_worker_leaves_a_job_that_another_finishes():
    with Server() as s:
        x = write_rows(s.folder, 3000)
        options = ("--models", models(s.folder), "--files", s.folder, "--lanes", "2")
        first = s.worker(*options)
        job = jobs.push(s, bulk("slow", "x.npy", "out.npy"))
        jobs.until(lambda: int(s.client.hget("quern:{default}:b:" + job, "done") or 0), "some grains")
        first.terminate()
        assert first.wait(30) == 0, s.log()
        s.worker(*options)
        e = jobs.wait(s, job, 120)
        assert e["state"] == "done" and e["crashes"] == 0, e
        assert np.array_equal(np.load(os.path.join(s.folder, "out.npy")).reshape(-1, 4), x)


def test_cancelling_a_bulk_job():
    with Server() as s:
        write_rows(s.folder, 4000)
        s.worker("--models", models(s.folder), "--files", s.folder, "--lanes", "2")
        job = jobs.push(s, bulk("slow", "x.npy", "out.npy"))
        jobs.until(lambda: int(s.client.hget("quern:{default}:b:" + job, "done") or 0), "some grains")
        assert s.quern("cancel", job).returncode == 0
        assert jobs.wait(s, job)["state"] == "cancelled"
        assert not os.path.exists(os.path.join(s.folder, "out.npy"))
        jobs.until(lambda: not s.client.keys("quern:{default}:a:*"), "all tickets gone")
        jobs.until(lambda: not os.path.exists(os.path.join(s.folder, "out.npy.parts")), "the parts to go")
        assert jobs.run(s, {"op": "ping"})["state"] == "done"


def test_a_bulk_job_that_fails_leaves_no_parts():
    with Server() as s:
        write_rows(s.folder, 4000)
        s.worker("--models", models(s.folder), "--files", s.folder, "--lanes", "2")
        e = jobs.run(s, dict(bulk("slow", "x.npy", "out.npy"), timeout_ms=700))
        assert e["state"] == "failed" and e["error"]["code"] == "timeout", e
        jobs.until(lambda: not s.client.keys("quern:{default}:a:*"), "all tickets gone")
        assert not [n for n in os.listdir(s.folder) if n.startswith("out.npy")], os.listdir(s.folder)
        e = jobs.run(s, bulk("slow", "x.npy", "out.npy", shards=0))
        assert e["state"] == "failed" and "params.shards" in e["error"]["message"], e
        assert not [n for n in os.listdir(s.folder) if n.startswith("out.npy")], os.listdir(s.folder)


def score(folder, *args, env=None):
    return subprocess.run([tap.QUERN, "score", *args], capture_output=True, text=True, timeout=120, cwd=folder, env=dict(CLEAN, HOME="/nonexistent", TMPDIR=folder, **(env or {})))


def test_score_without_a_redis_brings_its_own():
    with Server() as s:
        x = write_rows(s.folder, 500)
        store = models(s.folder)
        p = score(s.folder, "--models", store, "--model", "double", "--input", "x.npy", "--output", "out.npy", "--lanes", "2", "--json")
        assert p.returncode == 0, p.stderr
        assert json.loads(p.stdout)["ok"] == 500
        assert np.array_equal(np.load(os.path.join(s.folder, "out.npy")), 2 * x)
        p = score(s.folder, "--model", os.path.join(store, "double/1/model.onnx"), "--input", "x.csv", "--target", "label", "--output", "out.csv")
        assert p.returncode == 0, p.stderr
        with open(os.path.join(s.folder, "x.csv"), "a") as f:
            f.write("1,2,oops,4,0\n")
        p = score(s.folder, "--model", os.path.join(store, "double/1"), "--input", "x.csv", "--target", "label", "--output", "out.jsonl")
        assert p.returncode == 7 and "out.jsonl.errors.jsonl" in p.stderr, (p.returncode, p.stderr)
        p = score(s.folder, "--models", store, "--model", "dubble", "--input", "x.npy", "--output", "o.npy")
        assert p.returncode == 4 and "double" in p.stderr, (p.returncode, p.stderr)
        p = score(s.folder, "--models", store, "--model", "double", "--input", "none.npy", "--output", "o.npy")
        assert p.returncode == 4, (p.returncode, p.stderr)
        assert not [n for n in os.listdir(s.folder) if n.startswith("quern-")], os.listdir(s.folder)


def test_score_with_a_redis_follows_its_job():
    with Server() as s:
        x = write_rows(s.folder, 500)
        s.worker("--models", models(s.folder), "--files", s.folder)
        p = score(s.folder, "--model", "double", "--input", "x.npy", "--output", "out.npy", env={"QUERN_REDIS": s.url})
        assert p.returncode == 0, p.stderr
        assert np.array_equal(np.load(os.path.join(s.folder, "out.npy")), 2 * x)
        p = score(s.folder, "--model", "double", "--input", "x.npy", "--output", "../out.npy", env={"QUERN_REDIS": s.url})
        assert p.returncode == 1 and "ref_denied" in p.stderr, (p.returncode, p.stderr)


def test_a_private_redis_dies_with_the_command():
    with Server() as s:
        write_rows(s.folder, 20000)
        p = subprocess.Popen([tap.QUERN, "score", "--model", os.path.join(models(s.folder), "slow/1"), "--input", "x.npy", "--output", "o.npy"], cwd=s.folder,
                             stderr=subprocess.DEVNULL, env=dict(CLEAN, HOME="/nonexistent", TMPDIR=s.folder))

        def server():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/stat") as f:
                        stat = f.read()
                    if "(redis-server)" in stat and int(stat.rsplit(")", 1)[1].split()[1]) == p.pid:
                        return int(pid)
                except OSError:
                    pass
            return None

        pid = jobs.until(server, "the private server")
        p.kill()
        p.wait()
        jobs.until(lambda: not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "Z", "its end")


tap.main(globals())
