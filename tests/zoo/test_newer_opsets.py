"""Operators and forms that came after opset 17, each against numpy (TAP): what the suites of ONNX 1.13 and later ask for beyond 1.12's."""
import sys

try:
    import numpy as np
    import cases
    from cases import BF16, I4, Coded, node
    from onnx import TypeProto, helper
except ImportError:
    np = None

if np is None:
    print("ok 1 - newer opsets # SKIP python3-onnx is not installed")
    sys.exit(0)

RND = np.random.default_rng(11)


def f32(*shape):
    return RND.standard_normal(shape).astype(np.float32)


def one(c, name, op, ins, outs, opset, domain="", **attrs):
    """A case of one node; inputs that are None are left out."""
    n = node(op, [k if v is not None else "" for k, v in ins.items()], list(outs), domain=domain, **attrs)
    given = {k: v for k, v in ins.items() if v is not None}
    c.add(name, n, given, outs, opset=opset, opsets=[(domain, 5)] if domain else (), rtol=1e-4, atol=1e-5)


def scattered(c):
    for name, axis, mode, at in (("linear", -2, "linear", [1, 4]), ("circular", 2, "circular", [3, 5]), ("from_zero", -2, None, None), ("axis1", 1, "linear", [0, 2])):
        past = f32(2, 4, 6, 5)
        new = f32(*[2 if d == axis % 4 else n for d, n in enumerate(past.shape)])
        want = past.copy()
        for b in range(2):
            for i in range(2):
                to = ((at[b] if at else 0) + i) % past.shape[axis]
                np.moveaxis(want[b], axis % 4 - 1, 0)[to] = np.moveaxis(new[b], axis % 4 - 1, 0)[i]
        attrs = {k: v for k, v in (("axis", axis), ("mode", mode)) if v is not None}
        one(c, f"tensorscatter_{name}", "TensorScatter", {"p": past, "u": new, "w": np.array(at, np.int64) if at else None}, {"y": want}, 24, **attrs)


def running(c):
    x = f32(3, 4)
    for exclusive in (0, 1):
        for reverse in (0, 1):
            for axis in (0, 1, -1):
                v = np.flip(x, axis) if reverse else x
                want = np.cumprod(v, axis)
                if exclusive:
                    want = np.roll(want, 1, axis)
                    want[tuple(slice(0, 1) if d == axis % 2 else slice(None) for d in range(2))] = 1
                want = np.flip(want, axis) if reverse else want
                one(c, f"cumprod_{exclusive}_{reverse}_{axis}", "CumProd", {"x": x, "a": np.array(axis, np.int32)}, {"y": want.astype(np.float32)}, 26,
                    exclusive=exclusive, reverse=reverse)
    one(c, "cumprod_int", "CumProd", {"x": np.array([2, 3, -4], np.int64), "a": np.int64(0)}, {"y": np.array([2, 6, -24], np.int64)}, 26)


def bits(c):
    x = f32(2, 3)
    one(c, "bitcast_f32_i32", "BitCast", {"x": x}, {"y": x.view(np.int32)}, 26, to=6)
    one(c, "bitcast_i64_f64", "BitCast", {"x": np.array([1, -1 << 60], np.int64)}, {"y": np.array([1, -1 << 60], np.int64).view(np.float64)}, 26, to=11)
    one(c, "bitcast_i4_u4", "BitCast", {"x": Coded(I4, [-8, -1, 7])}, {"y": Coded(21, [8, 15, 7])}, 26, to=21)
    one(c, "bitcast_bf16_u16", "BitCast", {"x": Coded(BF16, [0x3F80, 0xC000])}, {"y": np.array([0x3F80, 0xC000], np.uint16)}, 26, to=4)


