"""Writes ops/OPERATORS.md: the operators, from the engine's own table (`quern model operators`) and from trying their types.

Types are tried, not declared: each case of ONNX's node suite and of this folder that has one node is planned again with another element
type in its first input (and, where that is refused, in all inputs of that type). An operator is said to take the types that one of its cases plans with.
"""
import ctypes as c
import json
import os
import pathlib
import subprocess
import sys

import onnx

import cases
import engine
import test_narrow_types
import test_newer_opsets

DATA = pathlib.Path("/usr/share/libonnx-testdata/data/node")
TARGET = pathlib.Path(__file__).resolve().parent.parent.parent / "ops" / "OPERATORS.md"
CASES_MAX = 12  # an operator
TYPES = {1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 8: "string", 9: "bool", 10: "f16", 11: "f64", 12: "u32", 13: "u64", 14: "c64",
         15: "c128", 16: "bf16", 17: "f8e4m3fn", 18: "f8e4m3fnuz", 19: "f8e5m2", 20: "f8e5m2fnuz", 21: "u4", 22: "i4", 23: "f4e2m1", 24: "f8e8m0", 25: "u2",
         26: "i2"}
GROUPS = (("all", range(1, 27)), ("numbers", (1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 16)), ("floats", (1, 10, 11, 16)), ("integers", (2, 3, 4, 5, 6, 7, 12, 13)),
          ("complex", (14, 15)), ("8-bit floats", (17, 18, 19, 20)), ("4- and 2-bit", (21, 22, 23, 25, 26)))
