"""Grad-CAM: the formula, the place it points at, and the picture of it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_runs import picture, write_run

from fer_jax.data.augment import normalize
from fer_jax.inference.explain import BATCH_SIZE, explain, grad_cam, overlay
from fer_jax.inference.load import load
from fer_jax.models import xception

MODEL = {"width": 0.03, "num_middle_blocks": 1, "image_size": 96, "num_classes": 3}


def network(head: str = "gap") -> tuple[dict, dict]:
    model = MODEL | {"head": head}
    params, batch_stats = xception.init(jax.random.key(1), **model)
    return model, {"params": params, "batch_stats": batch_stats, "ema": {}}


def test_with_the_gap_head_it_is_the_class_activation_map():
    model, arrays = network()
    graphdef = xception.graphdef(**model)
    images = jnp.stack([picture(seed, 96) for seed in range(4)])
    classes = jnp.asarray([0, 1, 2, 1])
    maps, probabilities = grad_cam(arrays, images, classes, graphdef=graphdef)
    merged = nnx.merge(graphdef, arrays["params"], arrays["batch_stats"])
    activations = np.asarray(merged.features(normalize(images)))
    kernel = np.asarray(arrays["params"]["logits"]["kernel"])
    signed = np.einsum("bhwc,cb->bhw", activations, kernel[:, classes])
    np.testing.assert_allclose(maps, np.maximum(signed, 0), atol=1e-6)
    # Before what speaks against the class is cut off, the map's mean is the logit.
    logits, _ = xception.apply(graphdef, arrays["params"], arrays["batch_stats"], normalize(images))
    bias = np.asarray(arrays["params"]["logits"]["bias"])[classes]
    chosen = np.asarray(logits)[np.arange(4), classes]
    np.testing.assert_allclose(signed.mean(axis=(1, 2)) + bias, chosen, atol=1e-5)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-6)


def test_with_the_mlp_head_it_is_the_gradient_of_the_head():
    model, arrays = network("mlp")
    graphdef = xception.graphdef(**model)
    images = jnp.stack([picture(seed, 96) for seed in range(2)])
    maps, _ = grad_cam(arrays, images, jnp.asarray([2, 0]), graphdef=graphdef)
    merged = nnx.merge(graphdef, arrays["params"], arrays["batch_stats"])
    activations = merged.features(normalize(jnp.asarray(images)))
    for image, label in ((0, 2), (1, 0)):
        gradient = jax.grad(lambda a, label=label: merged.classify(a[None])[0, label])(
            activations[image]
        )
        expected = jax.nn.relu((gradient.sum(axis=(0, 1)) * activations[image]).sum(axis=-1))
        np.testing.assert_allclose(maps[image], expected, rtol=1e-4, atol=1e-7)
    assert maps.max() > 0


def test_the_average_is_explained_where_there_is_one():
    model, arrays = network()
    graphdef = xception.graphdef(**model)
    images, classes = jnp.stack([picture(0, 96)]), jnp.asarray([0])
    plain, _ = grad_cam(arrays, images, classes, graphdef=graphdef)
    averaged = arrays | {
        "ema": arrays["params"],
        "params": jax.tree.map(jnp.zeros_like, arrays["params"]),
    }
    found, _ = grad_cam(averaged, images, classes, graphdef=graphdef)
    np.testing.assert_array_equal(found, plain)


def test_a_run_explains_any_number_of_faces(tmp_path: Path):
    model = load(write_run(tmp_path / "run", tmp_path))
    faces = [picture(seed, 32 + seed) for seed in range(BATCH_SIZE + 3)]
    given = model.probabilities(faces).argmax(axis=1)
    maps, probabilities = explain(model, faces, given)
    cells = xception.output_size(71)
    assert maps.shape == (len(faces), cells, cells) and (maps >= 0).all()
    np.testing.assert_allclose(probabilities, model.probabilities(faces), atol=1e-5)
    alone, _ = explain(model, faces[-1:], given[-1:])
    np.testing.assert_allclose(alone[0], maps[-1], rtol=1e-4, atol=1e-6)
    nothing = explain(model, [], [])
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