def reduced(c):
    x = np.abs(f32(2, 3)) + np.float32(0.5)
    alone = {"ReduceL1": np.abs, "ReduceL2": np.abs, "ReduceSumSquare": np.square, "ReduceLogSum": np.log, "ReduceLogSumExp": lambda v: v, "ReduceSum": lambda v: v,
             "ReduceMean": lambda v: v, "ReduceMax": lambda v: v, "ReduceMin": lambda v: v, "ReduceProd": lambda v: v}
    for op, fn in alone.items():
        y = -x if op in ("ReduceL1", "ReduceL2") else x
        for word, axes in (("no", None), ("empty", np.zeros(0, np.int64))):
            one(c, f"{op.lower()}_{word}_axes_noop", op, {"x": y, "a": axes}, {"y": fn(y)}, 18, noop_with_empty_axes=1)
        one(c, f"{op.lower()}_axes_input", op, {"x": x, "a": np.array([-1], np.int64)}, {"y": {
            "ReduceL1": lambda v: np.abs(v).sum(1), "ReduceL2": lambda v: np.sqrt((v * v).sum(1)), "ReduceSumSquare": lambda v: (v * v).sum(1),
            "ReduceLogSum": lambda v: np.log(v.sum(1)), "ReduceLogSumExp": lambda v: np.log(np.exp(v).sum(1)), "ReduceSum": lambda v: v.sum(1),
            "ReduceMean": lambda v: v.mean(1), "ReduceMax": lambda v: v.max(1), "ReduceMin": lambda v: v.min(1), "ReduceProd": lambda v: v.prod(1)}[op](x)}, 18,
            keepdims=0)
    none = np.zeros((2, 0, 4), np.float32)
    for op, value in (("ReduceSum", 0), ("ReduceProd", 1), ("ReduceMax", -np.inf), ("ReduceMin", np.inf), ("ReduceL1", 0), ("ReduceL2", 0), ("ReduceSumSquare", 0),
                      ("ReduceLogSum", -np.inf), ("ReduceLogSumExp", -np.inf)):
        one(c, f"{op.lower()}_of_nothing", op, {"x": none, "a": np.array([1], np.int64)}, {"y": np.full((2, 1, 4), value, np.float32)}, 20)
    flags = np.array([[True, False], [True, True], [False, False]])
    one(c, "reducemax_bool", "ReduceMax", {"x": flags, "a": np.array([1], np.int64)}, {"y": flags.max(1, keepdims=True)}, 20)
    one(c, "reducemin_bool", "ReduceMin", {"x": flags, "a": np.array([1], np.int64)}, {"y": flags.min(1, keepdims=True)}, 20)


def trees(c):
    x = np.array([[1.5, 4], [3, 0.5], [-2, 7], [np.nan, 2], [6, 6]], np.float32)
    for missing in (None, [1, 0, 0]):
        want = np.zeros((5, 3), np.float32)
        for i, (a, b) in enumerate(x):
            if a <= 2 or (missing and np.isnan(a)):  # node 0; then node 1, the set {4, 7}; else node 2
                want[i, 0 if b in (4, 7) else 1] += 10 if b in (4, 7) else 20
            else:
                want[i, 2 if b > 1 else 0] += 40 if b > 1 else 30
            want[i, 2 if b > 1 else 0] += 40 if b > 1 else 30  # node 2 again, as a tree of its own
        attrs = {"nodes_missing_value_tracks_true": missing} if missing else {}
        members = helper.make_tensor("m", 1, (3,), [4, 7, np.nan])
        one(c, f"tree_ensemble{'_missing' if missing else ''}", "TreeEnsemble", {"x": x}, {"y": want}, 21, domain="ai.onnx.ml", n_targets=3, aggregate_function=1,
            post_transform=0, tree_roots=[0, 2], nodes_modes=helper.make_tensor("n", 2, (3,), [0, 6, 3]), nodes_featureids=[0, 1, 1],
            nodes_splits=helper.make_tensor("s", 1, (3,), [2, 0, 1]), nodes_truenodeids=[1, 0, 3], nodes_trueleafs=[0, 1, 1], nodes_falsenodeids=[2, 1, 2],
            nodes_falseleafs=[0, 1, 1], leaf_targetids=[0, 1, 0, 2], leaf_weights=helper.make_tensor("w", 1, (4,), [10, 20, 30, 40]), membership_values=members, **attrs)
    one(c, "tree_ensemble_f64_min", "TreeEnsemble", {"x": np.array([[1.0], [3.0]])}, {"y": np.array([[5.25], [-1.5]])}, 21, domain="ai.onnx.ml", n_targets=1,
        aggregate_function=2, tree_roots=[0], nodes_modes=helper.make_tensor("n", 2, (1,), [1]), nodes_featureids=[0],
        nodes_splits=helper.make_tensor("s", 11, (1,), [2.0]), nodes_truenodeids=[0], nodes_trueleafs=[1], nodes_falsenodeids=[1], nodes_falseleafs=[1],
        leaf_targetids=[0, 0], leaf_weights=helper.make_tensor("w", 11, (2,), [5.25, -1.5]))


