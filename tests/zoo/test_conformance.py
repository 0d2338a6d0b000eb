"""Every ONNX backend case of libonnx-testdata by `quern model test` (TAP): none may fail, and at least so many must pass.

Run in all forms that must agree: with passes, plain (--reference), with two threads, and at each level of the machine."""
import os
import subprocess
import sys

QUERN = os.environ.get("QUERN", "build/release/quern")
DATA = "/usr/share/libonnx-testdata/data"
PASSES_MIN = {"node": 932, "pytorch-converted": 82, "pytorch-operator": 35, "simple": 21}
FORMS = [[], ["--reference"], ["--threads", "2"], ["--cpu", "generic"], ["--cpu", "avx2"], ["--cpu", "avx512"]]


def check(suite, form, passes_min):
    """The TAP line's verdict, name and note, and what to show besides."""
    p = subprocess.run([QUERN, "model", "test", *form, f"{DATA}/{suite}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = p.stdout.splitlines() or ["no output"]
    name = f"{suite} {' '.join(form)}".strip()
    if "has no ISA level" in lines[0]:
        return "ok", f"{name} # SKIP this machine has no such level", []
    bad = [line for line in lines if line.startswith("FAIL")]
    passed = sum(line.startswith("ok ") for line in lines)
    good = p.returncode == 0 and not bad and passed >= passes_min
    return "ok" if good else "not ok", f"{name}: {lines[-1]}, at least {passes_min} must pass", bad[:20]


def main():
    if not os.path.isdir(DATA):
        print("ok 1 - conformance # SKIP libonnx-testdata is not installed")
        return 0
    forms = FORMS[:3] if os.environ.get("SAN") else FORMS
    n = failed = 0
    for suite, passes_min in PASSES_MIN.items():
        for form in forms:
            n += 1
            verdict, name, notes = check(suite, form, passes_min)
            failed += verdict != "ok"
            print("".join(f"# {note}\n" for note in notes) + f"{verdict} {n} - {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