# Forms of operators that no case shows: domain, operator, opset, inputs as (type, shape), attributes.
FORMS = (
    ("", "AffineGrid", 20, [(1, (2, 2, 3)), (7, (4,))], {}), ("", "Col2Im", 18, [(1, (1, 4, 9)), (7, (2,)), (7, (2,))], {}),
    ("", "CenterCropPad", 18, [(1, (3, 4)), (7, (2,))], {}), ("", "DeformConv", 19, [(1, (1, 2, 4, 4)), (1, (2, 2, 3, 3)), (1, (1, 18, 2, 2))], {}),
    ("", "BitwiseAnd", 18, [(2, (3,)), (2, (3,))], {}), ("", "BitwiseOr", 18, [(2, (3,)), (2, (3,))], {}), ("", "BitwiseXor", 18, [(2, (3,)), (2, (3,))], {}),
    ("", "BitwiseNot", 18, [(2, (3,))], {}), ("", "Mish", 18, [(1, (3,))], {}), ("", "Gelu", 20, [(1, (3,))], {}), ("", "LpPool", 18, [(1, (1, 1, 4, 4))], {"kernel_shape": [2, 2]}),
    ("", "LpNormalization", 1, [(1, (2, 3))], {}), ("", "GlobalLpPool", 2, [(1, (1, 1, 4, 4))], {}), ("", "MaxRoiPool", 1, [(1, (1, 1, 4, 4)), (1, (1, 5))], {"pooled_shape": [2, 2]}),
    ("", "Multinomial", 7, [(1, (1, 3))], {}), ("", "RandomNormalLike", 1, [(1, (3,))], {}), ("", "RandomUniformLike", 1, [(1, (3,))], {}), ("", "Reciprocal", 13, [(1, (3,))], {}),
    ("", "Upsample", 9, [(1, (1, 1, 2, 2)), (1, (4,))], {}), ("", "RotaryEmbedding", 23, [(1, (1, 2, 3, 4)), (1, (1, 3, 2)), (1, (1, 3, 2))], {}),
    ("", "SimplifiedLayerNormalization", 1, [(1, (2, 3)), (1, (3,))], {}), ("", "GlobalMaxPool", 1, [(1, (1, 1, 4, 4))], {}),
    ("ai.onnx.ml", "ArrayFeatureExtractor", 1, [(1, (2, 3)), (7, (1, 1))], {}), ("ai.onnx.ml", "Binarizer", 1, [(1, (3,))], {}),
    ("ai.onnx.ml", "FeatureVectorizer", 1, [(1, (1, 2)), (1, (1, 3))], {"inputdimensions": [2, 3]}), ("ai.onnx.ml", "Imputer", 1, [(1, (1, 2))], {"imputed_value_floats": [0.0]}),
    ("ai.onnx.ml", "Imputer", 1, [(7, (1, 2))], {"imputed_value_int64s": [0]}),
    ("ai.onnx.ml", "LinearClassifier", 1, [(1, (1, 1))], {"coefficients": [1.0, 2.0], "intercepts": [0.0, 0.0], "classlabels_ints": [0, 1]}),
    ("ai.onnx.ml", "LinearRegressor", 1, [(1, (1, 1))], {"coefficients": [1.0]}), ("ai.onnx.ml", "Normalizer", 1, [(1, (1, 2))], {}),
    ("ai.onnx.ml", "OneHotEncoder", 1, [(7, (2,))], {"cats_int64s": [1, 2]}), ("ai.onnx.ml", "OneHotEncoder", 1, [(8, (2,))], {"cats_strings": ["a"]}),
    ("ai.onnx.ml", "Scaler", 1, [(1, (1, 2))], {"offset": [0.0], "scale": [1.0]}),
    ("ai.onnx.ml", "SVMRegressor", 1, [(1, (1, 1))], {"coefficients": [1.0], "rho": [0.0], "support_vectors": [1.0], "n_supports": 1, "kernel_type": "LINEAR"}),
    ("ai.onnx.ml", "SVMClassifier", 1, [(1, (1, 1))], {"coefficients": [1.0, -1.0], "rho": [0.0], "support_vectors": [1.0, 2.0], "vectors_per_class": [1, 1],
                                                      "classlabels_ints": [0, 1], "kernel_type": "LINEAR"}),
    ("ai.onnx.ml", "TreeEnsembleRegressor", 1, [(1, (1, 1))], {"nodes_treeids": [0], "nodes_nodeids": [0], "nodes_featureids": [0], "nodes_values": [0.0],
                                                              "nodes_modes": ["LEAF"], "nodes_truenodeids": [0], "nodes_falsenodeids": [0], "target_treeids": [0],
                                                              "target_nodeids": [0], "target_ids": [0], "target_weights": [1.0], "n_targets": 1}),
    ("ai.onnx.ml", "TreeEnsembleClassifier", 1, [(1, (1, 1))], {"nodes_treeids": [0], "nodes_nodeids": [0], "nodes_featureids": [0], "nodes_values": [0.0],
                                                               "nodes_modes": ["LEAF"], "nodes_truenodeids": [0], "nodes_falsenodeids": [0], "class_treeids": [0],
                                                               "class_nodeids": [0], "class_ids": [0], "class_weights": [1.0], "classlabels_int64s": [0, 1]}),
    ("com.microsoft", "BiasGelu", 1, [(1, (2, 3)), (1, (3,))], {}), ("com.microsoft", "FastGelu", 1, [(1, (2, 3))], {}), ("com.microsoft", "Gelu", 1, [(1, (2, 3))], {}),
    ("com.microsoft", "QuickGelu", 1, [(1, (2, 3))], {}), ("com.microsoft", "FusedMatMul", 1, [(1, (2, 3)), (1, (3, 2))], {}),
    ("com.microsoft", "SkipLayerNormalization", 1, [(1, (1, 2, 3)), (1, (1, 2, 3)), (1, (3,)), (1, (3,))], {}),
    ("com.microsoft", "SkipSimplifiedLayerNormalization", 1, [(1, (1, 2, 3)), (1, (1, 2, 3)), (1, (3,))], {}),
    ("com.microsoft", "QuantizeLinear", 1, [(1, (3,)), (1, ()), (4, ())], {}), ("com.microsoft", "DequantizeLinear", 1, [(4, (3,)), (1, ()), (4, ())], {}),
    ("com.microsoft", "Attention", 1, [(1, (1, 2, 4)), (1, (4, 12)), (1, (12,))], {"num_heads": 2}),
    ("com.microsoft", "MultiHeadAttention", 1, [(1, (1, 2, 4)), (1, (1, 2, 4)), (1, (1, 2, 4))], {"num_heads": 2}),
    ("com.microsoft", "RotaryEmbedding", 1, [(1, (1, 2, 3, 4)), (7, (1, 3)), (1, (8, 2)), (1, (8, 2))], {}),
    ("com.microsoft", "EmbedLayerNormalization", 1, [(6, (1, 2)), (6, (1, 2)), (1, (4, 3)), (1, (4, 3)), (1, (2, 3)), (1, (3,)), (1, (3,))], {}),
)
DOMAINS = (("", "ai.onnx"), ("ai.onnx.ml", "ai.onnx.ml"), ("ai.onnx.preview.training", "ai.onnx.preview.training"), ("com.microsoft", "com.microsoft"),
           ("quern", "quern: what passes and the backward pass make"))


def tensor_input(info):
    return info.type.HasField("tensor_type")


