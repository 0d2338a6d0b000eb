"""Writes tests/fuzz/corpus/onnx: small models of our own, one a family of operators. Needs Debian's python3-onnx."""
import os
import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus", "onnx")
F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name, kind=F, shape=("n", 4)):
    return helper.make_tensor_value_info(name, kind, list(shape) if shape is not None else None)


def const(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def node(op, inputs, outputs, **attrs):
    return helper.make_node(op, [part.strip(".") for part in inputs.split()], outputs.split(), **attrs)


def save(name, nodes, inputs, outputs, consts=(), opset=17, functions=(), domain=""):
    graph = helper.make_graph(nodes, name, inputs, outputs, initializer=list(consts))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions))
    model.ir_version = 8
    with open(os.path.join(FOLDER, name + ".onnx"), "wb") as f:
        f.write(model.SerializeToString())


def f32(*shape):
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def main():
    os.makedirs(FOLDER, exist_ok=True)
    out = [value("y", shape=None)]
    x = [value("x")]
    img = [value("x", shape=("n", 3, 8, 8))]
    save("mlp", [node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("Relu", "c", "d"), node("Gemm", "d v b", "e"), node("Softmax", "e", "y")], x, out,
         [const("w", f32(4, 4)), const("b", f32(4)), const("v", f32(4, 4))])
    save("cnn", [node("Conv", "x w b", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("BatchNormalization", "a s s s s", "b2"), node("Relu", "b2", "c"),
                 node("MaxPool", "c", "d", kernel_shape=[2, 2], strides=[2, 2]), node("GlobalAveragePool", "d", "e"), node("Flatten", "e", "y")], img, out,
         [const("w", f32(4, 3, 3, 3)), const("b", f32(4)), const("s", np.abs(f32(4)) + 1)])
    save("conv_depthwise", [node("Conv", "x w", "y", group=3, dilations=[2, 2], strides=[2, 1])], img, out, [const("w", f32(3, 1, 3, 3))])
    save("conv_transpose", [node("ConvTranspose", "x w", "y", strides=[2, 2], output_padding=[1, 1])], img, out, [const("w", f32(3, 2, 3, 3))])
    save("shapes", [node("Shape", "x", "s"), node("Gather", "s i", "g"), node("Unsqueeze", "g z", "u"), node("Concat", "u m", "c", axis=0), node("Reshape", "x c", "r"),
                    node("Transpose", "r", "t", perm=[1, 0]), node("Slice", "t z o z", "q"), node("Pad", "q p", "y")], x, out,
         [const("i", np.int64(0)), const("z", np.array([0])), const("m", np.array([-1])), const("o", np.array([2])), const("p", np.array([1, 0, 0, 2]))])
    save("expand", [node("Shape", "x", "s"), node("ConstantOfShape", "s", "k", value=const("v", np.array([2.0], np.float32))), node("Expand", "k s", "e"), node("Less", "x k", "b"),
                    node("Where", "b e x", "y")], x, out)
    for op in ("LSTM", "GRU", "RNN"):
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
        save(op.lower(), [node(op, "x w r b", "y h", hidden_size=2, direction="bidirectional")], [value("x", shape=(3, "n", 4))], out,
             [const("w", f32(2, gates * 2, 4)), const("r", f32(2, gates * 2, 2)), const("b", f32(2, gates * 4))])
    save("reducesum", [node("ReduceSum", "x a", "y")], x, out, [const("a", np.array([1]))])
    for op in ("ReduceMean", "ReduceMax", "ReduceLogSumExp", "ReduceL2"):
        save(op.lower(), [node(op, "x", "y", axes=[-1], keepdims=0)], x, out)
    save("topk", [node("TopK", "x k", "v y", axis=1)], x, [value("y", I, None)], [const("k", np.array([2]))])
    save("unique", [node("Unique", "x", "y i", axis=0), node("NonZero", "x", "z"), node("Compress", "x c", "w", axis=1)], x, out + [value("z", I, None), value("w", F, None)],
         [const("c", np.array([True, False, True]))])
    save("scatter", [node("ScatterND", "x i u", "a"), node("ScatterElements", "a j v", "b", axis=1), node("GatherND", "b i", "c"), node("GatherElements", "b j", "y", axis=1)],
         [value("x", shape=(3, 4))], out, [const("i", np.array([[0], [2]])), const("u", f32(2, 4)), const("j", np.array([[0, 3]])), const("v", f32(1, 2))])
    save("norm", [node("LayerNormalization", "x s s", "a"), node("LpNormalization", "a", "b"), node("Erf", "b", "c"), node("Clip", "c l h", "y")], x, out,
         [const("s", f32(4)), const("l", np.float32(-1)), const("h", np.float32(1))])
    save("resize", [node("Resize", "x . s", "y", mode="linear")], img, out, [const("s", np.array([1, 1, 1.5, 2], np.float32))])
    save("pooling", [node("AveragePool", "x", "a", kernel_shape=[3, 3], auto_pad="SAME_UPPER", ceil_mode=0), node("LpPool", "a", "b", kernel_shape=[2, 2]), node("LRN", "b", "c", size=3),
                     node("Concat", "c c c c", "d", axis=1), node("DepthToSpace", "d", "y", blocksize=2)], img, out)
    save("quantize", [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y"), node("DynamicQuantizeLinear", "x", "a b c")], x, out + [value("a", TensorProto.UINT8, None)],
         [const("s", np.float32(0.1)), const("z", np.uint8(128))])
    save("einsum", [node("Einsum", "x x", "y", equation="bi,bj->bij"), node("CumSum", "x a", "z")], x, out + [value("z", F, None)], [const("a", np.int64(1))])
    save("strings", [node("StringNormalizer", "x", "y", case_change_action="UPPER", stopwords=["A"])], [value("x", TensorProto.STRING, ("n",))], [value("y", TensorProto.STRING, None)])
    then = helper.make_graph([node("Add", "x x", "t")], "then", [], [value("t", F, None)])
    other = helper.make_graph([node("Mul", "x x", "e")], "else", [], [value("e", F, None)])
    save("if", [node("If", "c", "y", then_branch=then, else_branch=other)], x + [value("c", B, ())], out)
    body = helper.make_graph([node("Add", "s x", "s2"), node("Identity", "go", "go2"), node("Identity", "s2", "o")], "body", [value("i", I, ()), value("go", B, ()), value("s", F, None)],
                             [value("go2", B, ()), value("s2", F, None), value("o", F, None)])
    save("loop", [node("Loop", "n g x", "y z", body=body)], x, out + [value("z", F, None)], [const("n", np.int64(3)), const("g", np.array(True))])
    scan = helper.make_graph([node("Add", "a b", "c"), node("Identity", "c", "d")], "body", [value("a", F, None), value("b", F, None)], [value("c", F, None), value("d", F, None)])
    save("scan", [node("ReduceSum", "x z", "s", keepdims=0), node("Scan", "s x", "y q", body=scan, num_scan_inputs=1)], x, out + [value("q", F, None)], [const("z", np.array([0]))])
    save("sequence", [node("SplitToSequence", "x", "s", axis=1, keepdims=0), node("SequenceAt", "s i", "a"), node("SequenceInsert", "s a", "t"), node("ConcatFromSequence", "t", "y", axis=0, new_axis=1),
                      node("SequenceLength", "t", "l")], x, out + [value("l", I, None)], [const("i", np.int64(1))])
    save("random", [node("RandomNormalLike", "x", "a", seed=1.0), node("Dropout", "a r t", "b m"), node("Bernoulli", "x", "c"), node("Add", "b c", "y")], x, out,
         [const("r", np.float32(0.5)), const("t", np.array(True))])
    save("detection", [node("NonMaxSuppression", "b s k t", "y")], [value("b", F, (1, "n", 4)), value("s", F, (1, 1, "n"))], [value("y", I, None)], [const("k", np.int64(2)), const("t", np.float32(0.5))])
    save("grid", [node("GridSample", "x g", "y"), node("RoiAlign", "x r i", "z", output_height=2, output_width=2)], [value("x", F, (1, 1, 4, 4)), value("g", F, (1, 2, 2, 2))], out + [value("z", F, None)],
         [const("r", np.array([[0, 0, 2, 2]], np.float32)), const("i", np.array([0]))])
    save("signal", [node("DFT", "x", "y", axis=1), node("HannWindow", "n", "w")], [value("x", F, (1, 8, 1))], out + [value("w", F, None)], [const("n", np.int64(4))])
    save("integer", [node("MatMulInteger", "a b", "y"), node("BitShift", "a a", "z", direction="LEFT"), node("Mod", "b b", "w")], [value("a", TensorProto.UINT8, (2, 2)), value("b", TensorProto.UINT8, (2, 2))],
         [value("y", TensorProto.INT32, None), value("z", TensorProto.UINT8, None), value("w", TensorProto.UINT8, None)])
    fn = helper.make_function("own", "twice", ["p"], ["q"], [node("Add", "p p", "h"), node("Mul", "h h", "q")], [helper.make_opsetid("", 17)])
    save("function", [helper.make_node("twice", ["x"], ["m"], domain="own"), helper.make_node("twice", ["m"], ["y"], domain="own")], x, out, functions=[fn])
    save("old_opset", [node("Squeeze", "x", "a", axes=[0]), node("Clip", "a", "b", min=0.0, max=1.0), node("Upsample", "i", "c", scales=[1.0, 1.0, 2.0, 2.0])],
         [value("x", F, (1, 4)), value("i", F, (1, 1, 2, 2))], [value("b", F, None), value("c", F, None)], opset=7)
    save("loss", [node("SoftmaxCrossEntropyLoss", "x l", "y z"), node("OneHot", "l d v", "o"), node("EyeLike", "x", "e"), node("Trilu", "x", "t")], x + [value("l", I, ("n",))], out + [value("o", F, None), value("t", F, None)],
         [const("d", np.int64(4)), const("v", np.array([0, 1], np.float32))])
    with open(os.path.join(FOLDER, "empty.onnx"), "wb"):
        pass
    print(f"{len(os.listdir(FOLDER))} files in {FOLDER}")


if __name__ == "__main__":
    sys.exit(main())
