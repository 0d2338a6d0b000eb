"""Types of a byte and less: 8-bit floats, float4, integers of 4 and 2 bits, against tables made here by searching for the nearest code (TAP).

What is expected of the conversions stands in ONNX's pages on float8, float4 and int4: rounding to the nearest, halves to even, what lies
beyond the range becomes the largest value, or with saturate=0 infinity or NaN."""
import sys

try:
    import numpy as np
    import cases
    from cases import BF16, BITS, E2M1, E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, E8M0, I2, I4, NAMES, U2, U4, Coded, node
except ImportError:
    np = None

if np is None:
    print("ok 1 - narrow types # SKIP python3-onnx is not installed")
    sys.exit(0)

#           mantissa, bias, largest, infinity, NaN, sign
FORMATS = {E4M3FN: (3, 7, 0x7E, None, 0x7F, 0x80), E4M3FNUZ: (3, 8, 0x7F, None, 0x80, 0x80), E5M2: (2, 15, 0x7B, 0x7C, 0x7F, 0x80),
           E5M2FNUZ: (2, 16, 0x7F, None, 0x80, 0x80), E2M1: (1, 1, 0x07, None, None, 0x08)}
F8 = (E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ)


def decode(dtype, code):
    if dtype in (I4, I2):
        half = 1 << (BITS[dtype] - 1)
        return float((code ^ half) - half)
    if dtype in (U4, U2):
        return float(code)
    if dtype == E8M0:
        return np.nan if code == 255 else 2.0 ** (code - 127)
    mantissa, bias, largest, infinity, nan, sign = FORMATS[dtype]
    magnitude = code & (sign - 1)
    if code == nan or (nan != sign and nan is not None and magnitude > (infinity or largest)):
        return np.nan
    if infinity and magnitude == infinity:
        return -np.inf if code & sign else np.inf
    exponent, bits = magnitude >> mantissa, magnitude & ((1 << mantissa) - 1)
    value = (bits + (1 << mantissa)) * 2.0 ** (exponent - bias - mantissa) if exponent else bits * 2.0 ** (1 - bias - mantissa)
    return -value if code & sign else value


def encode(dtype, x, saturate=True):
    """By search over the codes of the right sign; a half goes to the even code."""
    mantissa, bias, largest, infinity, nan, sign = FORMATS[dtype]
    x = float(x)
    if np.isnan(x):
        return nan if nan is not None else largest
    negative = sign if np.signbit(x) else 0
    step = decode(dtype, largest) - decode(dtype, largest - 1)
    if abs(x) >= decode(dtype, largest) + step / 2 and not (abs(x) == decode(dtype, largest) + step / 2 and largest % 2 == 0):
        if saturate or nan is None:
            return largest | negative
        return nan if nan == sign else (infinity or nan) | negative
    codes = range(largest + 1)
    best = min(codes, key=lambda c: (abs(decode(dtype, c) - abs(x)), c & 1))
    return best | negative if best or nan != sign else 0


def to_f16(x):
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


def encoded(dtype, values, saturate=True):
    return Coded(dtype, np.array([encode(dtype, v, saturate) for v in np.asarray(values, np.float64).reshape(-1)]).reshape(np.shape(values)))


def decoded(t, to=np.float32):
    with np.errstate(over="ignore"):
        return np.array([decode(t.dtype, int(c)) for c in t.codes.reshape(-1)], np.float64).reshape(t.shape).astype(np.float32).astype(to)


def cut(dtype, values):
    """To integers of few bits as before opset 24: rounded, cut to the range."""
    low, high = {U4: (0, 15), I4: (-8, 7), U2: (0, 3), I2: (-2, 1)}[dtype]
    return Coded(dtype, np.clip(np.rint(values), low, high).astype(np.int64))


