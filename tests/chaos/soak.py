"""A long run of mixed jobs: good, bad and slow ones, a killed worker now and then. Memory must stay flat, nothing may be lost.

SOAK_MINUTES (30). Prints one JSON object; exit code 1 where a job was lost or doubled, or the long-lived worker grew by more than
10 % and 8 MiB after the first fifth of the run.
"""
import json
import os
import random
import subprocess
import sys
import time

import chaos

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
SPEC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../configs/examples/digits/train.json")


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def job(rng, i):
    pixels = [rng.randint(0, 16) for _ in range(64)]
    picture = [[[p] for p in pixels[y:y + 8]] for y in range(0, 64, 8)]
    kinds = [
        {"op": "ping", "params": {"echo": "x" * rng.randint(0, 2000), "sleep_ms": rng.choice([0, 0, 0, 20])}},
        {"op": "infer", "model": "digits", "input": pixels},
        {"op": "infer", "model": "digits", "input": [picture] * rng.randint(1, 40)},
        {"op": "infer", "model": "digits", "input": pixels[:rng.randint(0, 63)]},
        {"op": "infer", "model": "digitz", "input": pixels},
        {"op": "infer", "model": "digits", "input": {"dtype": "f32", "shape": [64], "b64": "####"}},
        {"op": "nothing"},
    ]
    return dict(rng.choice(kinds), id=f"m{i}", ttl_ms=5000)


def soak(minutes):
    lab = chaos.Lab()
    try:
        rng = random.Random(7)
        store = os.path.join(lab.folder, "store")
        subprocess.run([chaos.QUERN, "train", SPEC, "--output", os.path.join(lab.folder, "digits"), "--models", store], check=True, stdout=subprocess.DEVNULL)
        steady = lab.worker("--lanes", "1", "--models", store)
        mortal = lab.worker("--lanes", "1", "--models", store)
        lab.wait_for_workers(2)
        end = time.monotonic() + minutes * 60
        next_kill = time.monotonic() + 20
        memory, seen, doubled, pushed, kills = [], set(), 0, 0, 0
        while time.monotonic() < end or (len(seen) < pushed and time.monotonic() < end + 60):
            if time.monotonic() < end and pushed - len(seen) < 1000:
                lab.push(job(rng, pushed + k) for k in range(100))
                pushed += 100
            for e in lab.replies():
                doubled += e["id"] in seen
                seen.add(e["id"])
            memory.append(resident_kib(steady.pid))
            if time.monotonic() > next_kill and time.monotonic() < end - 10:
                mortal.kill()
                mortal.wait()
                kills += 1
                mortal = lab.worker("--lanes", "1", "--models", store)
                next_kill = time.monotonic() + 20
            time.sleep(0.01)
        early, late = max(memory[:max(1, len(memory) // 5)]), max(memory[-max(1, len(memory) // 5):])
        return {"scenario": "soak", "minutes": minutes, "jobs": pushed, "kills": kills, "lost": pushed - len(seen), "twice": doubled,
                "resident_kib_early": early, "resident_kib_late": late, "grew": late > early * 1.1 and late > early + 8192}
    finally:
        lab.close()


def main():
    r = soak(MINUTES)
    print(json.dumps(r))
    sys.exit(0 if chaos.good(r) and not r["grew"] else 1)


if __name__ == "__main__":
    main()
