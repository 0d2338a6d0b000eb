"""Replays every fuzz target's corpus, and a few hundred small changes of each file (TAP)."""
import glob
import os
import subprocess
import sys

build = os.environ.get("QUERN_BUILD", "build/release")
mutations = "100" if os.environ.get("SAN") else "400"
failed = 0
targets = sorted(glob.glob("tests/fuzz/fuzz_*.c"))
for i, source in enumerate(targets, 1):
    name = os.path.basename(source)[5:-2]
    corpus = f"tests/fuzz/corpus/{name}"
    p = subprocess.run([f"{build}/tests/fuzz/replay_{name}", "-m", mutations, corpus], stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=300, stdin=subprocess.DEVNULL)
    text = p.stdout.decode("utf-8", "replace")
    ok = p.returncode == 0
    failed += not ok
    if not ok:
        print(text[-6000:])
    print(f"{'ok' if ok else 'not ok'} {i} - fuzz corpus {name}: {text.strip().splitlines()[-1] if text.strip() else ''}")
sys.exit(1 if failed or not targets else 0)
