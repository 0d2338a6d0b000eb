"""Random graphs of data movement against numpy.

Each graph is a chain of one to five operators on tensors of any type, rank 0 to 5, dimensions from 0 on. The parameters of an
operator (axes, pads, indices, shapes) are constants, inputs that only a run knows, or computed in the graph from the shape of
what is moved, so that plans with known and unknown shapes are both driven. numpy computes what is expected while the
graph is built; the graphs are written as ONNX backend cases and `quern model test` runs them all.

QUERN_TEST_SEED chooses other graphs, QUERN_TEST_GRAPHS how many.
"""
import os
import pathlib
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "it"))
import tap  # noqa: E402

try:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    np = onnx = None

OPSET = 19
SEED = int(os.environ.get("QUERN_TEST_SEED", "1"))
GRAPHS = int(os.environ.get("QUERN_TEST_GRAPHS", "600"))


class Graph:
    """A graph under construction and the value of everything in it."""

    def __init__(self, rnd):
        self.rnd = rnd
        self.nodes, self.inputs, self.constants, self.used = [], [], [], []
        self.n = 0

    def name(self):
        self.n += 1
        return f"v{self.n}"

    def input(self, value):
        name = self.name()
        self.inputs.append((name, value))
        return name, value

    def node(self, op, names, values, **attrs):
        """Adds a node; its outputs as (name, value) in a list."""
        outs = [self.name() for _ in values]
        self.nodes.append(helper.make_node(op, names, outs, **attrs))
        self.used.append(op)
        return list(zip(outs, values))

    def ints(self, values, like=None):
        """The name of an i64 vector: a constant, an input, or where possible something computed from the shape of `like`."""
        array = np.asarray(values, np.int64)
        how = self.rnd.random()
        if how < 0.3:
            return self.input(array)[0]
        if how < 0.5 and like is not None and array.ndim == 1 and array.size:
            name, value = like
            shape = self.node("Shape", [name], [None])[0][0]
            zero = self.node("Sub", [shape, shape], [None])[0][0]
            if value.ndim >= array.size:  # the first of shape - shape, plus the values
                end = self.constant(np.array([array.size], np.int64))
                start = self.constant(np.array([0], np.int64))
                zero = self.node("Slice", [zero, start, end], [None])[0][0]
                return self.node("Add", [zero, self.constant(array)], [None])[0][0]
        return self.constant(array)

    def constant(self, array):
        name = self.name()
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def random_tensor(rnd, rank=None):
    rank = rnd.choice([0, 1, 2, 3, 3, 4, 4, 5]) if rank is None else rank
    shape = [0 if rnd.random() < 0.03 else rnd.randint(1, 6) for _ in range(rank)]
    if rnd.random() < 0.05 and rank:  # one that is worth a block or a thread
        shape = [rnd.randint(1, 70) if i >= rank - 2 else rnd.randint(1, 3) for i in range(rank)]
    dtype = rnd.choice(["float32", "float32", "float32", "int64", "uint8", "float16", "float64", "int32", "bool", "int16", "complex64"])
    values = np.arange(int(np.prod(shape))) % 251
    if dtype == "bool":
        values = values % 3 == 1
    return np.asarray(values).astype(dtype).reshape(shape)


# --- one function an operator: (graph, (name, value)) -> (name, value), or None where it does not fit ----------------------


def transpose(g, x):
    perm = list(range(x[1].ndim))
    g.rnd.shuffle(perm)
    return g.node("Transpose", [x[0]], [np.transpose(x[1], perm)], perm=perm)[0]


def reshape(g, x):
    dims = list(x[1].shape)
    if x[1].size == 0 or g.rnd.random() < 0.2:
        return g.node("Reshape", [x[0], g.ints([-1] if x[1].size else [0, 3])], [x[1].reshape([-1] if x[1].size else [0, 3])], allowzero=int(x[1].size == 0))[0]
    while len(dims) > 1 and g.rnd.random() < 0.7:
        i = g.rnd.randrange(len(dims) - 1)
        dims[i:i + 2] = [dims[i] * dims[i + 1]]
    want = list(dims)
    if g.rnd.random() < 0.5 and want:
        want[g.rnd.randrange(len(want))] = -1
    return g.node("Reshape", [x[0], g.ints(want, x)], [x[1].reshape(dims)])[0]


def flatten(g, x):
    axis = g.rnd.randint(-x[1].ndim, x[1].ndim)
    lead = x[1].shape[:axis]
    return g.node("Flatten", [x[0]], [x[1].reshape(int(np.prod(lead)), int(np.prod(x[1].shape[len(lead):])))], axis=axis)[0]


