"""Kills, stops and starves a queue, and counts what happened. `make chaos` runs the whole, test_chaos_short.py a small part.

usage: chaos.py [kill] [stop] [full] [restart]   prints a JSON object a scenario; exit code 1 where a job was lost or done twice

Every job asks for its envelope on one reply list: an envelope a job is what "committed exactly once" means to a producer.
"""
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import redis

QUERN = os.path.abspath(os.environ.get("QUERN", "build/quern"))
QUEUE = "quern:{default}:"
REPLIES = QUEUE + "rep:chaos"
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("QUERN_")}


class Lab:
    """A private Redis and workers that die with it."""

    def __init__(self, *redis_options):
        self.folder = tempfile.mkdtemp(prefix="quern-chaos-")
        self.socket = os.path.join(self.folder, "redis.sock")
        self.options = ["--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self.folder, *redis_options]
        self.workers = []
        self.start_redis()

    def start_redis(self):
        self.server = subprocess.Popen(["redis-server", *self.options], stdout=subprocess.DEVNULL)
        self.client = redis.Redis(unix_socket_path=self.socket)
        for _ in range(500):
            try:
                if self.client.ping():
                    return
            except redis.exceptions.RedisError:
                time.sleep(0.01)
        raise RuntimeError("redis-server does not answer")

    def worker(self, *options):
        log = open(os.path.join(self.folder, f"worker-{len(self.workers)}.log"), "wb")
        p = subprocess.Popen([QUERN, "worker", "--redis", f"unix:{self.socket}", *options], stdout=log, stderr=log, env=dict(CLEAN, HOME="/nonexistent"))
        self.workers.append(p)
        return p

    def wait_for_workers(self, n):
        for _ in range(500):
            if self.client.hlen(QUEUE + "hb") >= n:
                return
            time.sleep(0.01)
        raise RuntimeError("workers do not come up:\n" + self.logs())

    def logs(self):
        text = ""
        for name in sorted(os.listdir(self.folder)):
            if name.startswith("worker-"):
                with open(os.path.join(self.folder, name), errors="replace") as f:
                    text += f"{name}: {f.read()[-1500:]}\n"
        return text

    def push(self, jobs):
        pipe = self.client.pipeline(transaction=False)
        for job in jobs:
            pipe.lpush(QUEUE + "in", json.dumps(dict(job, reply_to=REPLIES)))
        pipe.execute()

    def in_hand(self, worker):
        """Jobs that the process owns now."""
        for wid in self.client.hkeys(QUEUE + "hb"):
            if self.client.hget(QUEUE + "w:" + wid.decode(), "pid") == str(worker.pid).encode():
                return self.client.hlen(QUEUE + "a:" + wid.decode())
        return 0

    def replies(self):
        out = []
        while True:
            part = self.client.lpop(REPLIES, 5000)
            if not part:
                return out
            out += [json.loads(e) for e in part]

    def close(self):
        for p in self.workers:
            p.kill()
            p.wait()
        self.server.kill()
        self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def account(ids, envelopes):
    """(lost, committed twice, not done)"""
    seen = collections.Counter(e["id"] for e in envelopes)
    lost = [i for i in ids if i not in seen]
    twice = [i for i, n in seen.items() if n > 1]
    return lost, twice, [e for e in envelopes if e["state"] != "done"]


def percentile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else None


def kill(jobs=50000, kills=30, n_workers=3):
    """kill -9 under load: how soon a dead worker's jobs run elsewhere, and that each job is committed once. Every second victim is the
    worker that was just started, killed as soon as it holds jobs: nobody has seen it beat yet."""
    lab = Lab()
    try:
        crew = [lab.worker("--lanes", "1") for _ in range(n_workers)]
        lab.wait_for_workers(n_workers)
        ids = [f"k{i}" for i in range(jobs)]
        rng = random.Random(1)
        pushed, envelopes, kill_ms, young = 0, [], [], None
        next_kill = time.monotonic() + 1.0
        deadline = time.monotonic() + 60 + jobs / 200 + kills * 5
        while len(envelopes) < jobs or len(kill_ms) < kills:
            room = 2000 - (pushed - len(envelopes))
            if pushed < jobs and room > 0:
                # Slow enough that jobs remain for every kill.
                n = min(200, jobs - pushed, room)
                if pushed - len(envelopes) < 400 or len(kill_ms) >= kills:
                    lab.push({"id": i, "op": "ping", "params": {"sleep_ms": rng.randint(1, 40)}} for i in ids[pushed:pushed + n])
                    pushed += n
            envelopes += lab.replies()
            victim = rng.randrange(n_workers) if young is None else young
            if len(kill_ms) < kills and time.monotonic() >= next_kill and lab.in_hand(crew[victim]) > 0:
                crew[victim].kill()
                kill_ms.append(time.time() * 1000)
                crew[victim].wait()
                crew[victim] = lab.worker("--lanes", "1")
                young = victim if young is None else None
                next_kill = time.monotonic() + (0.0 if young is not None else 4.0)
            if pushed == jobs and len(envelopes) >= jobs and len(kill_ms) < kills:
                jobs += 1000  # kills remain: more load
                ids += [f"k{i}" for i in range(len(ids), jobs)]
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        time.sleep(0.5)
        envelopes += lab.replies()
        lost, twice, bad = account(ids, envelopes)
        # A job with a crash ran again: its second start minus the kill before it, the first one of a pair.
        delays = []
        for e in envelopes:
            if e.get("crashes", 0) >= 1:
                before = [k for k in kill_ms if k <= e["started_ms"]]
                if before:
                    delays.append(e["started_ms"] - min([k for k in before if e["started_ms"] - k < 3500] or before[-1:]))
        return {"scenario": "kill", "jobs": len(ids), "kills": len(kill_ms), "lost": len(lost), "twice": len(twice), "not_done": len(bad),
                "recovered": len(delays), "recovery_p50_ms": percentile(delays, 0.5), "recovery_p99_ms": percentile(delays, 0.99)}
    finally:
        lab.close()


def stop(n=30, stopped_s=20.0, options=()):
    """SIGSTOP: n workers hold a job each and stand still past their lease; others take the jobs; the stale commits are refused."""
    lab = Lab()
    try:
        ids = [f"s{i}" for i in range(n)]
        stale = [lab.worker("--lanes", "1", *options) for _ in range(n)]
        lab.wait_for_workers(n)
        lab.push({"id": i, "op": "ping", "params": {"sleep_ms": 3000, "echo": i}} for i in ids)
        for _ in range(300):
            if lab.client.llen(QUEUE + "in") == 0:
                break
            time.sleep(0.01)
        time.sleep(0.3)
        for p in stale:
            p.send_signal(signal.SIGSTOP)
        lab.worker("--lanes", "1", *options)
        end = time.monotonic() + stopped_s
        envelopes = []
        while time.monotonic() < end:
            envelopes += lab.replies()
            time.sleep(0.05)
        meanwhile = len(envelopes)
        for p in stale:
            p.send_signal(signal.SIGCONT)
        end = time.monotonic() + 20
        while time.monotonic() < end and len(envelopes) < n:
            envelopes += lab.replies()
            time.sleep(0.05)
        time.sleep(4)
        envelopes += lab.replies()
        lost, twice, bad = account(ids, envelopes)
        refused = sum(1 for e in envelopes if e.get("crashes", 0) >= 1)
        return {"scenario": "stop", "stopped": n, "done_meanwhile": meanwhile, "stale_refused": refused, "lost": len(lost), "twice": len(twice),
                "not_done": len(bad)}
    finally:
        lab.close()


def full(jobs=20000, payload=256):
    """A Redis at its maxmemory (noeviction) with jobs waiting drains by itself."""
    lab = Lab("--maxmemory-policy", "noeviction")
    try:
        ids = [f"f{i}" for i in range(jobs)]
        echo = "x" * payload
        for first in range(0, jobs, 1000):
            lab.push({"id": i, "op": "ping", "ttl_ms": 60000, "params": {"echo": echo}} for i in ids[first:first + 1000])
        # Full: not one more push goes in.
        lab.client.config_set("maxmemory", lab.client.info("memory")["used_memory"] - 1)
        refused = False
        try:
            lab.client.lpush(QUEUE + "in", "{}")
        except redis.exceptions.ResponseError:
            refused = True
        lab.worker("--lanes", "1")
        end = time.monotonic() + 120
        waiting = jobs
        while time.monotonic() < end and waiting:
            time.sleep(0.1)
            waiting = lab.client.llen(QUEUE + "in") + lab.client.llen(QUEUE + "redo")
        time.sleep(1.0)
        owned = sum(lab.client.hlen(k) for k in lab.client.scan_iter(QUEUE + "a:*"))
        envelopes = lab.replies()
        _, twice, _ = account([], envelopes)
        return {"scenario": "full", "jobs": jobs, "push_was_refused": refused, "left_waiting": waiting, "left_owned": owned,
                "envelopes": len(envelopes), "results": sum(1 for _ in lab.client.scan_iter(QUEUE + "r:*", count=1000)), "twice": len(twice)}
    finally:
        lab.close()


def restart(jobs=2000, restarts=3):
    """The Redis server is killed and comes back with its append-only file: nothing that it kept is lost, workers reconnect."""
    lab = Lab("--appendonly", "yes", "--appendfsync", "always")
    try:
        lab.worker("--lanes", "1")
        lab.worker("--lanes", "1")
        lab.wait_for_workers(2)
        ids = [f"r{i}" for i in range(jobs)]
        envelopes = []
        for part in range(restarts + 1):
            lab.push({"id": i, "op": "ping", "params": {"sleep_ms": 5}} for i in ids[part::restarts + 1])
            if part < restarts:
                time.sleep(0.05)
                lab.server.kill()
                lab.server.wait()
                time.sleep(0.3)
                lab.start_redis()
        end = time.monotonic() + 60
        while time.monotonic() < end and len({e["id"] for e in envelopes}) < jobs:
            envelopes += lab.replies()
            time.sleep(0.05)
        lost, twice, bad = account(ids, envelopes)
        return {"scenario": "restart", "jobs": jobs, "restarts": restarts, "lost": len(lost), "twice": len(twice), "not_done": len(bad)}
    finally:
        lab.close()


def good(r):
    return (r.get("lost", 0) == 0 and r.get("twice", 0) == 0 and r.get("not_done", 0) == 0 and r.get("left_waiting", 0) == 0
            and r.get("left_owned", 0) == 0 and r.get("stale_refused", 0) == r.get("stopped", 0))


def main():
    scenarios = {"kill": kill, "stop": stop, "full": full, "restart": restart}
    failed = False
    for name in sys.argv[1:] or scenarios:
        result = scenarios[name]()
        print(json.dumps(result), flush=True)
        failed |= not good(result)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
