"""Grad-CAM: the formula, the place it points at, and the picture of it."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_runs import picture, write_run

from fer_jax.data.augment import normalize
from fer_jax.inference.network import FEW_FACES, grad_cam, load
from fer_jax.inference.recognizer import overlay
from fer_jax.models import xception

MODEL = {"width": 0.03, "num_middle_blocks": 0, "image_size": 96, "num_classes": 3}
CLASSES = (2, 0)


@functools.cache
def asked(head: str) -> dict[str, Any]:
    """A network, what `grad_cam` says of two pictures, and what is needed to say it by hand."""
    model = MODEL | {"head": head}
    graphdef = xception.graphdef(**model)
    shapes = jax.eval_shape(lambda key: xception.init(key, **model), jax.random.key(0))
    rng = np.random.default_rng(0)

    def drawn(shape: jax.ShapeDtypeStruct) -> jax.Array:
        spread = np.sqrt(2 / np.prod(shape.shape[:-1])) if len(shape.shape) > 1 else 0.1
        return jnp.asarray(rng.normal(0, spread, shape.shape), jnp.float32)

    params = jax.tree.map(drawn, shapes[0])
    batch_stats = jax.tree.map(lambda shape: jnp.full(shape.shape, 0.5), shapes[1])
    images = jnp.stack([picture(seed, 96) for seed in range(2)])
    classes = jnp.asarray(CLASSES)
    step = jax.jit(functools.partial(grad_cam, graphdef=graphdef))

    def head_of_one(params: Any, x: jax.Array) -> jax.Array:
        if head == "gap":
            x = x.mean(axis=(0, 1))
        else:
            for hidden in (params["hidden1"], params["hidden2"]):
                x = jnp.maximum(x.reshape(-1) @ hidden["kernel"] + hidden["bias"], 0)
        return x @ params["logits"]["kernel"] + params["logits"]["bias"]

    @jax.jit
    def by_hand(params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        merged = nnx.merge(graphdef, params, batch_stats)
        activations = merged.features(normalize(images))
        gradients = [
            jax.grad(lambda x, label=label: head_of_one(params, x)[label])(one)
            for one, label in zip(activations, CLASSES, strict=True)
        ]
        return activations, jnp.stack(gradients), merged.pooled_and_logits(normalize(images))[1]

    network = {"params": params, "batch_stats": batch_stats, "ema": {}}
    maps, probabilities = step(network, images, classes)
    zeros = jax.tree.map(jnp.zeros_like, params)
    averaged, _ = step(network | {"params": zeros, "ema": params}, images, classes)
    activations, gradients, logits = map(np.asarray, by_hand(params))
    return {
        **{"params": params, "maps": maps, "averaged": averaged, "logits": logits},
        **{"probabilities": probabilities, "activations": activations, "gradients": gradients},
    }


@pytest.mark.parametrize("head", ["gap", "mlp"])
def test_it_is_the_gradient_of_the_head_times_what_the_head_saw(head: str):
    found = asked(head)
    weights = found["gradients"].sum(axis=(1, 2), keepdims=True)
    expected = np.maximum((weights * found["activations"]).sum(axis=-1), 0)
    assert expected.max() > 0
    np.testing.assert_allclose(found["maps"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        found["probabilities"], jax.nn.softmax(found["logits"]), rtol=1e-5, atol=1e-6
    )


def test_with_the_gap_head_it_is_the_class_activation_map():
    found = asked("gap")
    kernel = np.asarray(found["params"]["logits"]["kernel"])
    signed = np.einsum("bhwc,cb->bhw", found["activations"], kernel[:, CLASSES])
    np.testing.assert_allclose(found["maps"], np.maximum(signed, 0), rtol=1e-4, atol=1e-6)
    # Before what speaks against the class is cut off, the map's mean is the logit.
    bias = np.asarray(found["params"]["logits"]["bias"])[list(CLASSES)]
    chosen = found["logits"][np.arange(2), CLASSES]
    np.testing.assert_allclose(signed.mean(axis=(1, 2)) + bias, chosen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["gap", "mlp"])
def test_the_average_is_explained_where_there_is_one(head: str):
    found = asked(head)
    np.testing.assert_array_equal(found["averaged"], found["maps"])


def test_a_run_explains_any_number_of_faces(tmp_path: Path):
    model = load(write_run(tmp_path / "run", tmp_path))
    # A batch of each size but the largest.
    faces = np.stack([picture(seed, 71) for seed in range(sum(FEW_FACES[1:]) + 1)])
    given = model.probabilities(faces).argmax(axis=1)
    maps, probabilities = model.explain(faces, given)
    cells = xception.output_size(71)
    assert maps.shape == (len(faces), cells, cells) and (maps >= 0).all()
    np.testing.assert_allclose(probabilities, model.probabilities(faces), atol=1e-5)
    for number in (0, len(faces) - 1):
        alone, _ = model.explain(faces[[number]], given[[number]])
        np.testing.assert_allclose(alone[0], maps[number], rtol=1e-4, atol=1e-6)
    nothing = model.explain(faces[:0], given[:0])
    assert nothing[0].shape == (0, cells, cells) and nothing[1].shape == (0, 7)


def test_the_overlay_glows_where_the_map_is_largest():
    face = picture(0, 60)
    heat = np.zeros((3, 3))
    heat[0, 2] = 5.0
    glowing = overlay(face, heat)
    assert glowing.shape == face.shape and glowing.dtype == np.uint8
    colourful = np.ptp(glowing.astype(int), axis=2)
    assert colourful[:15, 45:].min() > 10
    # Far from it the face is as it was, in grey.
    assert colourful[40:, :20].max() == 0
    np.testing.assert_allclose(glowing[40:, :20, 0], face[40:, :20] @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize("size", [1, 7])
def test_a_map_of_nothing_glows_nowhere(size: int):
    glowing = overlay(picture(0, 40), np.zeros((size, size)))
    assert np.ptp(glowing.astype(int), axis=2).max() == 0