def single_node_cases():
    """{(domain, operator): [model, …]} with the inputs' shapes as declared."""
    folders = [DATA] if DATA.is_dir() else []
    for module in (test_narrow_types, test_newer_opsets):
        found = cases.Cases()
        module.fill(found)
        folders.append(found.folder)
    by_op = {}
    for domain, op, opset, inputs, attrs in FORMS:
        names = [f"x{i}" for i in range(len(inputs))]
        infos = [onnx.helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in zip(names, inputs)]
        graph = onnx.helper.make_graph([onnx.helper.make_node(op, names, ["y"], domain=domain, **attrs)], op, infos, [onnx.helper.make_empty_tensor_value_info("y")])
        imports = [onnx.helper.make_opsetid("", opset if not domain else 21)] + ([onnx.helper.make_opsetid(domain, opset)] if domain else [])
        by_op.setdefault((domain, op), []).append(onnx.helper.make_model(graph, ir_version=10, opset_imports=imports))
    for folder in folders:
        for path in sorted(folder.glob("*/model.onnx")):
            model = onnx.load(path)
            if len(model.graph.node) != 1 or not model.graph.input or not all(tensor_input(i) for i in model.graph.input):
                continue
            node = model.graph.node[0]
            by_op.setdefault((node.domain, node.op_type), []).append(model)
        if folder != DATA:
            cases.remove(folder)
    return by_op


def plans(lib, model, dtypes):
    """Whether the engine plans a run of the model with these element types of its inputs."""
    err = engine.Error()
    m = onnx.ModelProto()
    m.CopyFrom(model)
    for info, dtype in zip(m.graph.input, dtypes):
        info.type.tensor_type.elem_type = dtype
    for info in m.graph.output:
        info.type.Clear()
    data = m.SerializeToString()
    loaded = lib.op_model_load_memory(data, len(data), None, None, c.byref(err))
    if not loaded:
        return False
    session = lib.op_session_create(loaded, c.byref(engine.SessionOptions(1, None, None, None, True)), c.byref(err))
    tensors = (engine.Tensor * len(dtypes))()
    for t, info, dtype in zip(tensors, m.graph.input, dtypes):
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        t.dtype, t.rank = dtype, len(dims)
        t.dims[: len(dims)] = dims
    peak, flops = c.c_size_t(), c.c_double()
    good = bool(session) and lib.op_session_plan(session, tensors, len(dtypes), c.byref(peak), c.byref(flops), c.byref(err)) == 0
    lib.op_session_destroy(session)
    lib.op_model_release(loaded)
    return good


def types_of(lib, models):
    taken = set()
    for model in models[:: max(1, len(models) // CASES_MAX)]:
        dtypes = [i.type.tensor_type.elem_type for i in model.graph.input]
        for dtype in set(TYPES) - taken:
            alone = [dtype] + dtypes[1:]
            together = [dtype if d == dtypes[0] else d for d in dtypes]
            if plans(lib, model, alone) or (together != alone and plans(lib, model, together)):
                taken.add(dtype)
    return taken


def text_of(taken):
    words, left = [], set(taken)
    for word, group in GROUPS:
        if left >= set(group):
            words.append(word)
            left -= set(group)
    return ", ".join(words + [TYPES[t] for t in sorted(left)])


def table():
    quern = os.environ.get("QUERN", "build/release/quern")
    lines = subprocess.run([quern, "model", "operators", "--json"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    lib = engine._library()
    lib.op_model_load_memory.argtypes, lib.op_model_load_memory.restype = [c.c_char_p, c.c_size_t, c.c_char_p, c.c_void_p, c.c_void_p], c.c_void_p
    by_op = single_node_cases()
    merged = {}
    for o in map(json.loads, lines):
        before = merged.setdefault((o["domain"], o["name"]), o)
        for word in ("gradient", "fast", "in_place", "dynamic"):
            before[word] |= o[word]
        before["until"] = o.get("until")
    out = ["# Operators", "", "Made by `make docs` from the engine's own table and from trying types (`tests/zoo/operators.py`); a test compares. Older opsets are brought to",
           "the newest form at load. Types: of the first input, where a case shows one. Gradient: training goes through it. Fast: a form of its own beside the plain one.", ""]
    for domain, title in DOMAINS:
        rows = [o for (d, _), o in merged.items() if d == domain]
        out += [f"## {title}", "", f"{len(rows)} operators.", "", "| operator | opsets | types | |", "| --- | --- | --- | --- |"]
        for o in rows:
            opsets = f"{o['since']} to {o['until']}" if o["until"] else f"{o['since']} on"
            words = [w.replace("_", " ") for w in ("gradient", "fast", "in_place", "dynamic") if o[w]]
            taken = text_of(types_of(lib, by_op.get((domain, o["name"]), []))) if domain != "quern" else ""
            out.append(f"| {o['name']} | {opsets} | {taken} | {', '.join(words)} |")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    TARGET.write_text(table())
    sys.exit(0)