def casts(c):
    rnd = np.random.default_rng(5)
    special = np.array([0.47892547, 0.48033667, 0.49968487, 0.81910545, 0.47031248, 0.7229038, 1e6, 1e-7, np.nan, np.inf, -np.inf, -1e-7, -1e6, -0.0, 0],
                       np.float32)
    for to in (*F8, E2M1):
        # every value, every middle between neighbours, and a little on both sides of it
        exact = np.array(sorted({abs(decode(to, k)) for k in range(256 if to != E2M1 else 16)} - {np.inf}))
        exact = exact[np.isfinite(exact)]
        middles = (exact[1:] + exact[:-1]) / 2
        x = np.concatenate([exact, middles, middles * (1 + 1e-6), middles * (1 - 1e-6), [exact[-1] * 1.03, exact[-1] * 1.06, exact[-1] * 1.2]])
        x = np.concatenate([x, -x, special, rnd.standard_normal(64)]).astype(np.float32)
        for name, source in (("FLOAT", x), ("FLOAT16", to_f16(special)), ("DOUBLE", x.astype(np.float64) * (1 + 1e-12))):
            for saturate in (1, 0) if to != E2M1 else (1,):
                word = "" if saturate else "no_saturate_"
                want = encoded(to, source, bool(saturate))
                attrs = {} if saturate else {"saturate": 0}
                c.add(f"cast_{word}{name}_to_{NAMES[to]}", node("Cast", ["x"], ["y"], to=to, **attrs), {"x": source}, {"y": want}, opset=23)
                like = Coded(to, [1])
                c.add(f"castlike_{word}{name}_to_{NAMES[to]}", node("CastLike", ["x", "l"], ["y"], **attrs), {"x": source, "l": like}, {"y": want}, opset=23)
        every = Coded(to, np.arange(16 if to == E2M1 else 256).reshape(4, -1))
        for name, np_type, number in (("FLOAT", np.float32, 1), ("FLOAT16", np.float16, 10), ("DOUBLE", np.float64, 11)):
            c.add(f"cast_{NAMES[to]}_to_{name}", node("Cast", ["x"], ["y"], to=number), {"x": every}, {"y": decoded(every, np_type)}, opset=23)
    wide = np.arange(-9, 16).astype(np.float32).reshape(5, 5)
    for to in (U4, I4, U2, I2):
        top = 1 << BITS[to]
        for name, np_type in (("FLOAT", np.float32), ("FLOAT16", np.float16), ("DOUBLE", np.float64), ("INT8", np.int8), ("INT64", np.int64)):
            x = wide.astype(np_type)
            c.add(f"cast_{name}_to_{NAMES[to]}_opset21", node("Cast", ["x"], ["y"], to=to), {"x": x}, {"y": cut(to, x)}, opset=21)
            c.add(f"cast_{name}_to_{NAMES[to]}_wraps", node("Cast", ["x"], ["y"], to=to), {"x": x}, {"y": Coded(to, x.astype(np.int64) % top)}, opset=25)
        c.add(f"cast_STRING_to_{NAMES[to]}", node("Cast", ["x"], ["y"], to=to), {"x": np.array(["1", "0"], object)}, {"y": Coded(to, [1, 0])}, opset=25)
        every = Coded(to, np.arange(top).reshape(2, -1))
        for name, np_type, number in (("FLOAT", np.float32, 1), ("FLOAT16", np.float16, 10), ("INT8", np.int8, 3), ("UINT8", np.uint8, 2), ("INT32", np.int32, 6)):
            want = decoded(every, np.int32).astype(np_type)
            c.add(f"cast_{NAMES[to]}_to_{name}", node("Cast", ["x"], ["y"], to=number), {"x": every}, {"y": want}, opset=23)
        other = {U4: I4, I4: U4, U2: I2, I2: U2}[to]
        c.add(f"cast_{NAMES[to]}_to_{NAMES[other]}", node("Cast", ["x"], ["y"], to=other), {"x": every}, {"y": Coded(other, every.codes)}, opset=25)
        odd = Coded(to, np.arange(5) % top, raw=False)  # in int32_data, and no whole number of bytes
        c.add(f"cast_{NAMES[to]}_typed_field", node("Cast", ["x"], ["y"], to=1), {"x": odd}, {"y": decoded(odd)}, opset=23)
    x = np.array([0, 0.124, 0.25, 0.5, 1.1, 2, 4, 8, 3, 3.5, 1e-40, 3e38, np.inf, np.nan], np.float32)
    for mode in ("up", "down", "nearest"):
        code = np.frexp(np.maximum(x[:10], 1e-45))[1] - 1 + 127
        fraction = np.where(x[:10] > 0, x[:10] / 2.0 ** (code - 127) - 1, 0)
        code = np.where(x[:10] > 0, code + {"up": fraction > 0, "down": False, "nearest": fraction >= 0.5}[mode], 0)
        c.add(f"cast_e8m0_{mode}", node("Cast", ["x"], ["y"], to=E8M0, round_mode=mode), {"x": x[:10]}, {"y": Coded(E8M0, code)}, opset=24)
    every = Coded(E8M0, np.arange(256))
    c.add("cast_FLOAT8E8M0_to_FLOAT", node("Cast", ["x"], ["y"], to=1), {"x": every}, {"y": decoded(every)}, opset=24)


