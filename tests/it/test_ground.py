"""The program's manners: help, exit codes, settings and their errors, generated pages, units."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(__file__))
import tap  # noqa: E402

CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("QUERN_")}


def quern(*args, env=None):
    return subprocess.run([tap.QUERN, *args], capture_output=True, text=True, env=dict(CLEAN, HOME="/nonexistent", **(env or {})), timeout=60)


def test_help_names_every_command():
    out = quern("--help")
    assert out.returncode == 0 and "usage: quern" in out.stdout
    for name in re.findall(r"^  ([a-z]+(?: [a-z]+)?)  +\S", out.stdout, re.M):
        page = quern(*name.split(), "--help")
        assert page.returncode == 0 and page.stdout.startswith(f"usage: quern {name}"), name


def test_wrong_words_are_usage_errors():
    for args in (["frobnicate"], [], ["config", "show", "--lanez", "3"], ["config", "show", "--lanes"], ["config", "show", "--lanes", "x"]):
        out = quern(*args)
        assert out.returncode == 2, (args, out)
    out = quern("config", "show", "--lanes", "300")
    assert out.returncode == 2 and "300" in out.stderr and "0 to 256" in out.stderr, out.stderr
    out = quern("config", "show", "--lanes", "300", "--json")
    assert json.loads(out.stderr)["error"]["code"] == "usage"


def test_settings_precedence():
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "c.json")
        with open(path, "w") as f:
            json.dump({"lanes": 3, "queues": ["a:2", "b"], "beat_ms": 500}, f)
        out = json.loads(quern("config", "show", "--config", path, env={"QUERN_BEAT_MS": "600", "QUERN_FILES": "/a,/b"}).stdout)
        assert out["lanes"] == 3 and out["queues"] == ["a:2", "b"] and out["beat_ms"] == 600 and out["files"] == ["/a", "/b"]
        out = json.loads(quern("config", "show", "--config", path, "--lanes=5", "--files", "/x", "--files", "/y").stdout)
        assert out["lanes"] == 5 and out["files"] == ["/x", "/y"]
        out = quern("config", "show", "--origin", "--config", path, "--lanes=5", env={"QUERN_BEAT_MS": "600"}).stdout
        assert re.search(r"^lanes .*option$", out, re.M) and re.search(r"^beat_ms .*environment$", out, re.M)
        assert re.search(r"^queues .*c\.json$", out, re.M)


def test_bad_settings_name_line_key_and_range():
    cases = [
        ('{\n  "lanes": 2,\n  "laness": 3\n}', ":3:", "laness", '"lanes"'),
        ('{\n  "lanes": 9999\n}', ":2:", "lanes is 9999", "0 to 256"),
        ('{\n  "lanes": "two"\n}', ":2:", "lanes is a string", "whole number"),
        ('{\n  "lanes": 2,,\n}', ":2:", "not JSON", ""),
        ("[]", ":1:", "object", ""),
        ('{"log_level": "loud"}', ":1:", "loud", "error|warn|notice|info|debug"),
        ('{"files": [1]}', ":1:", "files[0]", "string"),
        ('{"lanes": 1, "lanes": 2}', ":1:", "duplicate", ""),
    ]
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "c.json")
        for text, *wanted in cases:
            with open(path, "w") as f:
                f.write(text)
            out = quern("config", "show", "--config", path)
            assert out.returncode == 78, (text, out)
            assert all(w in out.stderr for w in wanted), (text, out.stderr)
    out = quern("config", "show", "--config", "/does/not/exist.json")
    assert out.returncode == 78 and "/does/not/exist.json" in out.stderr


def test_passwords_are_not_shown():
    out = quern("config", "show", env={"QUERN_REDIS": "redis://me:hunter2@localhost:1/0"})
    assert "hunter2" not in out.stdout and "«redacted»" in out.stdout
    out = quern("config", "show", "--redis", "redis://me:hunter2@localhost:1/0")
    assert "hunter2" not in out.stdout + out.stderr and "password_in_argv" in out.stderr


def test_generated_pages_are_fresh():
    with open("configs/worker.json") as f:
        assert f.read() == quern("config", "show", "--defaults").stdout, "run: make docs"
    with open("configs/README.md") as f:
        assert f.read() == quern("config", "reference").stdout, "run: make docs"


def test_man_page_renders():
    page = quern("help", "--man").stdout
    if not shutil.which("groff"):
        raise tap.SkipTest("groff is not installed")
    out = subprocess.run(["groff", "-Kutf8", "-man", "-Tutf8", "-ww", "-z"], input=page, capture_output=True, text=True)
    bad = [w for w in out.stderr.splitlines() if "warning" in w and "can't break" not in w and "cannot" not in w]
    assert out.returncode == 0 and not bad, out.stderr


def test_units_verify():
    if not shutil.which("systemd-analyze"):
        raise tap.SkipTest("systemd-analyze is not installed")
    with tempfile.TemporaryDirectory() as d:
        for name in ("quern-worker@.service", "quern.target"):
            with open(f"systemd/{name}") as f:
                text = f.read().replace("/usr/bin/quern", tap.QUERN)
            with open(os.path.join(d, name), "w") as f:
                f.write(text)
        out = subprocess.run(["systemd-analyze", "verify", "--man=no", f"{d}/quern-worker@1.service", f"{d}/quern.target"],
                             capture_output=True, text=True)
        assert out.returncode == 0 and "quern" not in out.stderr, out.stderr
    out = subprocess.run(["systemd-analyze", "security", "--offline=true", "systemd/quern-worker@.service"], capture_output=True, text=True)
    level = float(re.search(r"exposure level for \S+: ([0-9.]+)", out.stdout).group(1))
    assert level <= 1.5, level


tap.main(globals())
