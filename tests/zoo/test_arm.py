"""The engine on aarch64, cross-compiled and run under qemu (TAP): its unit tests, and all ONNX cases with the bits of this machine.

Two things may differ: operators that draw random numbers, and the last bits of what the C library computes (asin and its kin): those are
compared with a tolerance. Skipped where the cross compiler or qemu cannot be installed, and on machines that are no x86-64."""
import glob
import os
import platform
import subprocess
import sys

PACKAGES = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"]
DATA = "/usr/share/libonnx-testdata/data"
LEVELS = ("generic", "neon")
RTOL = 1e-6
n = failed = 0


def tell(good, name, notes=()):
    global n, failed
    n += 1
    failed += not good
    for note in list(notes)[:20]:
        print(f"# {note}")
    print(f"{'ok' if good else 'not ok'} {n} - {name}", flush=True)


def skip(why):
    print(f"ok 1 - aarch64 # SKIP {why}")
    sys.exit(0)


def outputs(command, level, folders):
    """{(case, output): (type and shape, hash, values)} in the order in which they came."""
    found = {}
    for i in range(0, len(folders), 200):
        p = subprocess.run([*command, level, *folders[i : i + 200]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300)
        for line in p.stdout.splitlines():
            case, number, kind, digest, values = line.split("\t")
            found[case, number, sum(key[:2] == (case, number) for key in found) if number == "-" else len(found)] = (kind, digest, values)
        if p.returncode:
            found["exit", str(p.returncode), i] = (p.stderr[-300:], "", "")
    return list(found.items())


def near(a, b):
    pairs = [(float.fromhex(x), float.fromhex(y)) for x, y in zip(a.split(), b.split())]
    return bool(pairs) and all(x == y or (x != x and y != y) or abs(x - y) <= RTOL * max(abs(x), abs(y)) for x, y in pairs)


def compare(level, here, there):
    same = close = 0
    notes = []
    for ((case, number, _), (kind, digest, values)), ((other, _, _), (kind2, digest2, values2)) in zip(here, there):
        if case == other and (kind, digest) == (kind2, digest2):
            same += 1
        elif case == other and kind == kind2 and ("bernoulli" in case or near(values, values2)):
            close += 1
        else:
            notes.append(f"{case} output {number}: {kind} {digest} here, {other} {kind2} {digest2} there")
    good = not notes and len(here) == len(there) and same > 100 and close < 30
    tell(good, f"{level} under qemu against generic here: {same} of {len(here)} outputs have the same bits, {close} differ in the last", notes)


def main():
    if platform.machine() != "x86_64":
        skip("this is no x86-64")
    if os.environ.get("SAN"):
        skip("the release build checks it")
    if subprocess.run(["tests/install.sh", *PACKAGES], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).returncode:
        skip(f"cannot install {' '.join(PACKAGES)}")
    p = subprocess.run(["make", "--no-print-directory", f"-j{os.cpu_count()}", "arm-bin"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    tell(p.returncode == 0, "it builds", [line for line in p.stdout.splitlines() if "error" in line or "warning:" in line])
    if p.returncode:
        return 1
    for path in sorted(glob.glob("build/arm/test_*")):
        if path.endswith((".d", ".o")):
            continue
        p = subprocess.run(["qemu-aarch64", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300)
        tell(p.returncode == 0, f"{os.path.basename(path)}: {(p.stdout.strip().splitlines() or ['no output'])[-1]}", p.stderr.splitlines()[-3:] if p.returncode else ())
    folders = sorted(os.path.dirname(path) for path in glob.glob(f"{DATA}/*/*/model.onnx"))
    if not folders:
        return 1 if failed else 0
    here = outputs(["build/arm/outputs-native"], "generic", folders)
    for level in LEVELS:
        compare(level, here, outputs(["qemu-aarch64", "build/arm/outputs"], level, folders))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
