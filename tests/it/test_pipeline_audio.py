"""Sound: WAV files of every sample format, resampling and mel spectrograms against numpy."""
import json
import os
import struct
import subprocess
import tempfile

import numpy as np

import tap
from server import CLEAN


def wav(samples, rate, bits=16, kind=1, channels=1, extensible=False):
    """Bytes of a WAV file; samples in [-1, 1], [n] or [n, channels]."""
    x = np.asarray(samples, dtype=np.float64).reshape(-1, channels)
    if kind == 3:
        data = x.astype("<f4" if bits == 32 else "<f8").tobytes()
    elif bits == 8:
        data = np.round(x * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = np.round(x * (2 ** (bits - 1) - 1)).astype(np.int64)
        data = b"".join(int(v).to_bytes(bits // 8, "little", signed=True) for v in whole.ravel())
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", 0xfffe if extensible else kind, channels, rate, rate * block, block, bits)
    if extensible:
        fmt += struct.pack("<HHI", 22, bits, 0) + struct.pack("<H", kind) + b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # a chunk of odd length before the data
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(fmt)) + fmt + odd + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def apply(steps, data, rc=0):
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "in.wav"), "wb") as f:
            f.write(data)
        out = os.path.join(d, "out.npy")
        done = subprocess.run([tap.QUERN, "pipeline", "apply", json.dumps(steps), "--input", os.path.join(d, "in.wav"), "--output", out],
                              capture_output=True, text=True, env=CLEAN)
        assert done.returncode == rc, done
        return done.stderr if rc else np.load(out)


def tone(hertz, rate, seconds=0.5, loud=0.6):
    return loud * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


MEL = {"sampling_rate": 8000, "fft_length": 256, "sequence_length": 200, "sequence_stride": 80, "num_mel_bins": 20, "min_freq": 50, "max_freq": 3800}


def spectrogram(x, frames=None):
    """The same in numpy."""
    n, length, stride = MEL["fft_length"], MEL["sequence_length"], MEL["sequence_stride"]
    count = frames or 1 + (len(x) - length) // stride
    x = np.pad(x, (0, max(0, (count - 1) * stride + length - len(x))))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    power = np.abs(np.fft.rfft(np.stack([x[i * stride:i * stride + length] * window for i in range(count)]), n)) ** 2
    mel = lambda f: 1127 * np.log1p(f / 700)
    edges = np.linspace(mel(MEL["min_freq"]), mel(MEL["max_freq"]), MEL["num_mel_bins"] + 2)
    at = mel(np.arange(1, n // 2 + 1) * MEL["sampling_rate"] / n)
    up, down = (at[None] - edges[:-2, None]) / np.diff(edges)[0], (edges[2:, None] - at[None]) / np.diff(edges)[0]
    weights = np.maximum(0, np.minimum(up, down))
    return np.log(np.maximum(power[:, 1:] @ weights.T, 1e-10))


def test_a_mel_spectrogram_is_the_one_of_numpy():
    x = tone(440, 8000) + tone(1900, 8000, loud=0.2)
    data = wav(x, 8000, 32, 3)
    got = apply([{"decode_audio": {"rate": 8000}}, {"log_mel": MEL}], data)
    want = spectrogram(x.astype(np.float32).astype(np.float64))
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-4, np.abs(got - want).max()
    # More frames than there is sound: silence behind, to the last.
    got = apply([{"decode_audio": {"rate": 8000}}, {"log_mel": dict(MEL, frames=70)}], data)
    want = spectrogram(x.astype(np.float32).astype(np.float64), 70)
    assert got.shape == (70, 20) and np.abs(got - want).max() < 1e-4
    assert np.allclose(got[-1], np.log(1e-10))


def test_every_sample_format_is_the_same_sound():
    x = tone(700, 8000, 0.2)
    want = spectrogram(x)
    for bits, kind, far in ((8, 1, 1.2), (16, 1, 0.05), (24, 1, 1e-3), (32, 1, 1e-3), (32, 3, 1e-3), (64, 3, 1e-3)):
        for extensible in (False, True):
            for channels in (1, 2):
                both = np.stack([x * 1.2, x * 0.8], 1) if channels == 2 else x  # averaged to x
                got = apply([{"decode_audio": {"rate": 8000}}, {"log_mel": MEL}], wav(both, 8000, bits, kind, channels, extensible))
                loud = want > want.max() - 8
                assert np.abs(got - want)[loud].max() < far, (bits, kind, channels, np.abs(got - want)[loud].max())


def test_resampling_keeps_tones_and_drops_what_the_new_rate_cannot_hold():
    want = spectrogram(tone(600, 8000))
    for rate in (16000, 22050, 44100, 6000):
        got = apply([{"decode_audio": {"rate": 8000}}, {"log_mel": MEL}], wav(tone(600, rate), rate, 32, 3))
        inner = slice(3, min(len(got), len(want)) - 3)
        loud = want[inner] > want.max() - 6
        assert np.abs(got[inner] - want[inner])[loud].max() < 0.02, rate
    got = apply([{"decode_audio": {"rate": 8000}}, {"log_mel": MEL}], wav(tone(6000, 44100), 44100, 32, 3))
    assert got[3:-3].max() < want.max() - 9  # above half of 8000: gone, not folded back


def test_what_is_no_sound_is_refused():
    steps = [{"decode_audio": {"rate": 8000}}, {"log_mel": MEL}]
    good = wav(tone(600, 8000), 8000)
    for data, says in ((b"", "no WAV"), (b"RIFF\0\0\0\0WAVE", "no format chunk"), (good[:30], "format"), (good.replace(b"data", b"tada"), "no data chunk"),
                       (good[:20] + b"\x07\x00" + good[22:], "format 7"), (wav([float("nan")] * 300, 8000, 32, 3), "no number"),
                       (wav([], 8000), "no samples"), (good[:22] + b"\xff\xff" + good[24:], "does not fit together")):
        err = apply(steps, data, rc=1)
        assert says in err, (says, err)
    assert "max_seconds" in apply([{"decode_audio": {"max_second": 0.1}}], good, rc=1)
    assert "lasts" in apply([{"decode_audio": {"max_seconds": 0.1}}, {"log_mel": dict(MEL, sampling_rate=16000)}], good, rc=1)
    assert "16000" in apply([{"decode_audio": {}}, {"log_mel": MEL}], good, rc=1)  # rates that differ are told at load
    assert "power of two" in apply([{"decode_audio": {"rate": 8000}}, {"log_mel": dict(MEL, fft_length=250)}], good, rc=1)
    cut = apply(steps, good[:-1001])  # cut off: what is there is read
    assert 30 < len(cut) < 48


tap.main(globals())
