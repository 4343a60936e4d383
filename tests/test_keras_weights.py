"""Keras' Xception with random weights and statistics gives the same numbers here."""

import os
from pathlib import Path
from typing import Any

import h5py
import jax
import keras
import numpy as np
import optax
import pytest
from hostile_files import H5, write_h5
from keras.src.legacy.saving import legacy_h5_format

from fer_jax.__main__ import main
from fer_jax.errors import InputError
from fer_jax.models import xception
from fer_jax.sharding import make_mesh, state_sharding
from fer_jax.training import classifier, initial
from fer_jax.training.step import init_state
from fer_jax.weights import keras as weights
from fer_jax.weights.keras import read_xception

# Keras' own variables lack numpy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 71
MODEL = {"num_classes": 7, "image_size": SIZE}
TOP = ["logits/bias", "logits/kernel"]


@pytest.fixture(scope="module")
def reference() -> Any:
    """Keras' network, every array random and non-trivial."""
    # An earlier layer makes the automatic numbers start elsewhere than at 0.
    keras.layers.Conv2D(1, 1)
    keras.layers.BatchNormalization()
    network: Any = keras.applications.Xception  # its hints forbid None, its text asks for it
    model = network(
        weights=None, input_shape=(SIZE, SIZE, 3), classes=7, classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        arrays = []
        for weight in layer.weights:
            fan = max(1, int(np.prod(weight.shape[:-1])))
            if "depthwise" in weight.path:
                fan = 9
            if "variance" in weight.path or "gamma" in weight.path:
                arrays.append(rng.uniform(0.5, 1.5, weight.shape))
            elif len(weight.shape) == 1:
                arrays.append(rng.normal(0, 0.1, weight.shape))
            else:
                arrays.append(rng.normal(0, fan**-0.5, weight.shape))
        if arrays:
            layer.set_weights(arrays)
    return model


@pytest.fixture(scope="module")
def fresh() -> tuple[dict[str, Any], dict[str, Any]]:
    return jax.jit(lambda key: xception.init(key, **MODEL))(jax.random.key(0))


def load_xception(path: Path, params: Any, batch_stats: Any) -> tuple[Any, Any, list[str]]:
    """A network's arrays with those of a Keras file, and the parts that stay."""
    own = {"params": params, "batch_stats": batch_stats}
    filled, fresh = initial.fill(weights.read(path), own, str(path))
    return filled["params"], filled["batch_stats"], fresh


def save(model: Any, path: Path) -> Path:
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


def without_top(model: Any) -> Any:
    return keras.Model(model.input, model.get_layer("block14_sepconv2_act").output)


@pytest.mark.parametrize("name", ["x.h5", "x.weights.h5"])
def test_features_and_logits_are_keras_own(name: str, reference: Any, fresh: Any, tmp_path: Path):
    path = save(reference, tmp_path / name)
    params, batch_stats, left = load_xception(path, *fresh)
    assert left == []
    images = np.random.default_rng(1).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    expected = keras.Model(
        reference.input, [without_top(reference).output, reference.output]
    ).predict_on_batch(images)
    graphdef = xception.graphdef(**MODEL)
    network = jax.tree.map(lambda x: x, (params, batch_stats))

    @jax.jit
    def run(params: Any, batch_stats: Any, images: Any) -> Any:
        from flax import nnx

        return nnx.merge(graphdef, params, batch_stats).features(images)

    features = run(*network, images)
    logits, _ = jax.jit(lambda p, s, x: xception.apply(graphdef, p, s, x))(*network, images)
    # Activations are of the order of 1; float32 sums in another order differ by about 5e-6.
    np.testing.assert_allclose(features, expected[0], atol=2e-5, rtol=0)
    np.testing.assert_allclose(logits, expected[1], atol=1e-5, rtol=0)
    assert np.abs(expected[0]).max() > 0.1


@pytest.mark.parametrize("name", ["x.h5", "x.weights.h5"])
def test_a_file_without_top_leaves_the_head_fresh(
    name: str, reference: Any, fresh: Any, tmp_path: Path
):
    path = save(without_top(reference), tmp_path / name)
    params, _, left = load_xception(path, *fresh)
    assert left == TOP
    np.testing.assert_array_equal(params["logits"]["kernel"], fresh[0]["logits"]["kernel"])
    kernel = reference.get_layer("block14_sepconv2").get_weights()[1][0, 0]
    np.testing.assert_array_equal(params["exit3"]["pointwise"]["kernel"], kernel)


def test_the_first_keras3_files_without_layer_names(reference: Any, fresh: Any, tmp_path: Path):
    named = save(reference, tmp_path / "named.weights.h5")
    expected = load_xception(named, *fresh)
    with h5py.File(named, "a") as file:
        layers: Any = file["layers"]
        for layer in layers.values():
            layer["vars"].attrs.pop("name", None)
    jax.tree.map(np.testing.assert_array_equal, load_xception(named, *fresh), expected)


def test_another_number_of_classes_leaves_the_head_fresh(reference: Any, tmp_path: Path):
    path = save(reference, tmp_path / "x.h5")
    params, batch_stats = jax.eval_shape(
        lambda key: xception.init(key, **MODEL | {"num_classes": 2}), jax.random.key(0)
    )
    assert load_xception(path, params, batch_stats)[2] == TOP


def test_what_does_not_fit_is_refused(reference: Any, fresh: Any, tmp_path: Path):
    (tmp_path / "text.h5").write_text("<html>")
    with pytest.raises(InputError, match="not an HDF5 file"):
        load_xception(tmp_path / "text.h5", *fresh)
    with pytest.raises(InputError, match="no weights file"):
        load_xception(tmp_path / "absent.h5", *fresh)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="no Keras weights"):
        load_xception(tmp_path / "other.h5", *fresh)
    path = save(reference, tmp_path / "x.weights.h5")
    for change in ({"width": 0.25}, {"num_middle_blocks": 2}, {"num_middle_blocks": 9}):
        other = jax.eval_shape(lambda c=change: xception.init(jax.random.key(0), **MODEL | c))
        with pytest.raises(InputError, match="num_middle_blocks"):
            load_xception(path, *other)
    small = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(3)])
    with pytest.raises(InputError, match="not Keras' Xception: layer block1_conv1 is missing"):
        load_xception(save(small, tmp_path / "small.weights.h5"), *fresh)
    with h5py.File(path, "a") as file:
        layers: Any = file["layers"]
        del layers["separable_conv2d_3"]
    with pytest.raises(InputError, match="is missing"):
        load_xception(path, *fresh)