def squeeze(g, x):
    axes = [i for i, d in enumerate(x[1].shape) if d == 1]
    if not axes:
        return None
    if g.rnd.random() < 0.3:
        return g.node("Squeeze", [x[0]], [np.squeeze(x[1])])[0]
    axes = g.rnd.sample(axes, g.rnd.randint(1, len(axes)))
    return g.node("Squeeze", [x[0], g.ints([a - g.rnd.choice([0, x[1].ndim]) for a in axes], x)], [np.squeeze(x[1], tuple(axes))])[0]


def unsqueeze(g, x):
    n = g.rnd.randint(1, 2)
    if x[1].ndim + n > 6:
        return None
    axes = g.rnd.sample(range(x[1].ndim + n), n)
    y = x[1]
    for a in sorted(axes):
        y = np.expand_dims(y, a)
    return g.node("Unsqueeze", [x[0], g.ints(axes, x)], [y])[0]


def slice_(g, x):
    if not x[1].ndim:
        return None
    axes = g.rnd.sample(range(x[1].ndim), g.rnd.randint(1, x[1].ndim))
    starts, ends, steps, index = [], [], [], [slice(None)] * x[1].ndim
    for a in axes:
        start, end, step = g.rnd.randint(-8, 8), g.rnd.choice([g.rnd.randint(-8, 8), 2**62, -(2**62)]), g.rnd.choice([1, 1, 1, 2, 3, -1, -2])
        index[a] = slice(start, end, step)
        starts.append(start)
        ends.append(end)
        steps.append(step)
    names = [x[0], g.ints(starts, x), g.ints(ends, x), g.ints(axes, x)]
    if any(s != 1 for s in steps) or g.rnd.random() < 0.5:
        names.append(g.ints(steps, x))
    return g.node("Slice", names, [x[1][tuple(index)]])[0]


def concat(g, x):
    if not x[1].ndim:
        return None
    axis = g.rnd.randrange(x[1].ndim)
    shape = list(x[1].shape)
    shape[axis] = g.rnd.randint(0, 4)
    other = np.ones(shape, x[1].dtype)
    parts = [x, g.input(other), x][:g.rnd.randint(1, 3)]
    return g.node("Concat", [p[0] for p in parts], [np.concatenate([p[1] for p in parts], axis)], axis=axis - g.rnd.choice([0, x[1].ndim]))[0]


def split(g, x):
    if not x[1].ndim:
        return None
    axis = g.rnd.randrange(x[1].ndim)
    dim = x[1].shape[axis]
    cuts = sorted(g.rnd.randint(0, dim) for _ in range(g.rnd.randint(0, 3)))
    parts = np.split(x[1], cuts, axis)
    sizes = [p.shape[axis] for p in parts]
    if len(parts) > 1 and g.rnd.random() < 0.3:
        n = len(parts)
        size = -(-dim // n)
        parts = [np.take(x[1], range(min(i * size, dim), min((i + 1) * size, dim)), axis) for i in range(n)]
        outs = g.node("Split", [x[0]], parts, axis=axis, num_outputs=n)
    else:
        outs = g.node("Split", [x[0], g.ints(sizes, x)], parts, axis=axis)
    return g.rnd.choice(outs)


def gather(g, x):
    axes = [a for a in range(x[1].ndim) if x[1].shape[a]]
    if not axes:
        return None
    axis = g.rnd.choice(axes)
    rank = g.rnd.randint(0, 2)
    if x[1].ndim - 1 + rank > 6:
        return None
    dim = x[1].shape[axis]
    index = np.array([g.rnd.randint(-dim, dim - 1) for _ in range(12)], np.int64)[:3 * 2 ** rank if rank else 1].reshape([[], [6], [3, 4]][rank])
    return g.node("Gather", [x[0], g.ints(index)], [np.take(x[1], index, axis)], axis=axis)[0]


def elements_index(g, x):
    axis = g.rnd.randrange(x[1].ndim)
    dim = x[1].shape[axis]
    shape = [g.rnd.randint(0, d) for d in x[1].shape]
    shape[axis] = g.rnd.randint(0, 5) if dim else 0
    index = np.array([g.rnd.randint(-dim, dim - 1) if dim else 0 for _ in range(int(np.prod(shape)))], np.int64).reshape(shape)
    return axis, index


def gather_elements(g, x):
    if not x[1].ndim or x[1].size > 5000:
        return None
    axis, index = elements_index(g, x)
    data = x[1][tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(index.shape))]
    return g.node("GatherElements", [x[0], g.ints(index)], [np.take_along_axis(data, index % max(1, x[1].shape[axis]), axis)], axis=axis)[0]


