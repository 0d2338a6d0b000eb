"""Small ONNX models, written byte by byte, so that tests need no onnx package.

    tiny_onnx.write("double.onnx", tiny_onnx.double())

A model is a graph of nodes (op, inputs, outputs, attributes), initializers (numpy arrays) and typed inputs and outputs
(name, type, shape; a string in a shape is a symbolic dimension).
"""
import os
import struct

import numpy as np

TYPES = {np.dtype("float32"): 1, np.dtype("int32"): 6, np.dtype("int64"): 7, np.dtype("bool"): 9}
FLOAT, INT64, BOOL = 1, 7, 9


def varint(n):
    out = b""
    n &= (1 << 64) - 1
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, array):
    array = np.ascontiguousarray(array)
    out = b"".join(field(1, d) for d in array.shape)
    return out + field(2, TYPES[array.dtype]) + field(8, name) + field(9, array.tobytes())


def attribute(name, value):
    out = field(1, name)
    if isinstance(value, bytes):  # a graph
        return out + field(6, value) + field(20, 5)
    if isinstance(value, float):
        return out + field(2, value) + field(20, 1)
    if isinstance(value, int):
        return out + field(3, value) + field(20, 2)
    return out + b"".join(field(8, v) for v in value) + field(20, 7)


def node(op, inputs, outputs, **attributes):
    out = b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs) + field(4, op)
    return out + b"".join(field(5, attribute(k, v)) for k, v in attributes.items())


def value_info(name, elem, shape):
    dims = b"".join(field(1, field(2, d) if isinstance(d, str) else field(1, d)) for d in shape)
    return field(1, name) + field(2, field(1, field(1, elem) + field(2, dims)))


def graph(nodes, inputs, outputs, initializers=None, name="g"):
    out = b"".join(field(1, n) for n in nodes) + field(2, name)
    out += b"".join(field(5, tensor(k, v)) for k, v in (initializers or {}).items())
    out += b"".join(field(11, value_info(*i)) for i in inputs)
    return out + b"".join(field(12, value_info(*o)) for o in outputs)


def model(g, opset=13):
    return field(1, 8) + field(2, "quern tests") + field(7, g) + field(8, field(1, "") + field(2, opset))


def write(path, data):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".tmp", "wb") as f:
        f.write(data)
    os.rename(path + ".tmp", path)


# --- the models of the tests -------------------------------------------------------------------


def affine(scale=2.0, shift=0.0, width=4):
    """y[N,width] = scale · x + shift"""
    return model(graph([node("Mul", ["x", "s"], ["m"]), node("Add", ["m", "t"], ["y"])], [("x", FLOAT, ["N", width])], [("y", FLOAT, ["N", width])],
                       {"s": np.float32(scale).reshape(1), "t": np.float32(shift).reshape(1)}))


def linear(weights, bias):
    """scores[N,classes] = softmax(x · weights + bias)"""
    return model(graph([node("Gemm", ["x", "w", "b"], ["z"]), node("Softmax", ["z"], ["scores"], axis=1)],
                       [("x", FLOAT, ["N", weights.shape[0]])], [("scores", FLOAT, ["N", weights.shape[1]])],
                       {"w": weights.astype(np.float32), "b": bias.astype(np.float32)}))


def one_row():
    """y[1,3] = x + 1: the batch is fixed at 1"""
    return model(graph([node("Add", ["x", "one"], ["y"])], [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])], {"one": np.ones(1, np.float32)}))


def two_inputs():
    """sum[N,2] = a + b; count[N,2] = c as f32"""
    return model(graph([node("Add", ["a", "b"], ["sum"]), node("Cast", ["c"], ["count"], to=1)],
                       [("a", FLOAT, ["N", 2]), ("b", FLOAT, ["N", 2]), ("c", INT64, ["N", 2])], [("sum", FLOAT, ["N", 2]), ("count", FLOAT, ["N", 2])]))


def any_length():
    """y[N] = sum of x[N,L]"""
    return model(graph([node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)], [("x", FLOAT, ["N", "L"])], [("y", FLOAT, ["N"])],
                       {"axes": np.array([1], np.int64)}))


def slow(turns):
    """y[N,4] = x after `turns` additions of 0: a loop of many small nodes"""
    body = graph([node("Identity", ["c_in"], ["c_out"]), node("Add", ["v_in", "zero"], ["v_out"])],
                 [("i", INT64, []), ("c_in", BOOL, []), ("v_in", FLOAT, ["N", 4])], [("c_out", BOOL, []), ("v_out", FLOAT, ["N", 4])],
                 {"zero": np.zeros(1, np.float32)}, "body")
    return model(graph([node("Loop", ["turns", "go", "x"], ["y"], body=body)], [("x", FLOAT, ["N", 4])], [("y", FLOAT, ["N", 4])],
                       {"turns": np.array(turns, np.int64), "go": np.array(True)}))


def stall():
    """y = the largest element of e·e, e = x[1,1] repeated x times x times: with 7000 one node of 686 GFLOP, in which no counter
    grows and no cancellation is seen; with 1 nothing"""
    nodes = [node("Cast", ["x"], ["n"], to=7), node("Reshape", ["n", "one"], ["r"]), node("Concat", ["r", "r"], ["s"], axis=0), node("Expand", ["x", "s"], ["e"]),
             node("MatMul", ["e", "e"], ["m"]), node("ReduceMax", ["m"], ["y"], axes=[0, 1], keepdims=1)]
    return model(graph(nodes, [("x", FLOAT, [1, 1])], [("y", FLOAT, [1, 1])], {"one": np.array([1], np.int64)}))