@pytest.mark.parametrize("name", ["x.h5", "x.weights.h5"])
def test_a_converted_file_is_the_same_start(
    name: str, reference: Any, fresh: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, out = save(reference, tmp_path / name), tmp_path / "start"
    for _ in range(2):  # the same command again gives the same
        assert main(["convert", str(path), str(out)]) == 0
        assert "Xception, 7 classes, 20,875,823 parameters" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ["arrays.safetensors", "config.json"]
    jax.tree.map(
        np.testing.assert_array_equal, load_xception(out, *fresh), load_xception(path, *fresh)
    )


def test_training_starts_from_a_converted_file_without_top(
    reference: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, out = save(without_top(reference), tmp_path / "x.weights.h5"), tmp_path / "start"
    assert main(["convert", str(path), str(out)]) == 0
    assert "no top" in capsys.readouterr().out
    optimizer = optax.sgd(0.1)

    def init(key: jax.Array) -> Any:
        return init_state(key, optimizer, model=MODEL | {"dtype": "float32"}, ema=True)

    shapes = jax.eval_shape(init, jax.random.key(0))
    sharding = state_sharding(shapes, make_mesh(), "data_parallel")
    found = weights.read(out)
    state = classifier.first_state(init, jax.random.key(0), sharding, found, str(out))
    assert f"started from {out}; fresh: {', '.join(TOP)}" in capsys.readouterr().out
    kernel = reference.get_layer("block14_sepconv2").get_weights()[1][0, 0]
    for params in (state.params, state.ema):
        np.testing.assert_array_equal(params["exit3"]["pointwise"]["kernel"], kernel)


def test_a_converted_folder_that_does_not_fit_is_refused(
    reference: Any, fresh: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "start"

    def refused(match: str, params: Any = fresh[0]) -> None:
        with pytest.raises(InputError, match=match) as caught:
            load_xception(out, params, fresh[1])
        assert "\n" not in str(caught.value)

    out.mkdir()
    refused("is not a folder that fer-jax convert wrote")
    assert main(["convert", str(save(reference, tmp_path / "x.h5")), str(out)]) == 0
    narrow = fresh[0] | {"stem1": {**fresh[0]["stem1"], "kernel": np.zeros((3, 3, 3, 16))}}
    refused(r"params/stem1/kernel is \(3, 3, 3, 32\) and \(3, 3, 3, 16\)", narrow)
    arrays = out / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-100])
    refused("is damaged")
    capsys.readouterr()
    (tmp_path / "text.h5").write_text("<html>")
    assert main(["convert", str(tmp_path / "text.h5"), str(tmp_path / "new")]) == 2
    assert main(["convert", str(tmp_path / "absent.h5"), str(tmp_path / "new")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "is not an HDF5 file" in errors[0]
    assert "no weights file" in errors[1] and not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", H5)
def test_a_crafted_file_reads_nothing_else(what: str, tmp_path: Path):
    path = write_h5(tmp_path / "crafted.weights.h5", what)
    with pytest.raises(InputError, match=H5[what][1]) as raised:
        read_xception(path)
    assert str(raised.value).count("\n") == 0 and str(path) in str(raised.value)


def test_flipped_bits_are_one_line(tmp_path: Path):
    path = tmp_path / "small.weights.h5"
    save(keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(3)]), path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        bits = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(bits), rng.integers(1, 40))
        bits[places] ^= np.uint8(1) << rng.integers(0, 8, len(places)).astype(np.uint8)
        path.write_bytes(bits.tobytes())
        with pytest.raises(InputError) as raised:
            read_xception(path)
        assert str(raised.value).count("\n") == 0


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "x.h5")
    with pytest.raises(InputError, match="no weights file"):
        read_xception(tmp_path / "x.h5")