def quantized(c):
    x = np.array([0.0, 1.0, 2.0, 1e5, 200.0, -3.7, -1e9], np.float32)
    for to in (*F8, E2M1):
        for name, scale in (("", np.float32(2)), ("_float16", np.float16(2))):
            source = to_f16(x) if name else x
            zero = Coded(to, [0])
            want = encoded(to, source.astype(np.float32) / 2)
            c.add(f"quantizelinear_{NAMES[to]}{name}", node("QuantizeLinear", ["x", "s", "z"], ["y"]), {"x": source, "s": scale, "z": zero}, {"y": want}, opset=23)
            for zp in (["z"], []):
                ins = {"x": want, "s": scale, **({"z": zero} if zp else {})}
                c.add(f"dequantizelinear_{NAMES[to]}{name}{'_zero_point' if zp else ''}", node("DequantizeLinear", list(ins), ["y"], axis=0), ins,
                      {"y": (to_f16 if name else np.float32)(decoded(want) * np.float32(2))}, opset=23)
    c.add("quantizelinear_no_saturate", node("QuantizeLinear", ["x", "s"], ["y"], saturate=0, output_dtype=E5M2), {"x": x, "s": np.float32(2)},
          {"y": encoded(E5M2, x / 2, False)}, opset=23)
    x = np.array([[0.0, 2.5, 4.8, 8.6], [-30, -20, 6, 9], [12, 15, 16, 40]], np.float32)
    scale = np.array([2, 3, 4], np.float32)
    for to in (U4, I4, U2, I2):
        low, high = {U4: (0, 15), I4: (-8, 7), U2: (0, 3), I2: (-2, 1)}[to]
        zero = Coded(to, [1, 1, 0])
        z = np.array([1, 1, 0])[:, None]
        want = Coded(to, np.clip(np.rint(x / scale[:, None]) + z, low, high).astype(np.int64))
        c.add(f"quantizelinear_{NAMES[to]}", node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=0), {"x": x, "s": scale, "z": zero}, {"y": want}, opset=21)
        back = (want.codes - z).astype(np.float32) * scale[:, None]
        c.add(f"dequantizelinear_{NAMES[to]}", node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=0), {"x": want, "s": scale, "z": zero}, {"y": back}, opset=21)
    x = np.array([[3, 89, 34, 200], [5, 24, 24, 87], [245, 99, 4, 142]], np.float32) - 60
    scale, zero = np.array([[3, 2], [4, 1], [2, 2]], np.float32), np.array([[1, 0], [0, 1], [2, 20]], np.uint8)
    s, z = np.repeat(scale, 2, 1), np.repeat(zero, 2, 1)
    q = np.clip(np.rint(x / s) + z, 0, 255).astype(np.uint8)
    ins = {"x": x, "s": scale, "z": zero}
    c.add("quantizelinear_blocked", node("QuantizeLinear", list(ins), ["y"], axis=1, block_size=2), ins, {"y": q}, opset=21)
    ins = {"x": q, "s": scale, "z": zero}
    c.add("dequantizelinear_blocked", node("DequantizeLinear", list(ins), ["y"], axis=1, block_size=2), ins, {"y": (q.astype(np.float32) - z) * s}, opset=21)
    ins = {"x": Coded(I4, np.arange(24).reshape(4, 6) % 16 - 8), "s": np.linspace(0.5, 2, 8, dtype=np.float32).reshape(4, 2)}
    c.add("dequantizelinear_blocked_int4", node("DequantizeLinear", list(ins), ["y"], axis=1, block_size=3), ins,
          {"y": ins["x"].codes.astype(np.float32) * np.repeat(ins["s"], 3, 1)}, opset=21)
    c.add("dequantizelinear_blocked_int4_constant", node("DequantizeLinear", list(ins), ["y"], axis=1, block_size=3), ins,
          {"y": ins["x"].codes.astype(np.float32) * np.repeat(ins["s"], 3, 1)}, opset=21, constant=("x", "s"))
    ins = {"x": Coded(E2M1, np.arange(16).reshape(2, 8)), "s": Coded(E8M0, np.array([[126, 130], [127, 120]]))}
    want = decoded(ins["x"]) * np.repeat(decoded(ins["s"]), 4, 1)
    c.add("dequantizelinear_mxfp4", node("DequantizeLinear", list(ins), ["y"], axis=1, block_size=4, output_dtype=1), ins, {"y": want}, opset=25)
    for name, np_type in (("int16", np.int16), ("uint16", np.uint16)):
        x, zero = np.array([0, -128, 3, -3, 2.9, -2.9, 3.1, -3.1, 65536, -65534, 70000, -70000], np.float32), np_type(256)
        info = np.iinfo(np_type)
        q = np.clip(np.rint(x / np.float32(2)) + 256, info.min, info.max).astype(np_type)
        ins = {"x": x, "s": np.float32(2), "z": zero}
        c.add(f"quantizelinear_{name}", node("QuantizeLinear", list(ins), ["y"]), ins, {"y": q}, opset=21)
        ins = {"x": q, "s": np.float32(2), "z": zero}
        c.add(f"dequantizelinear_{name}", node("DequantizeLinear", list(ins), ["y"]), ins, {"y": (q.astype(np.float32) - 256) * 2}, opset=21)