def scatter_elements(g, x):
    if not x[1].ndim or x[1].size > 5000:
        return None
    axis, index = elements_index(g, x)
    updates = (np.arange(index.size) % 7).reshape(index.shape).astype(x[1].dtype)
    reduction = g.rnd.choice(["none", "add", "max"]) if x[1].dtype.kind in "iuf" else "none"
    y = x[1].copy()
    for at in np.ndindex(*index.shape):
        to = at[:axis] + (index[at],) + at[axis + 1:]
        y[to] = {"none": updates[at], "add": (y[to] + updates[at]).astype(y.dtype), "max": max(y[to], updates[at])}[reduction]
    return g.node("ScatterElements", [x[0], g.ints(index), g.input(updates)[0]], [y], axis=axis, reduction=reduction)[0]


def nd_index(g, x):
    depth = g.rnd.randint(1, x[1].ndim)
    index = np.array([[g.rnd.randint(-d, d - 1) for d in x[1].shape[:depth]] for _ in range(g.rnd.randint(1, 4))], np.int64)
    return depth, index


def gather_nd(g, x):
    if not x[1].ndim or 0 in x[1].shape:
        return None
    _, index = nd_index(g, x)
    return g.node("GatherND", [x[0], g.ints(index)], [np.stack([x[1][tuple(i)] for i in index])])[0]


def scatter_nd(g, x):
    if not x[1].ndim or 0 in x[1].shape:
        return None
    depth, index = nd_index(g, x)
    updates = (np.arange(len(index) * int(np.prod(x[1].shape[depth:]))) % 11).reshape((len(index),) + x[1].shape[depth:]).astype(x[1].dtype)
    y = x[1].copy()
    for i, u in zip(index, updates):
        y[tuple(i)] = u
    return g.node("ScatterND", [x[0], g.ints(index), g.input(updates)[0]], [y])[0]


def expand(g, x):
    lead = [g.rnd.randint(1, 3) for _ in range(g.rnd.randint(0, 2))] if x[1].ndim < 5 else []
    shape = lead + [g.rnd.randint(1, 5) if d == 1 else g.rnd.choice([1, d]) for d in x[1].shape]
    return g.node("Expand", [x[0], g.ints(shape, x)], [np.broadcast_to(x[1], np.broadcast_shapes(x[1].shape, shape))])[0]


def tile(g, x):
    repeats = [g.rnd.choice([0, 1, 1, 2, 3]) for _ in x[1].shape]
    return g.node("Tile", [x[0], g.ints(repeats, x)], [np.tile(x[1], repeats)])[0] if repeats else None


def pad(g, x):
    if not x[1].ndim or x[1].dtype.kind in "c" or 0 in x[1].shape:
        return None
    mode = g.rnd.choice(["constant", "reflect", "edge", "wrap"])
    axes = g.rnd.sample(range(x[1].ndim), g.rnd.randint(1, x[1].ndim))
    width, y = [(0, 0)] * x[1].ndim, x[1]
    before, after = [], []
    for a in axes:
        d = x[1].shape[a]
        most = {"constant": 4, "edge": 4, "reflect": d - 1, "wrap": d}[mode]
        b, e = g.rnd.randint(0, most), g.rnd.randint(0, most)
        if mode == "constant" and d > 2 and g.rnd.random() < 0.3:
            b = -1
            y = np.take(y, range(1, y.shape[a]), a)
        width[a] = (max(b, 0), e)
        before.append(b)
        after.append(e)
    names = [x[0], g.ints(before + after, x)]
    if mode == "constant":
        value = np.array(1, x[1].dtype)
        names.append(g.constant(value))
        y = np.pad(y, width, mode, constant_values=value)
    else:
        names.append("")
        y = np.pad(y, width, mode)
    names.append(g.ints(axes, x))
    return g.node("Pad", names, [y], mode=mode)[0]