def labels(c):
    words = np.array(["b", "x", "a", "c"], object)
    for number, np_type in ((5, np.int16), (6, np.int32), (7, np.int64), (11, np.float64)):
        one(c, f"label_encoder_tensors_{np_type.__name__}", "LabelEncoder", {"x": words}, {"y": np.array([1, 42, 0, 2], np_type)}, 21, domain="ai.onnx.ml",
            keys_tensor=helper.make_tensor("k", 8, (3,), [b"a", b"b", b"c"]), values_tensor=helper.make_tensor("v", number, (3,), [0, 1, 2]),
            default_tensor=helper.make_tensor("d", number, (1,), [42]))
    one(c, "label_encoder_mixed", "LabelEncoder", {"x": words}, {"y": np.array([1, -7, 0, 2], np.int16)}, 21, domain="ai.onnx.ml", keys_strings=["a", "b", "c"],
        values_tensor=helper.make_tensor("v", 5, (3,), [0, 1, 2]), default_tensor=helper.make_tensor("d", 5, (1,), [-7]))
    one(c, "category_mapper_strings", "CategoryMapper", {"x": words}, {"y": np.array([4, -1, 3, -1], np.int64)}, 21, domain="ai.onnx.ml", cats_strings=["a", "b"],
        cats_int64s=[3, 4])
    one(c, "category_mapper_integers", "CategoryMapper", {"x": np.array([4, 9, 3], np.int64)}, {"y": np.array(["b", "none", "a"], object)}, 21, domain="ai.onnx.ml",
        cats_strings=["a", "b"], cats_int64s=[3, 4], default_string="none")


def maps(c):
    scores = softmax(f32(3, 2))
    of_maps = TypeProto()
    of_maps.sequence_type.elem_type.map_type.key_type = 8
    of_maps.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = 1
    c.add("zipmap_hands_on_the_scores", [node("Identity", ["x"], ["p"]), node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_strings=["a", "b"])],
          {"x": scores}, {"y": scores}, opsets=[("ai.onnx.ml", 3)], declared={"y": of_maps})


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(c):
    q, k, v = f32(2, 4, 3, 8), f32(2, 2, 5, 8), f32(2, 2, 5, 6)
    pk, pv = f32(2, 2, 2, 8), f32(2, 2, 2, 6)
    mask = f32(3, 7)
    kk, vv = np.concatenate([pk, k], 2), np.concatenate([pv, v], 2)
    raw = q @ np.repeat(kk, 2, 1).swapaxes(2, 3) / np.sqrt(np.float32(8))
    for cap in (0.0, 1.5):
        for causal in (0, 1):
            capped = np.tanh(raw / cap) * cap if cap else raw
            hidden = np.where(np.arange(7) <= np.arange(3)[:, None] + 2, 0, -np.inf).astype(np.float32) if causal else np.float32(0)
            masked = capped + mask + hidden
            p = softmax(masked)
            for mode, stage in ((0, raw), (1, capped if cap else masked), (2, masked), (3, p)):
                if mode == 2 and cap:
                    continue
                one(c, f"attention_{cap}_{causal}_{mode}", "Attention", {"q": q, "k": k, "v": v, "m": mask, "pk": pk, "pv": pv},
                    {"y": (p @ np.repeat(vv, 2, 1)).astype(np.float32), "ok": kk, "ov": vv, "qk": stage.astype(np.float32)}, 23, softcap=cap, is_causal=causal,
                    qk_matmul_output_mode=mode)
    lengths = np.array([3, 5], np.int64)
    hidden = np.where(np.arange(5) < lengths[:, None, None, None], 0, -np.inf).astype(np.float32)
    p = softmax(q @ np.repeat(k, 2, 1).swapaxes(2, 3) / np.sqrt(np.float32(8)) + hidden)
    one(c, "attention_nonpad_kv_seqlen", "Attention", {"q": q, "k": k, "v": v, "m": None, "pk": None, "pv": None, "n": lengths},
        {"y": (p @ np.repeat(v, 2, 1)).astype(np.float32)}, 24)
    allowed = RND.random((2, 4, 3, 4)) < 0.7
    allowed[..., 0] = True  # and narrower than the keys: the rest is not seen
    seen = np.concatenate([allowed, np.zeros((2, 4, 3, 1), bool)], -1)
    p = softmax(np.where(seen, q @ np.repeat(k, 2, 1).swapaxes(2, 3) / np.sqrt(np.float32(8)), -np.inf))
    one(c, "attention_short_bool_mask", "Attention", {"q": q, "k": k, "v": v, "m": allowed}, {"y": (p @ np.repeat(v, 2, 1)).astype(np.float32)}, 24)