def moved(c):
    """What moves elements takes every type: the codes go through numpy."""
    moves = [("Identity", {}, [], lambda a: a), ("Transpose", {"perm": [1, 0]}, [], lambda a: a.T), ("Flatten", {"axis": 0}, [], lambda a: a.reshape(1, -1)),
             ("Reshape", {}, [np.array([3, 2], np.int64)], lambda a: a.reshape(3, 2)), ("Unsqueeze", {}, [np.array([0], np.int64)], lambda a: a[None]),
             ("Slice", {}, [np.array([1], np.int64), np.array([3], np.int64), np.array([1], np.int64)], lambda a: a[:, 1:3]),
             ("Gather", {"axis": 1}, [np.array([2, 0], np.int64)], lambda a: a[:, [2, 0]]), ("Tile", {}, [np.array([1, 2], np.int64)], lambda a: np.tile(a, (1, 2))),
             ("Expand", {}, [np.array([2, 2, 3], np.int64)], lambda a: np.broadcast_to(a, (2, 2, 3)))]
    for dtype in NAMES:
        codes = np.array([[1, 0, 2], [3, 1, 2]]) if BITS.get(dtype, 8) == 2 else np.array([[1, 7, 3], [9, 5, 12]]) * (0x1111 if dtype == BF16 else 1)
        for op, attrs, rest, fn in moves:
            ins = {"x": Coded(dtype, codes), **{f"i{k}": v for k, v in enumerate(rest)}}
            c.add(f"{op.lower()}_{NAMES[dtype]}", node(op, list(ins), ["y"], **attrs), ins, {"y": Coded(dtype, fn(codes))}, opset=25)
        c.add(f"constant_{NAMES[dtype]}", node("Constant", [], ["y"], value=Coded(dtype, codes)), {}, {"y": Coded(dtype, codes)}, opset=25)
        c.add(f"constantofshape_{NAMES[dtype]}", node("ConstantOfShape", ["x"], ["y"], value=Coded(dtype, codes[0, :1])), {"x": np.array([2, 3], np.int64)},
              {"y": Coded(dtype, np.full((2, 3), codes[0, 0]))}, opset=25)
        c.add(f"shape_size_{NAMES[dtype]}", [node("Shape", ["x"], ["y"]), node("Size", ["x"], ["z"])], {"x": Coded(dtype, codes)},
              {"y": np.array([2, 3], np.int64), "z": np.int64(6)}, opset=25)


def fill(c):
    casts(c)
    quantized(c)
    moved(c)


def main():
    c = cases.Cases()
    fill(c)
    return c.run()


if __name__ == "__main__":
    sys.exit(main())
