"""The README's words, done as a reader would: its shell, Python and JavaScript blocks against a real Redis and worker.

Only the address changes: a private Unix socket instead of the default port.
"""
import json
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(__file__))
import server  # noqa: E402
import tap  # noqa: E402
import trains  # noqa: E402

with open("README.md") as f:
    TEXT = f.read()
FOLDER = tempfile.TemporaryDirectory(prefix="quern-readme-")
STORE = trains.digits_store(FOLDER.name)


def block(language, word):
    for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S):
        if kind == language and word in body:
            return body
    raise AssertionError(f"the README has no {language or 'plain'} block with {word}")


def test_redis_cli():
    with server.Server() as s:
        s.worker("--models", STORE)
        lines = block("", "LPUSH").splitlines()
        out = subprocess.run("\n".join(["set -e"] + lines[:1] + lines[2:3] + lines[1:2]).replace("redis-cli", f"redis-cli -s {s.socket}"), shell=True,
                             capture_output=True, text=True, timeout=60)
        envelope = json.loads(out.stdout.splitlines()[-1])
        assert envelope["state"] == "done" and envelope["id"] == "a1", envelope
        assert envelope["result"]["top"][0]["index"] == 0, envelope


def test_python_client():
    with server.Server() as s:
        s.worker("--models", STORE)
        code = block("python", "lpush").replace("redis.Redis()", f"redis.Redis(unix_socket_path={s.socket!r})")
        out = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, timeout=60)
        assert out.returncode == 0, out.stderr
        assert "'score'" in out.stdout and "'index'" in out.stdout, out.stdout


def test_node_client():
    folder = "build/node"
    os.makedirs(folder, exist_ok=True)
    if not os.path.isdir(f"{folder}/node_modules/redis"):
        with open(f"{folder}/package.json", "w") as f:
            json.dump({"private": True, "dependencies": {"redis": "5.x"}}, f)
        p = subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=folder, timeout=300)
        if p.returncode != 0:
            raise tap.SkipTest("npm cannot fetch the redis client")
    with server.Server() as s, tempfile.NamedTemporaryFile("w", suffix=".mjs", dir=folder) as f:
        s.worker("--models", STORE)
        f.write(block("js", "lPush").replace("createClient()", f"createClient({{ socket: {{ path: {s.socket!r} }} }})") + "process.exit(0);\n")
        f.flush()
        out = subprocess.run(["node", f.name], capture_output=True, text=True, timeout=60)
        assert out.returncode == 0, out.stderr
        assert "score" in out.stdout and "index" in out.stdout, out.stdout


tap.main(globals())
