"""The short form of `make chaos`: a few kills, stops, a full Redis, a restarted one."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../it"))
sys.path.insert(0, os.path.dirname(__file__))
import chaos  # noqa: E402
import soak  # noqa: E402
import tap  # noqa: E402


def test_kill_nine_under_load_loses_and_doubles_nothing():
    r = chaos.kill(jobs=3000, kills=2)
    assert chaos.good(r) and r["kills"] == 2 and r["recovered"] > 0, r


def test_stopped_worker_is_fenced():
    r = chaos.stop(n=3, stopped_s=7.0, options=("--lease-ms", "3000", "--beat-ms", "400"))
    assert chaos.good(r) and r["done_meanwhile"] == 3, r


def test_full_redis_drains():
    r = chaos.full(jobs=3000)
    assert chaos.good(r) and r["push_was_refused"], r


def test_restarted_redis():
    r = chaos.restart(jobs=600, restarts=2)
    assert chaos.good(r), r


def test_soak():
    r = soak.soak(0.2)
    grew = r["grew"] and not os.environ.get("SAN")  # a sanitizer holds back what is freed
    assert chaos.good(r) and not grew and r["jobs"] > 500, r


tap.main(globals())
