"""Layers: every kind trains, and what is written passes ONNX's own checks and answers as the trainer did."""
import json
import subprocess

import numpy as np
import onnx
import onnx.numpy_helper

import tap
from server import CLEAN
from trains import Folder, changed

RNG = np.random.default_rng(1)


def trains(f, model, x, y, output="out", loss="mse", **fit):
    """Trains; the losses of the epochs. The model passes the checker, its golden sample holds."""
    np.save(f.at("x.npy"), x)
    np.save(f.at("y.npy"), y)
    f.train({"model": model, "data": {"train": {"x": "x.npy", "y": "y.npy"}}, "compile": {"optimizer": {"type": "adam", "learning_rate": 0.01}, "loss": loss},
             "fit": dict({"epochs": 4, "batch_size": 16, "seed": 1}, **fit)}, output)
    onnx.checker.check_model(onnx.load(f.at(output, "model.onnx")))
    done = subprocess.run([tap.QUERN, "model", "check", f.at(output)], capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 0 and "golden" in done.stdout, done
    return [e["loss"] for e in json.loads(f.read(output, "metrics.json"))["epochs"]]


def falls(losses):
    assert losses[-1] < losses[0] and all(np.isfinite(losses)), losses


def test_layers_of_pictures():
    with Folder() as f:
        x = RNG.normal(size=(64, 8, 8, 2)).astype(np.float32)
        falls(trains(f, {"input_shape": [8, 8, 2], "layers": [
            {"type": "SeparableConv2D", "filters": 6, "kernel_size": 3, "padding": "same", "depthwise_regularizer": "l2", "pointwise_regularizer": {"type": "l1", "l1": 1e-4}},
            {"type": "BatchNormalization"}, {"type": "PReLU", "shared_axes": [1, 2]}, {"type": "SpatialDropout2D", "rate": 0.2},
            {"type": "Conv2D", "filters": 4, "kernel_size": 3, "strides": 2, "padding": "same", "activity_regularizer": {"type": "l2", "l2": 1e-3}},
            {"type": "GaussianDropout", "rate": 0.1}, {"type": "Conv2DTranspose", "filters": 2, "kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"},
            {"type": "Cropping2D", "cropping": 2}, {"type": "UpSampling2D"}, {"type": "DepthwiseConv2D", "kernel_size": 3, "padding": "same"},
            {"type": "GlobalAveragePooling2D"}, {"type": "Dense", "units": 1}]}, x, x.mean((1, 2, 3), keepdims=False) * 4))


def test_layers_of_sequences():
    with Folder() as f:
        x = RNG.normal(size=(64, 9, 4)).astype(np.float32)
        y = x[:, :, 0].sum(1)
        for name, layers in (("time", [{"type": "TimeDistributed", "layer": {"type": "Dense", "units": 5, "activation": "tanh"}}, {"type": "SpatialDropout1D", "rate": 0.1},
                                       {"type": "LSTM", "units": 6, "dropout": 0.1, "return_sequences": True}, {"type": "GRU", "units": 5}]),
                             ("conv", [{"type": "ZeroPadding1D"}, {"type": "SeparableConv1D", "filters": 5, "kernel_size": 3}, {"type": "UpSampling1D"},
                                       {"type": "DepthwiseConv1D", "kernel_size": 2}, {"type": "Cropping1D"}, {"type": "GlobalMaxPooling1D"}]),
                             ("attention", [{"type": "GaussianNoise", "stddev": 0.05}, {"type": "MultiHeadAttention", "num_heads": 2, "key_dim": 4, "use_causal_mask": True},
                                            {"type": "LayerNormalization"}, {"type": "GlobalAveragePooling1D"}]),
                             ("rnn", [{"type": "Bidirectional", "layer": {"type": "SimpleRNN", "units": 4, "dropout": 0.1}}, {"type": "RepeatVector", "n": 3},
                                      {"type": "Flatten"}])):
            falls(trains(f, {"input_shape": [9, 4], "layers": layers + [{"type": "Dense", "units": 1}]}, x, y, name))


def test_rows_that_are_padded_train_through_their_mask():
    with Folder() as f:
        x = RNG.integers(1, 12, (96, 10))
        for row, n in zip(x, RNG.integers(0, 11, 96)):
            row[n:] = 0
        y = (x == 3).any(1).astype(np.int64)
        for name, layer in (("gru", {"type": "GRU", "units": 8}), ("mean", {"type": "GlobalAveragePooling1D"}),
                            ("both", {"type": "Bidirectional", "layer": {"type": "LSTM", "units": 4}})):
            falls(trains(f, {"input_shape": [10], "layers": [{"type": "Embedding", "input_dim": 12, "output_dim": 6, "mask_zero": True}, layer,
                                                             {"type": "Dense", "units": 2, "activation": "softmax"}]}, x, y, name, "sparse_categorical_crossentropy"))


def test_penalties_are_part_of_the_loss_and_shrink_what_they_penalise():
    with Folder() as f:
        x = RNG.normal(size=(64, 6)).astype(np.float32)
        y = x @ np.arange(6).astype(np.float32)
        model = {"input_shape": [6], "layers": [{"type": "Dense", "name": "free", "units": 8}, {"type": "Dense", "name": "held", "units": 1}]}
        plain = trains(f, model, x, y, "plain", epochs=12)
        held = changed(model)
        held["layers"][1]["kernel_regularizer"] = {"type": "l2", "l2": 0.5}
        weights = trains(f, held, x, y, "weights", epochs=12)
        quiet = changed(model)
        quiet["layers"].insert(1, {"type": "ActivityRegularization", "l2": 0.5})
        acts = trains(f, quiet, x, y, "acts", epochs=12)
        assert weights[0] > plain[0] and acts[0] > plain[0], (plain, weights, acts)

        def norm(folder, name):
            return next(np.linalg.norm(onnx.numpy_helper.to_array(w)) for w in onnx.load(f.at(folder, "model.onnx")).graph.initializer if w.name == name)
        assert norm("weights", "held/kernel") < norm("plain", "held/kernel")
        assert norm("acts", "free/kernel") < norm("plain", "free/kernel")
        _, err = f.train({"model": {"input_shape": [6], "layers": [{"type": "Dense", "units": 1, "kernel_regularizer": "l3"}]}, "data": {"train": {"x": "x.npy", "y": "y.npy"}},
                          "compile": {"loss": "mse"}}, rc=1)
        assert "kernel_regularizer" in err and "l1l2" in err, err


def test_triplets_and_rankings_learn():
    with Folder() as f:
        x = RNG.normal(size=(90, 5)).astype(np.float32)
        y = np.arange(90) % 3
        x[np.arange(90), y] += 2
        falls(trains(f, {"input_shape": [5], "layers": [{"type": "Dense", "units": 4}, {"type": "UnitNormalization"}]}, x, y, "triplet", "triplet", epochs=8))
        pairs = RNG.normal(size=(90, 4, 3)).astype(np.float32)
        pairs[:, 0] += 1  # the first of four is the one that was chosen
        np.save(f.at("pairs.npy"), pairs)
        f.train({"model": {"input_shape": [4, 3], "layers": [{"type": "Dense", "units": 1}, {"type": "Reshape", "target_shape": [4]}]},
                 "data": {"train": {"x": "pairs.npy"}, "test": {"x": "pairs.npy"}},
                 "compile": {"optimizer": {"type": "adam", "learning_rate": 0.05}, "loss": "bpr", "metrics": [{"type": "hit_rate", "k": 1}, "ndcg", "mrr"]},
                 "fit": {"epochs": 10, "batch_size": 16, "seed": 1}}, "bpr")
        test = json.loads(f.read("bpr", "metrics.json"))["test"]
        assert test["hit_rate"] > 0.6 and test["ndcg"] > test["mrr"] > test["hit_rate"], test


KERAS = {
    "model": {"layers": [
        {"type": "Conv2D", "filters": 32, "kernel_size": [3, 3], "activation": "relu", "input_shape": [224, 224, 3]},
        {"type": "MaxPooling2D", "pool_size": [2, 2]},
        {"type": "Conv2D", "filters": 64, "kernel_size": [3, 3], "activation": "relu"},
        {"type": "MaxPooling2D", "pool_size": [2, 2]},
        {"type": "Flatten"},
        {"type": "Dense", "units": 16, "activation": "relu"},
        {"type": "Dense", "units": 3, "activation": "softmax"}]},
    "data": {"train": {"x": "x.npy", "y": "y.npy"}},
    "compile": {"optimizer": "adam", "loss": "categorical_crossentropy", "metrics": ["accuracy"]},
    "fit": {"epochs": 1, "batch_size": 32},
}


def test_the_words_of_a_sequential_model_in_keras():
    with Folder() as f:
        np.save(f.at("x.npy"), RNG.integers(0, 255, (6, 224, 224, 3)).astype(np.uint8))
        np.save(f.at("y.npy"), np.eye(3, dtype=np.float32)[np.arange(6) % 3])
        f.train(KERAS)
        graph = onnx.load(f.at("out", "model.onnx")).graph
        shapes = {w.name: tuple(w.dims) for w in graph.initializer}
        assert shapes["conv2d/kernel"] == (32, 3, 3, 3) and shapes["dense/kernel"] == (54 * 54 * 64, 16) and shapes["dense_1/kernel"] == (16, 3), shapes


tap.main(globals())