def rest(c):
    x = f32(7, 2)
    c.add("split_num_outputs", node("Split", ["x"], ["a", "b", "c"], num_outputs=3), {"x": x}, {"a": x[:3], "b": x[3:6], "c": x[6:]}, opset=18)
    x = f32(3, 4)
    one(c, "swish_alpha", "Swish", {"x": x}, {"y": x / (1 + np.exp(-1.5 * x))}, 24, alpha=1.5)
    special = np.array([1, np.inf, -np.inf, np.nan], np.float16)
    one(c, "isinf_f16", "IsInf", {"x": special}, {"y": np.isinf(special)}, 20)
    one(c, "isnan_f16", "IsNaN", {"x": special}, {"y": np.isnan(special)}, 20)
    x = f32(2, 4, 3)
    n = x.reshape(2, 2, -1)
    n = ((n - n.mean(-1, keepdims=True)) / np.sqrt(n.var(-1, keepdims=True) + 1e-5)).reshape(2, 4, 3)
    scale, bias = f32(4), f32(4)
    one(c, "groupnormalization_21", "GroupNormalization", {"x": x, "s": scale, "b": bias}, {"y": n * scale[:, None] + bias[:, None]}, 21, num_groups=2)
    pair, pair_bias = f32(2), f32(2)
    one(c, "groupnormalization_18", "GroupNormalization", {"x": x, "s": pair, "b": pair_bias},
        {"y": n * np.repeat(pair, 2)[:, None] + np.repeat(pair_bias, 2)[:, None]}, 18, num_groups=2)
    rms = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    one(c, "rmsnormalization", "RMSNormalization", {"x": x, "s": f32(3) * 0 + 2}, {"y": rms * 2}, 23)
    signal = f32(2, 9, 1)
    half = np.fft.rfft(signal[..., 0], axis=1)
    half = np.stack([half.real, half.imag], -1).astype(np.float32)
    one(c, "dft_rfft", "DFT", {"x": signal, "l": None, "a": np.int64(1)}, {"y": half}, 20, onesided=1)
    one(c, "dft_irfft", "DFT", {"x": half, "l": np.int64(9), "a": np.int64(1)}, {"y": signal}, 20, onesided=1, inverse=1)
    one(c, "dft_axis_attribute", "DFT", {"x": signal}, {"y": half}, 19, onesided=1, axis=1)
    words = np.array(["www.a.com", "b@c.de", ""], object)
    one(c, "regexfullmatch", "RegexFullMatch", {"x": words}, {"y": np.array([True, False, False])}, 20, pattern=r"www\.[\w.-]+\.\bcom\b")
    one(c, "stringconcat", "StringConcat", {"x": words, "z": np.array(["!"], object)}, {"y": np.array([w + "!" for w in words], object)}, 20)
    one(c, "stringsplit", "StringSplit", {"x": np.array(["a,b,c", "d"], object)},
        {"y": np.array([["a", "b", "c"], ["d", "", ""]], object), "n": np.array([3, 1], np.int64)}, 20, delimiter=",")
    for name, dtype in (("f16", np.float16), ("f64", np.float64), ("i32", np.int32)):
        one(c, f"range_{name}", "Range", {"a": dtype(1), "b": dtype(8), "d": dtype(2)}, {"y": np.arange(1, 8, 2).astype(dtype)}, 27)
    one(c, "range_bf16", "Range", {"a": Coded(BF16, 0x3F80), "b": Coded(BF16, 0x40A0), "d": Coded(BF16, 0x4000)}, {"y": Coded(BF16, [0x3F80, 0x4040])}, 27)
    x = f32(4, 3)
    at, new = np.array([[1], [-1], [1]], np.int64), f32(3, 3)
    for how, fn in (("max", np.maximum), ("min", np.minimum), ("add", np.add), ("mul", np.multiply)):
        want = x.copy()
        for i, row in zip(at[:, 0], new):
            want[i] = fn(want[i], row)
        one(c, f"scatternd_{how}", "ScatterND", {"x": x, "i": at, "u": new}, {"y": want}, 18, reduction=how)
    for mode, np_mode in (("wrap", "wrap"), ("edge", "edge"), ("reflect", "reflect")):
        one(c, f"pad_{mode}_axes", "Pad", {"x": x, "p": np.array([1, 2], np.int64), "v": None, "a": np.array([-1], np.int64)},
            {"y": np.pad(x, ((0, 0), (1, 2)), mode=np_mode)}, 19, mode=mode)


def fill(c):
    for part in (scattered, running, bits, reduced, trees, labels, maps, attention, rest):
        part(c)


def main():
    c = cases.Cases()
    fill(c)
    return c.run()


if __name__ == "__main__":
    sys.exit(main())
