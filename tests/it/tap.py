"""TAP for Python tests: functions named test_* of a module, run in order; SkipTest skips.

    import tap
    def test_it(): assert 1 + 1 == 2
    tap.main(globals())
"""
import os
import sys
import traceback

QUERN = os.path.abspath(os.environ.get("QUERN", "build/quern"))
DATA = os.environ.get("QUERN_TEST_DATA")


class SkipTest(Exception):
    pass


def need_data():
    """The folder of real models and data; skips the test where there is none."""
    if not DATA:
        raise SkipTest("QUERN_TEST_DATA is not set")
    return DATA


def main(names):
    tests = [(n, f) for n, f in names.items() if n.startswith("test_") and callable(f)]
    words = sys.argv[1:]
    tests = [t for t in tests if not words or any(w in t[0] for w in words)]
    failed = 0
    print(f"1..{len(tests)}")
    for i, (name, function) in enumerate(tests, 1):
        try:
            function()
            print(f"ok {i} - {name}", flush=True)
        except SkipTest as e:
            print(f"ok {i} - {name} # SKIP {e}", flush=True)
        except BaseException as e:
            failed += 1
            print("".join(traceback.format_exception(e)))
            print(f"not ok {i} - {name}", flush=True)
            if isinstance(e, KeyboardInterrupt):
                break
    sys.exit(1 if failed else 0)
