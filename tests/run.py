"""Runs every test and counts: the unit tests (cmocka), and tests/it, tests/zoo (TAP programs).

A test program prints TAP: `ok 1 - name`, `not ok 2 - name`, `ok 3 - name # SKIP reason`. What it
prints otherwise is shown only where something failed. Arguments: words; only programs whose path
holds one of them run. Last line: `N passed, N failed, N skipped`.
"""
import concurrent.futures
import glob
import os
import re
import subprocess
import sys
import time

BUILD = os.environ.get("QUERN_BUILD", "build/release")
SAN = os.environ.get("SAN", "")
TIMEOUT_S = 900 if SAN else 420
LINE = re.compile(r"^\s*(not ok|ok)\b\s*\d*\s*-?\s*(.*)$")


def programs(words):
    found = sorted(p for p in glob.glob(f"{BUILD}/tests/unit/test_*") if "." not in os.path.basename(p))
    for folder in ("it", "zoo", "chaos", "fuzz"):
        found += sorted(glob.glob(f"tests/{folder}/test_*.py")) + sorted(glob.glob(f"tests/{folder}/test_*.mjs"))
    return [p for p in found if not words or any(w in p for w in words)]


def command(path):
    if path.endswith(".py"):
        return ["/usr/bin/python3", path]
    if path.endswith(".mjs"):
        return ["node", path]
    return [path]


def run(path):
    env = dict(os.environ, CMOCKA_MESSAGE_OUTPUT="TAP", QUERN=os.path.abspath(f"{BUILD}/quern"),
               ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "detect_leaks=1"))
    start = time.monotonic()
    try:
        p = subprocess.run(command(path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
                           timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
        out, code = p.stdout.decode("utf-8", "replace"), p.returncode
    except subprocess.TimeoutExpired as e:
        out = (e.stdout or b"").decode("utf-8", "replace") + f"\nnot ok - no end after {TIMEOUT_S} s\n"
        code = 0
    good = bad = skipped = 0
    for line in out.splitlines():
        m = LINE.match(line)
        if not m:
            continue
        if m.group(1) == "not ok":
            bad += 1
        elif re.search(r"#\s*skip", m.group(2), re.I):
            skipped += 1
        else:
            good += 1
    if bad == 0 and (code != 0 or good + skipped == 0):
        out += f"\nnot ok - {path} ended with {code} and counted {good} tests\n"
        bad += 1
    return path, good, bad, skipped, out, time.monotonic() - start


def main():
    todo = programs(sys.argv[1:])
    total = [0, 0, 0]
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("QUERN_TEST_JOBS", "2"))) as pool:
        for path, good, bad, skipped, out, seconds in pool.map(run, todo):
            total[0] += good
            total[1] += bad
            total[2] += skipped
            print(f"{'FAIL' if bad else 'ok  '} {path}: {good} passed, {bad} failed, {skipped} skipped ({seconds:.1f} s)", flush=True)
            if bad:
                print("    " + "\n    ".join(out.splitlines()[-200:]), flush=True)
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped")
    return 1 if total[1] or not total[0] else 0


if __name__ == "__main__":
    sys.exit(main())