def depth_to_space(g, x):
    b = 2
    if x[1].ndim != 4:
        return None
    n, c, h, w = x[1].shape
    if c % 4 == 0:
        mode = g.rnd.choice(["DCR", "CRD"])
        y = x[1].reshape(n, b, b, c // 4, h, w).transpose(0, 3, 4, 1, 5, 2) if mode == "DCR" else x[1].reshape(n, c // 4, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
        return g.node("DepthToSpace", [x[0]], [y.reshape(n, c // 4, h * b, w * b)], blocksize=b, mode=mode)[0]
    if h % 2 == 0 and w % 2 == 0:
        y = x[1].reshape(n, c, h // 2, b, w // 2, b).transpose(0, 3, 5, 1, 2, 4)
        return g.node("SpaceToDepth", [x[0]], [y.reshape(n, c * 4, h // 2, w // 2)], blocksize=b)[0]
    return None


def reverse_sequence(g, x):
    if x[1].ndim < 2:
        return None
    batch = g.rnd.randint(0, 1)
    lens = [g.rnd.randint(0, x[1].shape[1 - batch]) for _ in range(x[1].shape[batch])]
    y = x[1].copy()
    for i, n in enumerate(lens):
        at = (i, slice(n)) if batch == 0 else (slice(n), i)
        y[at] = np.flip(x[1][at], 0)
    return g.node("ReverseSequence", [x[0], g.ints(np.array(lens, np.int64))], [y], batch_axis=batch, time_axis=1 - batch)[0]


def center(g, x):
    if not x[1].ndim or x[1].dtype.kind == "c":
        return None
    want = [g.rnd.randint(0, 7) for _ in x[1].shape]
    y = np.zeros(want, x[1].dtype)
    to, of = [], []
    for d, n in zip(x[1].shape, want):
        cut, more = max(d - n, 0) // 2, max(n - d, 0) // 2
        to.append(slice(more, more + min(d, n)))
        of.append(slice(cut, cut + min(d, n)))
    y[tuple(to)] = x[1][tuple(of)]
    return g.node("CenterCropPad", [x[0], g.ints(want, x)], [y])[0]


def shape_of(g, x):
    start = g.rnd.randint(-6, 6)
    end = g.rnd.randint(-6, 6)
    return g.node("Shape", [x[0]], [np.array(x[1].shape[start:end] if x[1].ndim else [], np.int64)], start=start, end=end)[0]


OPERATORS = [transpose, transpose, reshape, flatten, squeeze, unsqueeze, slice_, slice_, concat, split, gather, gather_elements, scatter_elements, gather_nd,
             scatter_nd, expand, tile, pad, pad, depth_to_space, reverse_sequence, center, shape_of]


def write_case(folder, g, outputs):
    """A backend case; dimensions of inputs are symbolic."""
    def info(name, value, symbolic):
        dims = [f"{name}_{i}" for i in range(value.ndim)] if symbolic else value.shape
        return helper.make_tensor_value_info(name, onnx.mapping.NP_TYPE_TO_TENSOR_TYPE[value.dtype], dims)

    symbolic = g.rnd.random() < 0.7
    graph = helper.make_graph(g.nodes, "random", [info(n, v, symbolic) for n, v in g.inputs], [info(n, v, True) for n, v in outputs], g.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for kind, values in (("input", g.inputs), ("output", outputs)):
        for i, (name, value) in enumerate(values):
            (data / f"{kind}_{i}.pb").write_bytes(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name).SerializeToString())


def build(folder, rnd):
    g = Graph(rnd)
    x = g.input(random_tensor(rnd))
    outputs = []
    for _ in range(rnd.randint(1, 5)):
        y = None
        while y is None or y[1].size > 200000 or y[1].ndim > 7:
            mark = len(g.nodes), len(g.inputs), len(g.constants)
            y = rnd.choice(OPERATORS)(g, x)
            if y is None or y[1].size > 200000 or y[1].ndim > 7:
                del g.nodes[mark[0]:], g.inputs[mark[1]:], g.constants[mark[2]:]
        x = y
        outputs.append(x)
    kept = [o for o in outputs[:-1] if rnd.random() < 0.3] + [outputs[-1]]
    write_case(folder, g, kept)
    return [n.op_type for n in g.nodes]


def test_random_graphs_of_data_movement():
    if onnx is None:
        raise tap.SkipTest("python3-onnx or python3-numpy is not installed")
    np.seterr(over="ignore")  # small integers wrap around, here as there
    rnd = random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="quern-movement-") as tmp:
        root = pathlib.Path(tmp)
        operators = {}
        for i in range(GRAPHS):
            operators[f"graph_{i}"] = build(root / f"graph_{i}", rnd)
        keep = os.environ.get("QUERN_TEST_KEEP")
        if keep:
            subprocess.run(["cp", "-r", tmp, keep], check=True)
        done = subprocess.run([tap.QUERN, "model", "test", tmp], capture_output=True, text=True, timeout=300)
        bad = [line for line in done.stdout.splitlines() if line.startswith(("FAIL", "skip"))]
        for line in bad:
            print("#", line, " ".join(operators.get(line.split()[1].rstrip(":"), [])))
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr
        assert last == f"{GRAPHS} passed, 0 failed, 0 skipped", f"seed {SEED}: {last}"


if __name__ == "__main__":
    tap.main(globals())
