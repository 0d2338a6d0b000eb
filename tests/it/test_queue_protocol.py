"""queue/PROTOCOL.md done literally, by a client that is not ours, against real workers running ping jobs."""
import json
import os
import random
import signal
import time

import jobs
import tap
from server import Server

T = "quern:{default}:"
QUICK = ("--beat-ms", "200", "--lease-ms", "2000")


def ping(ms=0, **more):
    return dict({"op": "ping", "params": {"sleep_ms": ms, "echo": "e"}}, **more)


def owned(s):
    return sum(s.client.hlen(k) for k in s.client.keys(T + "a:*"))


def test_push_wait_get():
    with Server() as s:
        s.worker()
        s.client.lpush(T + "in", '{"id":"a1","op":"ping","params":{"echo":[1,"x"]},"wait":true,"meta":{"k":1},"ttl_ms":60000}')
        assert s.client.blpop(T + "n:a1", 30)
        e = json.loads(s.client.get(T + "r:a1"))
        assert e["state"] == "done" and e["result"] == [1, "x"] and e["meta"] == {"k": 1} and e["attempt"] == 1, e
        assert e["queued_ms"] <= e["started_ms"] <= e["ended_ms"], e
        assert 0 < s.client.pttl(T + "r:a1") <= 60000
        assert s.client.smembers("quern:queues") == {b"default"}


def test_replies_of_many_jobs_come_on_one_list():
    with Server() as s:
        s.worker()
        pipe = s.client.pipeline()
        for i in range(2000):
            pipe.lpush(T + random.choice(["in", "in:hi", "in:lo"]), json.dumps({"id": f"m{i}", "op": "ping", "reply_to": T + "rep:me"}))
        pipe.execute()
        seen = {}
        while len(seen) < 2000:
            got = s.client.blpop(T + "rep:me", 30)
            assert got, f"{len(seen)} of 2000 replies"
            e = json.loads(got[1])
            assert e["id"] not in seen and e["state"] == "done"
            seen[e["id"]] = e["token"]
        assert len(set(seen.values())) == 2000
        assert s.client.llen(T + "rep:me") == 0
        assert owned(s) == 0


def test_same_id_again_gives_the_stored_envelope():
    with Server() as s:
        s.worker()
        first = jobs.run(s, ping(id="same"))
        s.client.lpush(T + "in", json.dumps(ping(id="same", reply_to=T + "rep:same")))
        assert json.loads(s.client.blpop(T + "rep:same", 30)[1]) == first


def test_bytes_that_are_no_job():
    with Server() as s:
        s.worker()
        bad = [b"", b"\x00\xff", b"{", b"[" * 5000, b'{"op":', b"~1,x~{}", b'{"op":"ping"}{"op":"ping"}', b'{"op":"ping","op":"ping"}', b"\xff" * 100000]
        for b in bad:
            s.client.lpush(T + "in", b)
        assert jobs.run(s, ping())["state"] == "done"
        jobs.until(lambda: s.client.zcard(T + "dead") == len(bad), "all of them in dead letters")
        kept = {v[v.index(b":") + 1 + int(v[: v.index(b":")]):] for v in s.client.hvals(T + "deadb")}
        assert kept == set(bad)
        codes = [json.loads(v[v.index(b":") + 1: v.index(b":") + 1 + int(v[: v.index(b":")])])["error"]["code"] for v in s.client.hvals(T + "deadb")]
        assert sorted(codes) == ["bad_job"] + ["bad_json"] * (len(bad) - 1), codes


def test_orders_by_plain_push():
    def order(cmd, **more):
        s.client.lpush(T + "ctlq", json.dumps(dict({"cmd": cmd}, **more)))

    def paused():
        return s.client.hget(T + "cfg", "paused")

    with Server() as s:
        s.worker(*QUICK)
        running = jobs.push(s, ping(60000))
        delayed = jobs.push(s, ping(delay_ms=3600000))
        jobs.until(lambda: owned(s) == 1 and s.client.zcard(T + "del") == 1, "one runs, one is delayed")
        order("pause")
        jobs.until(lambda: paused() == b"1", "paused")
        waiting = jobs.push(s, ping())
        order("cancel", id=waiting)
        order("cancel", id=running)
        assert jobs.wait(s, running)["state"] == "cancelled"
        s.client.lpush(T + "ctlq", "nonsense", '{"cmd":"dance"}', '{"cmd":"cancel"}')
        assert s.client.get(T + "r:" + waiting) is None and s.client.llen(T + "in") == 1
        order("resume")
        e = jobs.wait(s, waiting)
        assert e["state"] == "cancelled" and "run_ms" not in e, e
        order("retry", id=delayed)
        assert jobs.wait(s, delayed)["state"] == "done"
        assert s.client.hlen(T + "cx") == 0


def test_kill_9_under_load_loses_nothing_and_repeats_nothing():
    """Three workers; one after the other is killed and replaced while 20,000 jobs go through."""
    n = 3000 if os.environ.get("SAN") else 20000
    with Server() as s:
        live = [s.worker(*QUICK) for _ in range(3)]
        for at in range(0, n, 500):
            s.client.lpush(T + "in", *[json.dumps({"id": f"k{i}", "op": "ping", "reply_to": T + "rep:k", "params": {"sleep_ms": random.choice([0, 0, 0, 1])}})
                                       for i in range(at, at + 500)])
        for _ in range(4):
            jobs.until(lambda: owned(s) > 0 or s.client.llen(T + "rep:k") == n, "work under way")
            victim = live.pop(0)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            live.append(s.worker(*QUICK))
        jobs.until(lambda: s.client.llen(T + "rep:k") >= n, f"{n} replies", 120)
        replies = [json.loads(r) for r in s.client.lrange(T + "rep:k", 0, -1)]
        assert len(replies) == n, len(replies)
        assert {r["id"] for r in replies} == {f"k{i}" for i in range(n)}
        assert all(r["state"] == "done" for r in replies)
        jobs.until(lambda: owned(s) == 0, "nothing owned")


def test_stopped_worker_cannot_commit_what_it_lost():
    with Server() as s:
        stopped = s.worker(*QUICK, "--lanes", "1")
        job = jobs.push(s, ping(1500))
        jobs.until(lambda: owned(s) == 1, "the job runs")
        stopped.send_signal(signal.SIGSTOP)
        s.worker(*QUICK, "--lanes", "1")
        e = jobs.wait(s, job, 60)
        assert e["crashes"] == 1 and e["state"] == "done", e
        stopped.send_signal(signal.SIGCONT)
        jobs.until(lambda: s.client.hlen(T + "hb") == 2, "it comes back under a new id")
        time.sleep(2)
        assert json.loads(s.client.get(T + "r:" + job)) == e
        assert jobs.run(s, ping())["state"] == "done"


tap.main(globals())
