"""ops/OPERATORS.md is what tests/zoo/operators.py makes of the engine (TAP)."""
import difflib
import os
import sys

try:
    import operators  # the module beside this file, imported as a program: see below
except ImportError:
    operators = None

if operators is None or not operators.DATA.is_dir():
    print("ok 1 - the table of operators # SKIP python3-onnx or libonnx-testdata is not installed")
    sys.exit(0)
if os.environ.get("SAN"):
    print("ok 1 - the table of operators # SKIP the release build checks it")
    sys.exit(0)

made, kept = operators.table(), operators.TARGET.read_text()
for line in list(difflib.unified_diff(kept.splitlines(), made.splitlines(), "ops/OPERATORS.md", "made now", lineterm="", n=0))[:20]:
    print(f"# {line}")
print(f"{'ok' if made == kept else 'not ok'} 1 - the table of operators is current (make docs writes it)")
sys.exit(made != kept)
