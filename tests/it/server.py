"""A private redis-server on a Unix socket in a temporary folder, and quern workers on it, for integration tests."""
import os
import shutil
import subprocess
import tempfile
import time

import redis

import tap

CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("QUERN_")}


class Server:
    """with Server() as s: s.client (python3-redis), s.url, s.folder; s.worker(…) starts a worker and waits for its first beat."""

    def __init__(self, *options):
        self.folder = tempfile.mkdtemp(prefix="quern-it-")
        self.socket = os.path.join(self.folder, "redis.sock")
        self.url = f"unix:{self.socket}"
        self.options = options
        self.workers = []

    def __enter__(self):
        self.process = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no", "--dir",
                                         self.folder, *self.options], stdout=subprocess.DEVNULL)
        self.client = redis.Redis(unix_socket_path=self.socket)
        for _ in range(500):
            try:
                self.client.ping()
                return self
            except redis.exceptions.RedisError:
                time.sleep(0.01)
        raise RuntimeError("redis-server does not answer")

    def __exit__(self, *_):
        for p in self.workers:
            p.kill()
            p.wait()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def worker(self, *options, env=None, queue="default"):
        before = self.client.hlen(f"quern:{{{queue}}}:hb")
        log = open(os.path.join(self.folder, f"worker-{len(self.workers)}.log"), "wb")
        p = subprocess.Popen([tap.QUERN, "worker", "--redis", self.url, *options], stdout=log, stderr=log,
                             env=dict(CLEAN, HOME="/nonexistent", **(env or {})))
        self.workers.append(p)
        for _ in range(1500):
            if self.client.hlen(f"quern:{{{queue}}}:hb") > before:
                return p
            if p.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError("the worker does not come up: " + self.log(len(self.workers) - 1))

    def log(self, i=0):
        with open(os.path.join(self.folder, f"worker-{i}.log"), errors="replace") as f:
            return f.read()

    def quern(self, *args, env=None, timeout=60, stdin=None):
        return subprocess.run([tap.QUERN, *args], capture_output=True, text=True, timeout=timeout, input=stdin,
                              env=dict(CLEAN, HOME="/nonexistent", QUERN_REDIS=self.url, **(env or {})))
