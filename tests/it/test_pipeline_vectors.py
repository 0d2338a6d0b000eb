"""The image steps against Pillow (bit for bit), OpenCV (within one level) and numpy, on pictures made here and on the
photographs of QUERN_TEST_DATA; and hostile pictures, which must give errors (TAP)."""
import glob
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib

import cv2
import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, os.path.dirname(__file__))
import tap  # noqa: E402

TMP = tempfile.TemporaryDirectory(prefix="quern-vectors-")
FILTERS = {"nearest": Image.NEAREST, "box": Image.BOX, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC,
           "lanczos": Image.LANCZOS}
CV = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC}
rng = np.random.RandomState(7)


def path(name):
    return os.path.join(TMP.name, name)


def run(steps, file, env=None):
    """The array that the steps make of a file."""
    out = path("out.npy")
    p = subprocess.run([tap.QUERN, "pipeline", "apply", json.dumps(steps), "--input", file, "--output", out],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                       env=dict(os.environ, **(env or {})))
    assert p.returncode == 0, p.stdout.decode()
    return np.load(out)


def fails(steps, file, word):
    p = subprocess.run([tap.QUERN, "pipeline", "apply", json.dumps(steps), "--input", file, "--output", path("no.npy")],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    text = p.stdout.decode("utf-8", "replace")
    assert p.returncode == 1 and word in text, (p.returncode, word, text)


def picture(w, h):
    """Gradients, edges and noise: whatever a resize can get wrong."""
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([x * 255 // max(w - 1, 1), y * 255 // max(h - 1, 1), (x // 3 + y // 5) % 2 * 255], -1)
    noise = rng.randint(0, 256, (h, w, 3))
    return np.where((x > w // 2)[..., None], noise, a).astype(np.uint8)


def same(ours, theirs, what):
    theirs = np.asarray(theirs)
    if theirs.ndim == 2:
        theirs = theirs[..., None]
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    different = np.argwhere(ours != theirs)
    assert not len(different), (what, len(different), different[0], ours[tuple(different[0])], theirs[tuple(different[0])])


def save(name, image, **options):
    image.save(path(name), **options)
    return path(name)


def test_resize_equals_pillow():
    sizes = [(224, 224), (31, 97), (113, 40), (1, 1), (200, 150), (400, 300), (199, 301), (640, 3)]
    for w, h in ((200, 150), (63, 211), (1, 9), (17, 1)):
        image = Image.fromarray(picture(w, h))
        file = save("resize.png", image)
        for to in sizes:
            for name, number in FILTERS.items():
                ours = run([{"decode_image": {}}, {"resize": {"w": to[0], "h": to[1], "filter": "pil." + name}}], file)
                same(ours, image.resize(to, number), (w, h, to, name))


def test_resize_equals_pillow_at_every_level():
    image = Image.fromarray(picture(333, 250))
    file = save("level.png", image)
    for cpu in ("generic", "avx2"):
        for name in ("bilinear", "lanczos"):
            for color, mode in (("rgb", "RGB"), ("gray", "L")):
                ours = run([{"decode_image": {"color": color}}, {"resize": {"w": 101, "h": 77, "filter": "pil." + name}}], file,
                           {"QUERN_CPU": cpu})
                same(ours, image.convert(mode).resize((101, 77), FILTERS[name]), (cpu, name, color))


def test_resize_is_near_opencv():
    for w, h in ((200, 150), (96, 64), (5, 300)):
        array = picture(w, h)
        file = save("cv.png", Image.fromarray(array))
        for to in ((100, 75), (48, 32), (224, 224), (37, 120), (400, 31), (w, h), (w * 3, h * 2)):
            for name, number in CV.items():
                ours = run([{"decode_image": {}}, {"resize": {"w": to[0], "h": to[1], "filter": "cv." + name}}], file)
                theirs = cv2.resize(array, to, interpolation=number)
                worst = np.abs(ours.astype(int) - theirs).max()
                assert worst <= 1, (w, h, to, name, worst)


def test_fits():
    for w, h in ((200, 150), (150, 200), (101, 37), (64, 64)):
        image = Image.fromarray(picture(w, h))
        file = save("fit.png", image)
        size = 48
        ours = run([{"decode_image": {}}, {"resize": {"size": size, "fit": "shortest"}}], file)
        to = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
        same(ours, image.resize(to, Image.BILINEAR), ("shortest", w, h))
        ours = run([{"decode_image": {}}, {"resize": {"size": size, "fit": "longest", "round": "half_up"}}], file)
        to = (int(size * w / h + 0.5), size) if w < h else (size, int(size * h / w + 0.5))
        same(ours, image.resize(to, Image.BILINEAR), ("longest", w, h))
        ours = run([{"decode_image": {}}, {"resize": {"w": 64, "h": 40, "fit": "letterbox", "value": [114, 3, 200]}}], file)
        scale = min(64 / w, 40 / h)
        to = (min(64, max(1, int(w * 40 / h) if 64 * h > w * 40 else 64)), min(40, max(1, int(h * 64 / w) if 64 * h <= w * 40 else 40)))
        canvas = Image.new("RGB", (64, 40), (114, 3, 200))
        canvas.paste(image.resize(to, Image.BILINEAR), ((64 - to[0]) // 2, (40 - to[1]) // 2))
        same(ours, canvas, ("letterbox", w, h, scale))
        for name, number in FILTERS.items():
            for anchor, centering in (("center", (0.5, 0.5)), ("top_left", (0, 0)), ("bottom_right", (1, 1))):
                ours = run([{"decode_image": {}}, {"resize": {"w": 64, "h": 40, "fit": "cover", "filter": "pil." + name, "anchor": anchor}}], file)
                same(ours, ImageOps.fit(image, (64, 40), number, centering=centering), ("cover", w, h, name, anchor))
        ours = run([{"decode_image": {}}, {"resize": {"w": 64, "h": 40, "fit": "cover", "round": "ceil", "filter": "cv.cubic"}}], file)
        to = (64, -(-64 * h // w)) if 64 * h >= w * 40 else (-(-40 * w // h), 40)
        x, y = (to[0] - 64 + 1) // 2, (to[1] - 40 + 1) // 2
        theirs = cv2.resize(np.asarray(image), to, interpolation=cv2.INTER_CUBIC)[y:y + 40, x:x + 64]
        assert np.abs(ours.astype(int) - theirs).max() <= 1, ("cover", w, h)


def test_crop_and_pad():
    array = picture(61, 47)
    file = save("crop.png", Image.fromarray(array))
    same(run([{"decode_image": {}}, {"crop": {"w": 30, "h": 20}}], file), array[13:33, 15:45], "centre, half a pixel down")
    same(run([{"decode_image": {}}, {"crop": {"w": 30, "h": 20, "round": "half_even"}}], file), array[14:34, 16:46], "centre, half to even")
    same(run([{"decode_image": {}}, {"crop": {"w": 30, "h": 20, "at": "bottom_right"}}], file), array[27:, 31:], "corner")
    same(run([{"decode_image": {}}, {"crop": {"box": [3, 4, 10, 40]}}], file), array[4:40, 3:10], "box")
    same(run([{"decode_image": {}}, {"crop": {"ratio": 1}}], file), array[:, 7:54], "square")
    same(run([{"decode_image": {}}, {"crop": {"ratio": 2, "at": "top_left"}}], file), array[:30], "twice as wide")
    padded = np.full((64, 64, 3), 9, np.uint8)
    padded[:47, :61] = array
    same(run([{"decode_image": {}}, {"pad": {"multiple": 32, "value": 9}}], file), padded, "multiple")
    padded = np.zeros((50, 70, 3), np.uint8)
    padded[1:48, 4:65] = array
    same(run([{"decode_image": {}}, {"pad": {"w": 70, "h": 50, "at": "center"}}], file), padded, "centre")
    fails([{"decode_image": {}}, {"crop": {"w": 62, "h": 20}}], file, "62×20")
    fails([{"decode_image": {}}, {"pad": {"w": 60, "h": 60}}], file, "60×60")


def test_colors_equal_pillow():
    image = Image.fromarray(rng.randint(0, 256, (400, 400, 3)).astype(np.uint8))
    file = save("color.png", image)
    same(run([{"decode_image": {"color": "gray"}}], file), image.convert("L"), "gray")
    same(run([{"decode_image": {}}, {"color": {"to": "ycbcr"}}], file), image.convert("YCbCr"), "ycbcr")
    same(run([{"decode_image": {"color": "bgr"}}], file), np.asarray(image)[..., ::-1], "bgr")
    same(run([{"decode_image": {"color": "bgr"}}, {"color": {"to": "gray"}}], file), image.convert("L"), "bgr to gray")
    same(run([{"decode_image": {"color": "gray"}}, {"color": {"to": "rgb"}}], file), image.convert("L").convert("RGB"), "gray to rgb")


def test_pixels_equal_numpy():
    array = picture(20, 10)
    file = save("pixels.png", Image.fromarray(array))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    ours = run([{"decode_image": {}}, {"pixels": {"mean": list(mean), "std": list(std)}}], file)
    expected = ((array * (1 / 255) - mean) / std).astype(np.float32).transpose(2, 0, 1)
    assert ours.dtype == np.float32 and np.array_equal(ours, expected)
    ours = run([{"decode_image": {}}, {"pixels": {"layout": "nhwc", "scale": 0.0078125, "offset": -1, "dtype": "f16"}}], file)
    assert ours.dtype == np.float16 and np.array_equal(ours, (array / 128 - 1).astype(np.float16))
    ours = run([{"decode_image": {}}, {"pixels": {"dtype": "i8", "offset": -128, "layout": "nhwc"}}], file)
    assert ours.dtype == np.int8 and np.array_equal(ours, (array.astype(int) - 128).astype(np.int8))
    ours = run([{"decode_image": {}}, {"pixels": {"mean": 0.5, "std": 0.25}}, {"pixels": {"mean": 0.5, "std": 0.25, "inverse": True}}], file)
    assert np.array_equal(ours, array)


def test_jpegs_equal_pillow():
    image = Image.fromarray(cv2.GaussianBlur(picture(133, 90), (5, 5), 0))
    files = [save("gray.jpg", image.convert("L")), save("444.jpg", image, subsampling=0, quality=95),
             save("422.jpg", image, subsampling=1), save("420.jpg", image, subsampling=2, quality=60),
             save("progressive.jpg", image, progressive=True), save("cmyk.jpg", image.convert("CMYK")),
             save("cmyk-progressive.jpg", image.convert("CMYK"), progressive=True, quality=40),
             save("optimized.jpg", image, optimize=True, quality=20)]
    for file in files:
        same(run([{"decode_image": {}}], file), Image.open(file).convert("RGB"), file)
    same(run([{"decode_image": {"color": "gray"}}], files[0]), Image.open(files[0]), "gray stays gray")


def test_exif_orientations_equal_pillow():
    image = Image.fromarray(picture(64, 40))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("exif.jpg", "exif.png"):
            file = save(name, image, exif=exif.tobytes())
            upright = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
            same(run([{"decode_image": {}}], file), upright, (name, orientation))
            same(run([{"decode_image": {"exif": False}}], file), Image.open(file).convert("RGB"), (name, orientation, "off"))


def interlaced_png(array):
    """Adam7, which neither Pillow nor OpenCV writes."""
    h, w = array.shape[:2]
    raw = b""
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        part = array[y0::dy, x0::dx]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 1)) +
            chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def test_pngs_equal_pillow():
    rgb = picture(50, 33)
    image = Image.fromarray(rgb)
    alpha = Image.fromarray(np.dstack([rgb, rng.randint(0, 256, (33, 50))]).astype(np.uint8))
    palette = image.quantize(200)
    see_through = image.quantize(16)
    see_through.info["transparency"] = 3
    files = [save("rgb.png", image), save("l.png", image.convert("L")), save("1.png", image.convert("1")), save("p.png", palette),
             save("p4.png", image.quantize(9), bits=4), save("p-alpha.png", see_through), save("rgba.png", alpha),
             save("la.png", alpha.convert("LA")), save("rgb-key.png", image, transparency=(1, 2, 3))]
    for file in files:
        same(run([{"decode_image": {}}], file), Image.open(file).convert("RGB"), file)
    with open(path("adam7.png"), "wb") as f:
        f.write(interlaced_png(rgb))
    same(run([{"decode_image": {}}], path("adam7.png")), Image.open(path("adam7.png")).convert("RGB"), "interlaced")
    wide = rng.randint(0, 65536, (20, 30, 3)).astype(np.uint16)
    cv2.imwrite(path("16.png"), wide[..., ::-1])
    same(run([{"decode_image": {}}], path("16.png")), (wide >> 8).astype(np.uint8), "16 bits: the high byte")
    cv2.imwrite(path("gray16.png"), wide[..., 0])
    same(run([{"decode_image": {"color": "gray"}}], path("gray16.png")), (wide[..., 0] >> 8).astype(np.uint8), "16 bits of gray")
    white = Image.new("RGB", alpha.size, "white")
    white.paste(alpha, mask=alpha.getchannel("A"))
    same(run([{"decode_image": {"alpha": "white"}}], path("rgba.png")), white, "over white")


def test_photos_equal_pillow():
    for file in sorted(glob.glob(os.path.join(tap.need_data(), "photos", "*"))):
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        same(run([{"decode_image": {}}], file), image, file)
        w, h = image.size
        to = (224, int(224 * h / w)) if w <= h else (int(224 * w / h), 224)
        ours = run([{"decode_image": {}}, {"resize": {"size": 224, "fit": "shortest"}}, {"crop": {"w": 224, "h": 224}}], file)
        x, y = (to[0] - 224) // 2, (to[1] - 224) // 2
        same(ours, image.resize(to, Image.BILINEAR).crop((x, y, x + 224, y + 224)), file)


def test_hostile_pictures_are_errors():
    decode = [{"decode_image": {}}]
    image = Image.fromarray(picture(40, 30))
    for kind in ("JPEG", "PNG"):
        whole = io.BytesIO()
        image.save(whole, kind)
        whole = whole.getvalue()
        for cut in (2, 9, 20, len(whole) // 3, len(whole) - 30, len(whole) - 13):
            with open(path("cut"), "wb") as f:
                f.write(whole[:cut])
            fails(decode, path("cut"), "bad_input")
        for i in range(60):
            broken = bytearray(whole)
            for _ in range(3):
                broken[rng.randint(len(broken))] = rng.randint(256)
            with open(path("broken"), "wb") as f:
                f.write(broken)
            p = subprocess.run([tap.QUERN, "pipeline", "apply", json.dumps(decode), "--input", path("broken"), "--output",
                                path("no.npy")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert p.returncode in (0, 1), (kind, i, p.returncode, p.stdout)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    with open(path("bomb"), "wb") as f:
        f.write(bomb + chunk(b"IDAT", zlib.compress(b"\0" * 100000)) + chunk(b"IEND", b""))
    fails(decode, path("bomb"), "too_large")
    fails([{"decode_image": {"max_pixels": 1199}}], save("small.jpg", image), "1199")
    with open(path("text"), "wb") as f:
        f.write(b"this is no picture")
    fails(decode, path("text"), "neither a JPEG nor a PNG")
    with open(path("empty"), "wb"):
        pass
    fails(decode, path("empty"), "no bytes")


def test_mistakes_in_steps_are_named():
    file = save("steps.png", Image.fromarray(picture(8, 8)))
    for steps, word in (([{"decode_image": {"colour": "rgb"}}], 'did you mean "color"'),
                        ([{"decode_image": {"color": "rbg"}}], "one of: rgb bgr gray"),
                        ([{"decode_imag": {}}], 'did you mean "decode_image"'),
                        ([{"resize": {"size": 8}}], "cannot be the first step"),
                        ([{"decode_image": {}}, {"topk": {}}], "takes tensor, and is given image"),
                        ([{"decode_image": {}}, {"resize": {"size": 8, "w": 3}}], "not both"),
                        ([{"decode_image": {}}, {"resize": {"size": 0}}], "from 1 to 65535"),
                        ([{"decode_image": {}, "as": "a"}, {"crop": {"w": 4, "h": 4}, "from": "b"}], '"from" is "b"'),
                        ([{"decode_image": {"color": "gray"}}, {"pixels": {"mean": [1, 2, 3]}}], "has 1 channels"),
                        ([{"decode_image": {}}, {"pixels": {}}, {"activate": {"kind": "softmax"}}, {"activate": {"kind": "sigmoid"}}],
                         "normalised already")):
        fails(steps, file, word)


tap.main(globals())
