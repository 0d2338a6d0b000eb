"""Random graphs of the blocks that exporters write: test_passes.py runs them.

    model, x, outputs = random_graph.make(seed)      # outputs: [(name, shape)]
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


EPSILON = 1e-2  # of normalisations: rows that are nearly constant would blow up what is left of rounding


class Graph:
    """A graph under construction. Values are names; `shapes` holds the real shape of each."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants, self.shapes, self.n = [], [], {}, 0
        self.opset = int(self.random.choice([11, 13, 16, 17]))
        self.outputs = []

    def name(self, hint):
        self.n += 1
        return f"{hint}{self.n}"

    def chance(self, p):
        return self.random.random() < p

    def pick(self, *choices):
        return choices[int(self.random.integers(len(choices)))]

    def constant(self, array, hint="c"):
        """An initializer, or now and then a Constant node."""
        name, array = self.name(hint), np.asarray(array)
        if self.chance(0.2):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name + "_value")))
        else:
            self.constants.append(numpy_helper.from_array(array, name))
        self.shapes[name] = array.shape
        return name

    def weights(self, *shape, scale=None):
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        return self.constant((self.random.standard_normal(shape) * (scale or fan ** -0.5)).astype(np.float32), "w")

    def scalar(self, value):
        return self.constant(np.array(value, np.float32) if self.chance(0.7) else np.array([value], np.float32))

    def node(self, op, inputs, shape, **attributes):
        name = self.name(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.shapes[name] = tuple(shape)
        return name

    def binary(self, op, a, b, shape):
        return self.node(op, [a, b] if self.chance(0.6) else [b, a], shape)


# --- blocks: each takes a value and gives one ----------------------------------------------------


def activation(g, x):
    s = g.shapes[x]
    kind = g.pick("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Clip", "PRelu", "swish", "hardswish", "Selu", "Softplus", "none")
    if kind == "none":
        return x
    if kind == "Clip":
        low, high = g.constant(np.float32(-0.4)), g.constant(np.float32(0.9))
        return g.node("Clip", g.pick([x, low, high], [x, low], [x, "", high]), s)
    if kind == "PRelu":
        return g.node("PRelu", [x, g.weights(*([s[1]] + [1] * (len(s) - 2) if len(s) > 2 else [s[-1]]), scale=0.3)], s)
    if kind == "swish":
        return g.binary("Mul", x, g.node("Sigmoid", [x], s), s)
    if kind == "hardswish":
        alpha = g.pick(1 / 6, 0.2)
        return g.binary("Mul", x, g.node("HardSigmoid", [x], s, alpha=alpha, beta=0.5), s)
    attributes = {"LeakyRelu": {"alpha": 0.2}, "Elu": {"alpha": 0.7}, "HardSigmoid": {"alpha": 0.3}}.get(kind, {})
    return g.node(kind, [x], s, **attributes)


def gelu(g, x):
    """Its four spellings, and one that only looks like it."""
    s = g.shapes[x]
    inner = g.node("Div", [x, g.scalar(2 ** 0.5)], s) if g.chance(0.6) else g.node("Mul", [x, g.scalar(0.5 ** 0.5)], s)
    e = g.binary("Add", g.node("Erf", [inner], s), g.scalar(g.pick(1.0, 1.0, 1.0, 0.9)), s)
    form = g.pick(0, 1, 2)
    if form == 0:
        return g.binary("Mul", g.binary("Mul", x, e, s), g.scalar(0.5), s)
    if form == 1:
        return g.binary("Mul", x, g.binary("Mul", e, g.scalar(0.5), s), s)
    return g.binary("Mul", g.binary("Mul", x, g.scalar(0.5), s), e, s)


def channelwise(g, x, what):
    """One value a channel, in one of the shapes that broadcast to it."""
    s = g.shapes[x]
    shape = g.pick([s[1]] + [1] * (len(s) - 2), [1, s[1]] + [1] * (len(s) - 2), [1])
    return g.binary(what, x, g.constant((g.random.random(shape) + 0.5).astype(np.float32)), s)


def batch_norm(g, x):
    s = g.shapes[x]
    c = s[1]
    values = [g.random.random(c) + 0.5, g.random.standard_normal(c) * 0.3, g.random.standard_normal(c) * 0.3, g.random.random(c) + 0.4]
    return g.node("BatchNormalization", [x] + [g.constant(v.astype(np.float32)) for v in values], s, epsilon=float(g.pick(1e-5, 1e-3)))


def convolution(g, x, keep=False):
    n, c, h, w = g.shapes[x]
    k, stride, dilation = (g.pick(1, 3), 1, 1) if keep else (g.pick(1, 3, 3, 5), g.pick(1, 1, 2), g.pick(1, 1, 2))
    pad = (k // 2) * dilation if keep or g.chance(0.8) else 0
    reach = (k - 1) * dilation + 1
    if min(h, w) + 2 * pad < reach:
        pad = reach // 2
    m = c if keep else int(g.pick(4, 8, 12, 16, 17, 24, 32))
    groups = g.pick(1, 1, c)
    if groups == c and not keep:
        m = c * g.pick(1, 2)
    inputs = [x, g.weights(m, c // groups, k, k)] + ([g.weights(m, scale=0.3)] if g.chance(0.6) else [])
    out = [(d + 2 * pad - reach) // stride + 1 for d in (h, w)]
    return g.node("Conv", inputs, (n, m, *out), kernel_shape=[k, k], strides=[stride] * 2, dilations=[dilation] * 2, pads=[pad] * 4, group=groups)


def conv_block(g, x):
    y = convolution(g, x)
    for _ in range(int(g.random.integers(3))):
        y = batch_norm(g, y) if g.chance(0.6) else channelwise(g, y, g.pick("Mul", "Add"))
    return activation(g, y)


def residual_block(g, x):
    y = activation(g, batch_norm(g, convolution(g, x, keep=True)))
    y = convolution(g, y, keep=True)
    if g.chance(0.5):
        y = batch_norm(g, y)
    side = x
    if g.chance(0.3):  # a sum that broadcasts
        side = g.node("GlobalAveragePool", [x], g.shapes[x][:2] + (1, 1))
    y = g.binary("Add", y, side, g.shapes[x])
    if g.chance(0.2):
        g.outputs.append(y)  # a value that is asked for must stay
    return activation(g, y)


def transposed_block(g, x):
    n, c, h, w = g.shapes[x]
    if max(h, w) > 20:
        return conv_block(g, x)
    groups = g.pick(1, 2 if c % 2 == 0 else 1)
    per = g.pick(3, 4)
    y = g.node("ConvTranspose", [x, g.weights(c, per, 2, 2, scale=(4 * c) ** -0.5)], (n, per * groups, 2 * h, 2 * w), strides=[2, 2], kernel_shape=[2, 2], group=groups)
    return activation(g, batch_norm(g, y) if g.chance(0.7) else channelwise(g, y, "Mul"))


def pool_block(g, x):
    n, c, h, w = g.shapes[x]
    if min(h, w) < 3:
        return x
    op = g.pick("MaxPool", "AveragePool")
    return g.node(op, [x], (n, c, (h - 1) // 2 + 1, (w - 1) // 2 + 1), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])


def squeeze_excite(g, x):
    n, c, h, w = g.shapes[x]
    s = g.node("GlobalAveragePool", [x], (n, c, 1, 1))
    s = g.node("Relu", [g.node("Conv", [s, g.weights(max(1, c // 2), c, 1, 1)], (n, max(1, c // 2), 1, 1))], (n, max(1, c // 2), 1, 1))
    s = g.node(g.pick("Sigmoid", "HardSigmoid"), [g.node("Conv", [s, g.weights(c, max(1, c // 2), 1, 1)], (n, c, 1, 1))], (n, c, 1, 1))
    return g.binary("Mul", x, s, g.shapes[x])


def flatten_by_shape(g, x):
    """x[N,C,H,W] -> [N,HW,C] by Shape, Slice or Gather, Concat, Reshape, Transpose."""
    n, c, h, w = g.shapes[x]
    shape = g.node("Shape", [x], (4,))
    ints = lambda *v: g.constant(np.array(v, np.int64))  # noqa: E731
    if g.chance(0.5):
        first = g.node("Slice", [shape, ints(0), ints(2), ints(0)], (2,))
    else:
        first = g.node("Gather", [shape, ints(0, 1)], (2,), axis=0)
    if g.chance(0.5):
        rest = ints(-1)
    else:
        a, b = (g.node("Gather", [shape, g.constant(np.array(i, np.int64))], (), axis=0) for i in (2, -1))
        product = g.node("Mul", [a, b], ())
        rest = g.node("Unsqueeze", [product, ints(0)], (1,)) if g.opset >= 13 else g.node("Unsqueeze", [product], (1,), axes=[0])
    y = g.node("Reshape", [x, g.node("Concat", [first, rest], (3,), axis=0)], (n, c, h * w))
    return g.node("Transpose", [y], (n, h * w, c), perm=[0, 2, 1])


def linear(g, x, width=None, gemm_too=True):
    s = g.shapes[x]
    k, m = s[-1], width or int(g.pick(8, 16, 20, 33))
    if gemm_too and len(s) == 2 and g.chance(0.5):
        transposed = g.chance(0.5)
        inputs = [x, g.weights(m, k) if transposed else g.weights(k, m, scale=k ** -0.5)] + ([g.weights(m, scale=0.3)] if g.chance(0.7) else [])
        y = g.node("Gemm", inputs, (s[0], m), transB=int(transposed), alpha=float(g.pick(1.0, 1.0, 0.5)))
        return channelwise(g, y, "Mul") if g.chance(0.3) else y
    y = g.node("MatMul", [x, g.weights(k, m, scale=k ** -0.5)], s[:-1] + (m,))
    return g.binary("Add", y, g.weights(*g.pick([m], [1, m], [1]), scale=0.3), s[:-1] + (m,)) if g.chance(0.8) else y


def layer_norm(g, x):
    s = g.shapes[x]
    c = s[-1]
    scale, bias = g.constant((g.random.random(c) + 0.5).astype(np.float32)), g.weights(c, scale=0.2)
    if g.opset >= 17 and g.chance(0.5):
        return g.node("LayerNormalization", [x, scale, bias], s, axis=-1, epsilon=EPSILON)
    small = s[:-1] + (1,)
    d = g.node("Sub", [x, g.node("ReduceMean", [x], small, axes=[-1])], s)
    square = g.node("Pow", [d, g.scalar(2.0)], s) if g.chance(0.6) else g.node("Mul", [d, d], s)
    v = g.binary("Add", g.node("ReduceMean", [square], small, axes=[-1]), g.scalar(EPSILON), small)
    y = g.node("Div", [d, g.node("Sqrt", [v], small)], s)
    return g.binary("Add", g.binary("Mul", y, scale, s), bias, s)


def feed_forward(g, x):
    s = g.shapes[x]
    y = linear(g, layer_norm(g, x), g.pick(24, 32))
    y = gelu(g, y) if g.chance(0.6) else activation(g, y)
    return g.binary("Add", linear(g, y, s[-1]), x, s)


def attention(g, x):
    if len(g.shapes[x]) != 3:
        return feed_forward(g, x)
    n, t, c = g.shapes[x]
    heads = g.pick(2, 4)
    d = 8
    shape = g.constant(np.array([0 if g.chance(0.5) else n, -1, heads, d], np.int64))
    split = [g.node("Reshape", [linear(g, x, heads * d), shape], (n, t, heads, d)) for _ in range(3)]
    q, v = (g.node("Transpose", [y], (n, heads, t, d), perm=[0, 2, 1, 3]) for y in (split[0], split[2]))
    k = g.node("Transpose", [split[1]], (n, heads, d, t), perm=[0, 2, 3, 1])
    scores = g.node("MatMul", [q, k], (n, heads, t, t))
    scores = g.node("Div", [scores, g.scalar(d ** 0.5)], g.shapes[scores]) if g.chance(0.5) else g.binary("Mul", scores, g.scalar(d ** -0.5), g.shapes[scores])
    if g.chance(0.4):
        scores = g.binary("Add", scores, g.constant(np.triu(np.full((t, t), -1e9, np.float32), 1)), g.shapes[scores])
    y = g.node("MatMul", [g.node("Softmax", [scores], g.shapes[scores], axis=3), v], (n, heads, t, d))
    y = g.node("Reshape", [g.node("Transpose", [y], (n, t, heads, d), perm=[0, 2, 1, 3]), g.constant(np.array([n, t, -1], np.int64))], (n, t, heads * d))
    return g.binary("Add", linear(g, y, c), x, (n, t, c))


def root_mean_square(g, x):
    """RMSNorm as models write it out."""
    s = g.shapes[x]
    small = s[:-1] + (1,)
    square = g.node("Pow", [x, g.scalar(2.0)], s) if g.chance(0.5) else g.node("Mul", [x, x], s)
    v = g.binary("Add", g.node("ReduceMean", [square], small, axes=[-1]), g.scalar(EPSILON), small)
    root = g.node("Sqrt", [v], small)
    y = g.node("Div", [x, root], s) if g.chance(0.5) else g.binary("Mul", x, g.node("Reciprocal", [root], small), s)
    return g.binary("Mul", y, g.constant((g.random.random(s[-1]) + 0.5).astype(np.float32)), s)


def gated(g, x):
    """silu(x a) * (x b), then back, with a residual."""
    s = g.shapes[x]
    width = g.pick(16, 24)
    normed = root_mean_square(g, x) if g.chance(0.6) else x
    a, b = linear(g, normed, width, False), linear(g, normed, width, False)
    wide = s[:-1] + (width,)
    a = g.binary("Mul", a, g.node("Sigmoid", [a], wide), wide) if g.chance(0.7) else gelu(g, a)
    return g.binary("Add", linear(g, g.binary("Mul", a, b, wide), s[-1], False), x, s)


def turned(g, x, heads, t, d):
    """Rotary embedding written out: x cos + (-second half, first half) sin."""
    s = g.shapes[x]
    angle = np.outer(np.arange(t), 0.5 ** np.arange(d // 2)).astype(np.float32)
    angle = np.concatenate([angle, angle], -1)
    half = g.constant(np.array([d // 2], np.int64))
    last = g.constant(np.array([len(s) - 1 if g.chance(0.5) else -1], np.int64))
    first = g.node("Slice", [x, g.constant(np.array([0], np.int64)), half, last], s[:-1] + (d // 2,))
    second = g.node("Slice", [x, half, g.constant(np.array([2 ** 62], np.int64)), last], s[:-1] + (d // 2,))
    other = g.node("Concat", [g.node("Neg", [second], s[:-1] + (d // 2,)), first], s, axis=-1)
    return g.binary("Add", g.binary("Mul", x, g.constant(np.cos(angle)), s), g.binary("Mul", other, g.constant(np.sin(angle)), s), s)


def grouped_attention(g, x):
    """Attention as decoders have it: rotated, fewer keys than queries' heads, the scale on the queries, a mask by Where or by Add."""
    if len(g.shapes[x]) != 3:
        return gated(g, x)
    n, t, c = g.shapes[x]
    kv, d = g.pick(1, 2), 8
    heads = kv * g.pick(1, 2, 4)
    parts = []
    for h in (heads, kv, kv):
        y = g.node("Reshape", [linear(g, x, h * d, False), g.constant(np.array([n, t, h, d], np.int64))], (n, t, h, d))
        parts.append(g.node("Transpose", [y], (n, h, t, d), perm=[0, 2, 1, 3]))
    q, k, v = parts
    if g.chance(0.6):
        q, k = turned(g, q, heads, t, d), turned(g, k, kv, t, d)
    if heads != kv:  # each key's head again for its group
        for_all = g.constant(np.array([n, kv, heads // kv, t, d], np.int64))
        flat = g.constant(np.array([n, heads, t, d], np.int64))
        five = (n, kv, heads // kv, t, d)
        again = []
        for y in (k, v):
            y = g.node("Reshape", [y, g.constant(np.array([n, kv, 1, t, d], np.int64))], (n, kv, 1, t, d))
            again.append(g.node("Reshape", [g.node("Expand", [y, for_all], five), flat], (n, heads, t, d)))
        k, v = again
    q = g.binary("Mul", q, g.scalar(d ** -0.5), (n, heads, t, d))
    scores = g.node("MatMul", [q, g.node("Transpose", [k], (n, heads, d, t), perm=[0, 1, 3, 2])], (n, heads, t, t))
    seen = np.tril(np.ones((t, t), bool))
    if g.chance(0.4):
        scores = g.node("Where", [g.constant(seen), scores, g.scalar(-3e38)], (n, heads, t, t))
    elif g.chance(0.5):
        scores = g.binary("Add", scores, g.constant(np.where(seen, 0, -np.inf).astype(np.float32).reshape(1, 1, t, t)), (n, heads, t, t))
    y = g.node("MatMul", [g.node("Softmax", [scores], (n, heads, t, t), axis=-1), v], (n, heads, t, d))
    y = g.node("Reshape", [g.node("Transpose", [y], (n, t, heads, d), perm=[0, 2, 1, 3]), g.constant(np.array([0, 0, -1], np.int64))], (n, t, heads * d))
    return g.binary("Add", linear(g, y, c, False), x, (n, t, c))


def ladder(g, x):
    """Down, up again and joined with what was there: a rung of a U-Net, or of a pyramid where it is added."""
    n, c, h, w = g.shapes[x]
    if h % 2 or w % 2:
        return conv_block(g, x)
    y = g.node("MaxPool", [x], (n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])
    y = activation(g, convolution(g, y, keep=True))
    m = g.shapes[y][1]
    y = g.node("Resize", [y, g.constant(np.zeros(0, np.float32)), g.constant(np.array([1, 1, 2, 2], np.float32))], (n, m, h, w), mode=g.pick("nearest", "linear"))
    if g.chance(0.5):
        return activation(g, g.binary("Add", y, x, g.shapes[x]))
    y = g.node("Concat", [y, x] if g.chance(0.5) else [x, y], (n, m + c, h, w), axis=1)
    return conv_block(g, y)


def normed_image(g, x):
    s = g.shapes[x]
    y = convolution(g, x, keep=True)
    c = s[1]
    scale, bias = g.constant((g.random.random(c) + 0.5).astype(np.float32)), g.weights(c, scale=0.2)
    return activation(g, g.node("InstanceNormalization", [y, scale, bias], s))


def branches(g, x):
    """Inception: several convolutions of one image, joined along channels; then perhaps parted again."""
    n, c, h, w = g.shapes[x]
    parts = [activation(g, convolution(g, x, keep=True)) for _ in range(2)] + [g.node("AveragePool", [x], (n, c, h, w), kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    y = g.node("Concat", parts, (n, 3 * c, h, w), axis=1)
    if g.chance(0.5):
        y = g.node("Slice", [y, g.constant(np.array([c // 2], np.int64)), g.constant(np.array([c // 2 + c], np.int64)), g.constant(np.array([1], np.int64))], (n, c, h, w))
    return conv_block(g, y)


def same_twice(g, x):
    """Two equal nodes, an Identity, a Dropout, a node that nobody reads."""
    s = g.shapes[x]
    kind = g.pick("Tanh", "Sigmoid", "Abs")
    a, b = g.node(kind, [g.node("Identity", [x], s)], s), g.node(kind, [x], s)
    g.node("Exp", [a], s)
    y = g.node("Sub", [g.node("Mul", [a, g.scalar(3.0)], s), b], s)
    return g.node("Dropout", [y], s) if g.chance(0.5) else y


def pieces(g, x):
    """Split along the last dimension and joined in another order."""
    s = g.shapes[x]
    at = int(g.random.integers(1, s[-1])) if s[-1] > 1 else 0
    if not at:
        return x
    ends = g.constant(np.array([at], np.int64))
    a = g.node("Slice", [x, g.constant(np.array([0], np.int64)), ends, g.constant(np.array([-1], np.int64))], s[:-1] + (at,))
    b = g.node("Slice", [x, ends, g.constant(np.array([2 ** 40], np.int64)), g.constant(np.array([len(s) - 1], np.int64))], s[:-1] + (s[-1] - at,))
    return g.node("Concat", [activation(g, b), a], s, axis=-1)


def constant_if(g, x):
    """An If whose condition is known while loading, or comes from a shape."""
    s = g.shapes[x]
    if g.chance(0.5):
        condition = g.constant(np.array(g.chance(0.5)))
    else:
        size = g.node("Gather", [g.node("Shape", [x], (len(s),)), g.constant(np.array(0, np.int64))], (), axis=0)
        condition = g.node("Equal", [size, g.constant(np.array(s[0], np.int64))], ())

    def branch(op):
        name = g.name(op.lower())
        return helper.make_graph([helper.make_node(op, [x], [name])], g.name("branch"), [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, s)])
    return g.node("If", [condition], s, then_branch=branch("Neg"), else_branch=branch("Softsign"))


def padded(g, x):
    """Pad by constants, then a convolution without padding."""
    n, c, h, w = g.shapes[x]
    mode = g.pick("constant", "reflect", "edge")
    top, left, bottom, right = (int(v) for v in g.random.integers(0, 3, 4))
    pads = g.constant(np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    y = g.node("Pad", [x, pads], (n, c, h + top + bottom, w + left + right), mode=mode) if min(h, w) > 3 else x
    n, c, h, w = g.shapes[y]
    m = int(g.pick(4, 6, 16))
    if min(h, w) < 3:
        return y
    return activation(g, g.node("Conv", [y, g.weights(m, c, 3, 3)], (n, m, h - 2, w - 2), kernel_shape=[3, 3]))


def resized(g, x):
    n, c, h, w = g.shapes[x]
    if max(h, w) > 20:
        return x
    mode, how = g.pick(("nearest", "asymmetric"), ("linear", "half_pixel"), ("linear", "align_corners"), ("cubic", "half_pixel"))
    size = (n, c, h * 2, w + 3)
    inputs = [x, "", "", g.constant(np.array(size, np.int64))]
    more = {"nearest_mode": "floor"} if mode == "nearest" else {}
    if g.opset < 13:
        inputs[1] = inputs[2] = g.constant(np.zeros(0, np.float32))
    return g.node("Resize", inputs, size, mode=mode, coordinate_transformation_mode=how, **more)


def space_to_depth(g, x):
    n, c, h, w = g.shapes[x]
    if c % 4 == 0 and max(h, w) <= 20:
        return g.node("DepthToSpace", [x], (n, c // 4, 2 * h, 2 * w), blocksize=2, mode=g.pick("DCR", "CRD"))
    return g.node("SpaceToDepth", [x], (n, 4 * c, h // 2, w // 2), blocksize=2) if h % 2 == 0 and w % 2 == 0 else x


def channel_shuffle(g, x):
    n, c, h, w = g.shapes[x]
    if c % 2:
        return x
    y = g.node("Reshape", [x, g.constant(np.array([n, 2, c // 2, h, w], np.int64))], (n, 2, c // 2, h, w))
    y = g.node("Transpose", [y], (n, c // 2, 2, h, w), perm=[0, 2, 1, 3, 4])
    return g.node("Reshape", [y, g.constant(np.array([n, -1, h, w], np.int64))], (n, c, h, w))


def volume(g, x):
    """x as [N,C,1,H,W] through a convolution of rank 3, or as [N,C,HW] through one of rank 1."""
    n, c, h, w = g.shapes[x]
    m = int(g.pick(3, 8))
    if g.chance(0.5):
        y = g.node("Reshape", [x, g.constant(np.array([n, c, 1, h, w], np.int64))], (n, c, 1, h, w))
        y = g.node("Conv", [y, g.weights(m, c, 1, 3, 3), g.weights(m, scale=0.2)], (n, m, 1, h, w), kernel_shape=[1, 3, 3], pads=[0, 1, 1, 0, 1, 1])
        y = activation(g, batch_norm(g, y))
    else:
        y = g.node("Reshape", [x, g.constant(np.array([n, c, -1], np.int64))], (n, c, h * w))
        y = g.node("Conv", [y, g.weights(m, c, 5)], (n, m, h * w), kernel_shape=[5], pads=[4, 4], dilations=[2])
        y = activation(g, channelwise(g, y, "Add"))
    return g.node("Reshape", [y, g.constant(np.array([n, m, h, w], np.int64))], (n, m, h, w))


def chosen(g, x):
    """Where between two values, by a comparison and its way through Cast and Not. They meet where the comparison turns: rounding must
    not show."""
    s = g.shapes[x]
    mask = g.node(g.pick("Greater", "Less"), [x, g.scalar(0.1)], s)
    if g.chance(0.5):
        mask = g.node("Cast", [g.node("Cast", [g.node("Not", [mask], s)], s, to=TensorProto.FLOAT)], s, to=TensorProto.BOOL)
    steeper = g.node("Sub", [g.binary("Mul", x, g.scalar(2.0), s), g.scalar(0.1)], s)
    return g.node("Where", [mask, *g.pick((x, steeper), (steeper, x))], s)


def centred(g, x):
    """Less a mean and divided by a largest magnitude, over one axis."""
    s = g.shapes[x]
    axis = int(g.random.integers(1, len(s)))
    small = s[:axis] + (1,) + s[axis + 1 :]
    y = g.node("Sub", [x, g.node("ReduceMean", [x], small, axes=[axis])], s)
    top = g.node("ReduceMax", [g.node("Abs", [y], s)], small, axes=[axis - len(s)])
    return g.node("Div", [y, g.binary("Add", top, g.scalar(0.1), small)], s)


def recurrent(g, x):
    """A recurrent layer over [T,N,C], the first dimension taken for time."""
    if len(g.shapes[x]) != 3:
        return linear(g, x)
    t, n, c = g.shapes[x]
    op, gates = g.pick(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    d, hidden = g.pick(1, 2), int(g.pick(5, 16))
    inputs = [x, g.weights(d, gates * hidden, c, scale=c ** -0.5), g.weights(d, gates * hidden, hidden, scale=hidden ** -0.5)]
    inputs += [g.weights(d, 2 * gates * hidden, scale=0.2)] if g.chance(0.7) else []
    more = {"linear_before_reset": int(g.pick(0, 1))} if op == "GRU" else {}
    direction = "bidirectional" if d == 2 else g.pick("forward", "reverse")
    y = g.node(op, inputs, (t, d, n, hidden), hidden_size=hidden, direction=direction, **more)
    y = g.node("Transpose", [y], (t, n, d, hidden), perm=[0, 2, 1, 3])
    return g.node("Reshape", [y, g.constant(np.array([0, 0, -1], np.int64))], (t, n, d * hidden))


def looked_up(g, x):
    """Rows of x picked by constant indices and by ArgMax; the number of rows stays."""
    s = g.shapes[x]
    order = g.constant(g.random.permutation(s[0]).astype(np.int64) - (s[0] if g.chance(0.3) else 0))
    y = g.node("Gather", [x, order], s, axis=0)
    table = g.weights(s[-1], s[-1], scale=0.4)
    best = g.node("ArgMax", [x], s[:-1], axis=-1, keepdims=0)
    return g.binary("Add", y, g.node("Gather", [table, best], s, axis=0), s)


IMAGE_BLOCKS = [conv_block, conv_block, conv_block, residual_block, residual_block, transposed_block, pool_block, squeeze_excite, activation, same_twice,
                pieces, constant_if, padded, resized, space_to_depth, channel_shuffle, volume, chosen, centred, ladder, normed_image, branches]
ROW_BLOCKS = [linear, feed_forward, feed_forward, attention, attention, layer_norm, gelu, activation, same_twice, pieces, constant_if, chosen, centred, recurrent,
              looked_up, gated, gated, grouped_attention, grouped_attention, root_mean_square]


def make(seed):
    """(model, input, [(output's name, shape)])"""
    g = Graph(seed)
    n, kind = int(g.random.integers(1, 4)), g.pick("image", "image", "rows", "both")
    if kind == "rows":
        shape = (n, int(g.random.integers(1, 12)), g.pick(8, 16, 24)) if g.chance(0.6) else (n, g.pick(8, 16, 30))
    else:
        shape = (n, g.pick(3, 4, 8), int(g.random.integers(6, 20)), int(g.random.integers(6, 20)))
    g.shapes["x"] = shape
    x = "x"
    if kind != "rows":
        for _ in range(int(g.random.integers(2, 6))):
            x = g.pick(*IMAGE_BLOCKS)(g, x)
    if kind == "both":
        x = flatten_by_shape(g, x)
    if kind != "image":
        for _ in range(int(g.random.integers(2, 6))):
            x = g.pick(*ROW_BLOCKS)(g, x)
    x = g.node("Identity", [x], g.shapes[x]) if x == "x" else x
    names = list(dict.fromkeys(g.outputs + [x]))
    free = g.chance(0.5)
    declared = {o: [f"{o}_{d}" for d in range(len(g.shapes[o]))] if free else g.shapes[o] for o in names}
    graph = helper.make_graph(g.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N",) + shape[1:] if free else shape)],
                              [helper.make_tensor_value_info(o, TensorProto.FLOAT, d) for o, d in declared.items()], g.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model, g.random.standard_normal(shape).astype(np.float32), [(o, g.shapes[o]) for o in names]
