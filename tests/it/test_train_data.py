"""Training on what is no table of numbers: text (lines, tables, folders, one long text), and what is said where it does not fit."""
import json
import os
import subprocess
import wave

import numpy as np

import tap
from server import CLEAN
from trains import Folder, changed

GOOD, BAD = ["fine", "great", "lovely", "warm"], ["poor", "dull", "cold", "sad"]
PLAIN = ["film", "story", "the", "a", "of", "seen", "Actor,", "plot"]


def sentences(n=160, seed=3):
    """Pairs of a label and a sentence with one word that tells."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = list(rng.choice(PLAIN, 5)) + [str(rng.choice(GOOD if i % 2 else BAD))]
        rng.shuffle(words)
        rows.append(("good" if i % 2 else "bad", " ".join(words)))
    return rows


WORDS = {
    "model": {"input_shape": [8], "layers": [
        {"type": "Embedding", "input_dim": 30, "output_dim": 8}, {"type": "GlobalAveragePooling1D"},
        {"type": "Dense", "units": 2, "activation": "softmax"}]},
    "data": {"train": {"x": "rows.csv", "fields": {"x": "text", "y": "label"}}, "test_split": 0.25,
             "preprocess": [{"type": "TextVectorization", "max_tokens": 30, "output_sequence_length": 8}]},
    "compile": {"optimizer": {"type": "adam", "learning_rate": 0.05}, "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
    "fit": {"epochs": 15, "batch_size": 16, "seed": 1},
}


def checked(f, output):
    done = subprocess.run([tap.QUERN, "model", "check", f.at(output)], capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 0, done
    return done.stdout


def test_sentences_of_every_format_make_the_same_model():
    with Folder() as f:
        rows = sentences()
        with open(f.at("rows.csv"), "w") as out:
            out.write("label,text\n" + "".join(f'{a},"{b}"\n' for a, b in rows))
        with open(f.at("rows.jsonl"), "w") as out:
            for a, b in rows:
                out.write(json.dumps({"label": a, "words": b.split(" ")}) + "\n")
        with open(f.at("numbers.csv"), "w") as out:
            out.write("".join(f'{ {"bad": 3, "good": 9}[a]},"{b}"\n' for a, b in rows))
        f.train(WORDS, "csv")
        assert json.loads(f.read("csv", "metrics.json"))["test"]["accuracy"] > 0.9
        assert "golden 1" in checked(f, "csv")
        vocabulary = json.loads(f.read("csv", "vocabulary.json"))
        assert vocabulary[:2] == ["", "[UNK]"] and "actor" in vocabulary and len(set(vocabulary)) == len(vocabulary) == 18, vocabulary
        f.train(changed(WORDS, data__train={"x": "rows.jsonl", "fields": {"x": "words", "y": "label"}}), "jsonl")
        f.train(changed(WORDS, data__train={"x": "numbers.csv", "header": False, "fields": {"x": [1], "y": "0"}, "categorical": True}), "numbers")
        steps = json.loads(f.read("numbers", "model.json"))["pipeline"]
        assert steps[-1]["topk"]["labels"] == ["3", "9"], steps
        for name in ("jsonl", "numbers"):
            assert f.read(name, "vocabulary.json") == f.read("csv", "vocabulary.json")
            assert json.loads(f.read(name, "metrics.json"))["test"] == json.loads(f.read("csv", "metrics.json"))["test"]


def test_a_file_a_class_and_a_folder_a_class():
    with Folder() as f:
        rows = sorted(sentences(), key=lambda r: r[0])  # the order of files in folders
        for label in ("good", "bad"):
            with open(f.at(label + ".txt"), "w", encoding="latin-1") as out:
                out.write("".join(b + " caf\xe9\n" for a, b in rows if a == label))
            os.makedirs(f.at("set", label))
            for i, (_, b) in enumerate(r for r in rows if r[0] == label):
                with open(f.at("set", label, f"{i:04}.txt"), "w", encoding="utf-8") as out:
                    out.write(b + " caf\xe9")
        f.train(changed(WORDS, data__train={"classes": {"good": "good.txt", "bad": "bad.txt"}}), "files")
        f.train(changed(WORDS, data__train={"x": "set"}), "folder")
        for name in ("files", "folder"):
            assert json.loads(f.read(name, "metrics.json"))["test"]["accuracy"] > 0.9
            assert json.loads(f.read(name, "vocabulary.json"))[2] == "caf\xe9"


def test_the_vocabulary_is_that_of_the_training_rows():
    with Folder() as f:
        rows = sentences()
        with open(f.at("rows.csv"), "w") as out:
            out.write("label,text\n" + "".join(f'{a},"{b} only{i}"\n' for i, (a, b) in enumerate(rows)))
        f.train(changed(WORDS, data__preprocess=[{"type": "TextVectorization"}], model__layers=[
            dict(WORDS["model"]["layers"][0], input_dim=400), *WORDS["model"]["layers"][1:]], fit__validation_split=0.1, fit__epochs=1))
        only = [w for w in json.loads(f.read("out", "vocabulary.json")) if w.startswith("only")]
        assert len(only) == 108, len(only)  # of 160 rows: 40 are the test set, 12 validation


TALE = {
    "model": {"input_shape": [8], "layers": [
        {"type": "Embedding", "input_dim": 20, "output_dim": 12}, {"type": "PositionEmbedding"},
        {"type": "TransformerBlock", "num_heads": 2, "use_causal_mask": True}, {"type": "Dense", "units": 20}]},
    "data": {"train": {"x": "tale.txt", "sequence_length": 8}, "preprocess": [{"type": "TextVectorization", "split": "character", "standardize": None}]},
    "compile": {"optimizer": {"type": "adam", "learning_rate": 0.02}, "loss": {"type": "sparse_categorical_crossentropy", "from_logits": True},
                "metrics": ["perplexity", "accuracy"]},
    "fit": {"epochs": 2, "steps_per_epoch": 60, "batch_size": 16, "validation_split": 0.2, "seed": 1},
}


def test_a_text_teaches_what_comes_next():
    with Folder() as f:
        with open(f.at("tale.txt"), "w") as out:
            out.write("once upon a time. " * 60)  # 1,080 characters: 1,072 windows
        f.train(TALE)
        metrics = json.loads(f.read("out", "metrics.json"))
        assert metrics["epochs"][-1]["val_accuracy"] > 0.8 and metrics["epochs"][-1]["val_perplexity"] < 2.5, metrics["epochs"]
        # 858 windows lie before the held-out 214, of which every eighth is looked at; 9 reach into them.
        assert metrics["train_rows"] == 857 - 9 and metrics["validation_rows"] == 27, metrics
        steps = json.loads(f.read("out", "model.json"))["pipeline"]
        assert steps[0]["vectorize"] == {"split": "character", "standardize": "none", "length": 8, "vocabulary": "vocabulary.json"}
        checked(f, "out")
        f.train(changed(TALE, data__preprocess=[{"type": "TextVectorization", "split": "byte"}], model__layers=[
            {"type": "Embedding", "input_dim": 256, "output_dim": 8}, {"type": "Dense", "units": 256}]), "bytes")
        assert not os.path.exists(f.at("bytes", "vocabulary.json"))
        checked(f, "bytes")


def test_text_that_does_not_fit_is_refused_with_what_would():
    with Folder() as f:
        with open(f.at("rows.csv"), "w") as out:
            out.write("label,text\n" + "".join(f'{a},"{b}"\n' for a, b in sentences(40)))
        with open(f.at("tale.txt"), "w") as out:
            out.write("once")
        vectorize = {"type": "TextVectorization"}

        def told(spec, *words, rc=1):
            _, err = f.train(spec, rc=rc)
            for w in words:
                assert w in err, (w, err)

        told(changed(WORDS, data__preprocess=[dict(vectorize, split="words")]), "data.preprocess[0]", "split", "whitespace")
        told(changed(WORDS, data__preprocess=[dict(vectorize, output_sequence_length=9)]), "output_sequence_length", "8")
        told(changed(WORDS, data__preprocess=[dict(vectorize, standardize="upper")]), "standardize", "lower_and_strip_punctuation")
        told(changed(WORDS, model__layers=[dict(WORDS["model"]["layers"][0], input_dim=5), *WORDS["model"]["layers"][1:]],
                     data__preprocess=[vectorize]), "vocabulary has", "max_tokens")
        told(changed(WORDS, model__layers=[{"type": "Dense", "units": 2}]), "int64[length]", "Embedding")
        told(changed(WORDS, data__train={"classes": {"good": "absent.txt"}}), "classes.good", "absent.txt", rc=4)
        told(changed(WORDS, data__train={"classes": ["a"]}), "data.train.classes")
        told(changed(TALE, data__train__sequence_length=9), "sequence_length")
        told(TALE, "4 tokens", "window of 8")
        with open(f.at("tale.txt"), "w") as out:
            out.write("once upon a time. " * 9)
        told(changed(TALE, data__test_split=0.1), "test_split", "windows of one text overlap")


def say(path, notes, rng, rate=8000):
    """A WAV file of tones of a tenth of a second, with noise and a little silence between."""
    parts = []
    for hertz in notes:
        t = np.arange(rate // 10) / rate
        parts += [0.5 * np.sin(2 * np.pi * hertz * rng.uniform(0.97, 1.03) * t), np.zeros(rate // 20)]
    x = np.concatenate(parts)
    x += rng.normal(size=len(x)) * 0.02
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with wave.open(path, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate)
        w.writeframes((np.clip(x, -1, 1) * 32767).astype("<i2").tobytes())


NOTES = {"do": 300, "re": 700, "mi": 1500}
SOUND = {
    "model": {"input_shape": [10, 16, 1], "layers": [
        {"type": "Conv2D", "filters": 4, "kernel_size": 3, "activation": "relu"}, {"type": "Flatten"},
        {"type": "Dense", "units": 3, "activation": "softmax"}]},
    "data": {"train": {"x": "notes", "label_pattern": "{label}_{take}.wav", "except": {"take": [0, 1]}},
             "test": {"x": "notes", "label_pattern": "{label}_{take}.wav", "only": {"take": ["0", "1"]}},
             "preprocess": [{"type": "MelSpectrogram", "sampling_rate": 8000, "fft_length": 256, "sequence_stride": 80}, "Normalization"],
             "augment": [{"type": "TimeMask", "factor": 0.3}, {"type": "FrequencyMask", "factor": 0.1, "count": 2}]},
    "compile": {"optimizer": {"type": "adam", "learning_rate": 0.01}, "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
    "fit": {"epochs": 8, "batch_size": 8, "seed": 1},
}


def test_sounds_are_split_by_their_names_and_learned():
    with Folder() as f:
        rng = np.random.default_rng(2)
        for label, hertz in NOTES.items():
            for take in range(14):
                say(f.at("notes", f"{label}_{take}.wav"), [hertz], rng)
        f.train(SOUND)
        metrics = json.loads(f.read("out", "metrics.json"))
        assert metrics["test"]["accuracy"] == 1 and metrics["test_rows"] == 6 and metrics["train_rows"] == 36, metrics
        steps = json.loads(f.read("out", "model.json"))["pipeline"]
        assert [list(s)[0] for s in steps] == ["decode_audio", "log_mel", "tensor", "run", "topk"] and steps[-1]["topk"]["labels"] == ["do", "mi", "re"]
        checked(f, "out")
        f.train(changed(SOUND, data__memory_mb=0), "streamed")
        assert f.read("streamed", "model.onnx") == f.read("out", "model.onnx")
        for label in NOTES:  # folders are labels, too
            os.makedirs(f.at("folders", label))
            for take in range(2, 14):
                os.link(f.at("notes", f"{label}_{take}.wav"), f.at("folders", label, f"{take:02}.wav"))
        f.train(changed(SOUND, data__train={"x": "folders"}), "folders")
        assert json.loads(f.read("folders", "metrics.json"))["test"]["accuracy"] == 1
        for data, words in (({"x": "notes"}, ("label_pattern",)), ({"x": "notes", "label_pattern": "{label}-{take}.wav"}, ("does not fit", "do_0.wav")),
                            ({"x": "notes", "label_pattern": "{label}_{take}.wav", "only": {"tkae": [1]}}, ("only", "tkae")),
                            ({"x": "notes", "label_pattern": "{word}_{take}.wav"}, ("{label}",))):
            _, err = f.train(changed(SOUND, data__train=data), rc=1)
            for w in words:
                assert w in err, (w, err)


def test_a_sequence_of_sounds_is_spelled_by_ctc():
    with Folder() as f:
        rng = np.random.default_rng(4)
        for i in range(160):
            words = list(rng.choice(list(NOTES), rng.integers(1, 4)))
            say(f.at("songs", f"{'-'.join(words)}_{i}.wav"), [NOTES[w] for w in words], rng)
        spec = changed(SOUND, model__input_shape=[45, 16], model__layers=[
            {"type": "Conv1D", "filters": 16, "kernel_size": 3, "padding": "same", "activation": "relu"},
            {"type": "Dense", "units": 4, "activation": "softmax"}],
            data__train={"x": "songs", "label_pattern": "{label}_{take}.wav"}, data__test_split=0.2, data__augment=[],
            compile={"optimizer": {"type": "adam", "learning_rate": 0.01}, "loss": "ctc", "metrics": ["wer", "perplexity"]}, fit__epochs=150)
        del spec["data"]["test"]
        f.train(spec)
        metrics = json.loads(f.read("out", "metrics.json"))
        assert metrics["test"]["wer"] < 0.2, metrics["test"]
        steps = json.loads(f.read("out", "model.json"))["pipeline"]
        assert steps[-1] == {"ctc": {"labels": ["", "do", "mi", "re"], "blank": 0, "separator": " "}}, steps
        checked(f, "out")
        _, err = f.train(changed(spec, compile__metrics=["accuracy"]), rc=1)
        assert "ctc" in err and "accuracy" in err, err
        _, err = f.train(changed(spec, model__layers=[{"type": "Flatten"}, {"type": "Dense", "units": 4}]), rc=1)
        assert "[steps, classes]" in err, err


tap.main(globals())
