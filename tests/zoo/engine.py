"""libquern-ops.so from Python by ctypes: the engine as another program uses it. Shapes and types as in ops/ops.h."""
import ctypes as c
import os
import subprocess
import sys

import numpy as np

SAN = os.environ.get("SAN", "")
if "address" in SAN and not os.environ.get("LD_PRELOAD"):
    # The sanitizer has to be in the process before the library is: start again with it. Python's own leaks are not ours to report.
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    os.execve(sys.executable, [sys.executable, *sys.argv], dict(os.environ, LD_PRELOAD=runtime, ASAN_OPTIONS="detect_leaks=0"))

LIBRARY = os.path.join(os.environ.get("QUERN_BUILD", "build/release"), "libquern-ops.so")
TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64,
         12: np.uint32, 13: np.uint64}
CODES = {np.dtype(t): code for code, t in TYPES.items()}


class Error(c.Structure):
    _fields_ = [("code", c.c_int), ("text", c.c_char * 480)]


class Tensor(c.Structure):
    _fields_ = [("kind", c.c_int), ("dtype", c.c_int), ("rank", c.c_int), ("dims", c.c_int64 * 8), ("data", c.c_void_p), ("items", c.c_void_p),
                ("n_items", c.c_int64)]


class LoadOptions(c.Structure):
    _fields_ = [("cpu", c.c_char_p), ("reference", c.c_bool), ("memory_bytes_max", c.c_uint64), ("model_bytes_max", c.c_uint64), ("precision", c.c_char_p),
                ("cache", c.c_char_p), ("passes", c.c_char_p)]


class SessionOptions(c.Structure):
    _fields_ = [("n_threads", c.c_int), ("cancel", c.c_void_p), ("on_node", c.c_void_p), ("user", c.c_void_p), ("any_shape", c.c_bool)]


class Io(c.Structure):
    _fields_ = [("name", c.c_char_p), ("kind", c.c_int), ("dtype", c.c_int), ("rank", c.c_int), ("dims", c.c_int64 * 8), ("symbols", c.c_char_p * 8),
                ("optional", c.c_bool)]


def _library():
    lib = c.CDLL(os.path.abspath(LIBRARY))
    p = c.c_void_p
    lib.op_model_load.argtypes, lib.op_model_load.restype = [c.c_char_p, p, p], p
    lib.op_session_create.argtypes, lib.op_session_create.restype = [p, p, p], p
    lib.op_session_run.argtypes = [p, p, c.c_int, p, p]
    lib.op_session_plan.argtypes = [p, p, c.c_int, p, p, p]
    lib.op_session_destroy.argtypes = lib.op_model_release.argtypes = [p]
    lib.op_model_batchable.argtypes = [p, p]
    for name in ("input", "output"):
        getattr(lib, f"op_model_n_{name}s").argtypes = [p]
        getattr(lib, f"op_model_{name}").argtypes = [p, c.c_int]
        getattr(lib, f"op_model_{name}").restype = c.POINTER(Io)
    return lib


class Model:
    """One model with one session: m(array, array, …) or m(name=array) gives the list of outputs."""

    def __init__(self, path, n_threads=1, reference=False, cpu=None):
        self.lib, err = _library(), Error()
        self.session = None
        load = LoadOptions(cpu=cpu.encode() if cpu else None, reference=reference)
        self.model = self.lib.op_model_load(os.fsencode(path), c.byref(load), c.byref(err))
        if not self.model:
            raise ValueError(err.text.decode())
        self.session = self.lib.op_session_create(self.model, c.byref(SessionOptions(n_threads, None, None, None, False)), c.byref(err))
        if not self.session:
            raise ValueError(err.text.decode())
        self.inputs = [self.lib.op_model_input(self.model, i).contents for i in range(self.lib.op_model_n_inputs(self.model))]
        self.n_outputs = self.lib.op_model_n_outputs(self.model)

    def __del__(self):
        self.lib.op_session_destroy(self.session)
        self.lib.op_model_release(self.model)

    def _tensors(self, arrays, keep):
        tensors = (Tensor * max(1, len(arrays)))()
        for t, a in zip(tensors, arrays):
            a = np.asarray(a, order="C")
            keep.append(a)
            t.dtype, t.rank, t.data = CODES[a.dtype], a.ndim, a.ctypes.data
            t.dims[: a.ndim] = a.shape
        return tensors

    def __call__(self, *arrays):
        keep, out, err = [], c.POINTER(Tensor)(), Error()
        if self.lib.op_session_run(self.session, self._tensors(arrays, keep), len(arrays), c.byref(out), c.byref(err)):
            raise ValueError(err.text.decode())
        results = []
        for t in out[: self.n_outputs]:
            shape, dtype = tuple(t.dims[: t.rank]), np.dtype(TYPES[t.dtype])
            n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            results.append(np.frombuffer(c.string_at(t.data, n_bytes) if n_bytes else b"", dtype).reshape(shape).copy())
        return results

    def plan(self, *arrays):
        """(bytes of the arena, floating-point operations)."""
        keep, peak, flops, err = [], c.c_size_t(), c.c_double(), Error()
        if self.lib.op_session_plan(self.session, self._tensors(arrays, keep), len(arrays), c.byref(peak), c.byref(flops), c.byref(err)):
            raise ValueError(err.text.decode())
        return peak.value, flops.value

    def batchable(self):
        err = Error()
        return self.lib.op_model_batchable(self.model, c.byref(err))
