"""Augmentation of what the discriminator sees: the published numbers, and how often it happens."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erfinv

from fer_jax.training import ada

NOTHING = {
    **dict.fromkeys(("mirror", "quarter_turns", "turn_before", "turn_after"), 0.0),
    **dict.fromkeys(("brightness", "inverted", "hue"), 0.0),
    **dict.fromkeys(("scale", "anisotropy", "contrast", "saturation"), 1.0),
    **dict.fromkeys(("whole_shift", "shift"), 0.0),
}
augment = jax.jit(ada.augment)


def draws(n: int, **values: float) -> dict[str, jax.Array]:
    """The same for every image."""
    return {
        name: jnp.full((n, 2) if name.endswith("shift") else (n,), value, jnp.float32)
        for name, value in (NOTHING | values).items()
    }


def at_percentile(groups: str, share: float) -> dict[str, float]:
    """What the goldens were made with: every operation happens, at this quantile of its draws."""
    both = 2 * share - 1
    normal = float(erfinv(both))
    values = {
        "blit": {
            "mirror": math.floor(2 * share),
            "quarter_turns": math.floor(4 * share),
            "whole_shift": both * 0.125,
        },
        "geom": {
            "scale": 2 ** (0.2 * normal),
            "turn_before": both * math.pi,
            "anisotropy": 2 ** (0.2 * normal),
            "shift": 0.125 * normal,
        },
        "color": {
            "brightness": 0.2 * normal,
            "contrast": 2 ** (0.5 * normal),
            "inverted": math.floor(2 * share),
            "hue": both * math.pi,
            "saturation": 2**normal,
        },
    }
    chosen = values.values() if groups == "bgc" else [values[groups]]
    return {name: value for group in chosen for name, value in group.items()}


@pytest.fixture(scope="module")
def outputs(shared: Path) -> dict[str, np.ndarray]:
    loaded = np.load(shared / "golden" / "stylegan2" / "uncond64.npz")
    images = [key for key in loaded if key == "real" or key.startswith("ada_")]
    return {key: np.transpose(loaded[key], (0, 2, 3, 1)) for key in images}


def test_it_is_the_published_augmentation(outputs: dict[str, np.ndarray]):
    real = outputs["real"]
    checked = 0
    for key, expected in outputs.items():
        groups, _, share = key.removeprefix("ada_").partition("_pct")
        if groups in ("bgc", "blit", "geom", "color"):
            found = augment(real, draws(len(real), **at_percentile(groups, float(share))))
            largest = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, atol=1e-4 * largest, rtol=0, err_msg=key)
            assert np.abs(expected - real).max() > 0.5
            checked += 1
    assert checked == 7


def test_an_image_that_nothing_happens_to_stays():
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)
    np.testing.assert_allclose(augment(images, draws(2)), images, atol=1e-6)
    never = ada.sample(jax.random.key(1), 2, 0.0)
    np.testing.assert_allclose(augment(images, never), images, atol=1e-6)


def test_each_operation_does_what_its_name_says():
    images = np.asarray(jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1))
    # The filter is nearly symmetric: what is mirrored comes to lie a tenth of a pixel off.
    off = 0.1 * 2 / 15 + 1e-3
    smooth = np.broadcast_to(np.linspace(-1, 1, 16)[None, None, :, None], images.shape)
    mirrored = augment(smooth, draws(1, mirror=1.0))
    np.testing.assert_allclose(mirrored[:, :, 3:-3], smooth[:, :, ::-1][:, :, 3:-3], atol=off)
    turned = augment(smooth, draws(1, quarter_turns=1.0))
    sideways = np.swapaxes(smooth, 1, 2)[:, ::-1]
    np.testing.assert_allclose(turned[:, 3:-3], sideways[:, 3:-3], atol=off)
    moved = augment(images, draws(1, whole_shift=0.125))
    np.testing.assert_allclose(moved[:, 8:, 8:], images[:, 6:-2, 6:-2], atol=1e-5)
    np.testing.assert_allclose(augment(images, draws(1, brightness=0.3)), images + 0.3, atol=1e-5)
    np.testing.assert_allclose(augment(images, draws(1, contrast=2.0)), images * 2, atol=1e-5)
    grey = images.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        augment(images, draws(1, saturation=0.0)), np.broadcast_to(grey, images.shape), atol=1e-5
    )
    inverted = augment(images, draws(1, inverted=1.0))
    np.testing.assert_allclose(inverted.mean(axis=-1), -grey[..., 0], atol=1e-5)
    turned = augment(images, draws(1, hue=2 * math.pi / 3))
    np.testing.assert_allclose(turned, images[..., [2, 0, 1]], atol=1e-5)


def test_operations_happen_as_often_as_asked():
    n, p = 20_000, 0.3
    sampled = ada.sample(jax.random.key(0), n, p)

    def share(*names: str) -> float:
        rest = [np.asarray(sampled[name]).reshape(n, -1) != NOTHING[name] for name in names]
        return float(np.concatenate(rest, axis=1).any(axis=1).mean())

    # Half of the mirrorings and a quarter of the quarter turns are by nothing.
    expected = {"mirror": p / 2, "quarter_turns": p * 3 / 4, "inverted": p / 2}
    for name in ("whole_shift", "scale", "anisotropy", "shift", "brightness", "contrast", "hue"):
        expected[name] = p
    for name, probability in expected.items():
        assert share(name) == pytest.approx(probability, abs=0.015), name
    assert share("turn_before", "turn_after") == pytest.approx(p, abs=0.015)
    logs = np.log2(np.asarray(sampled["contrast"]))
    assert logs[logs != 0].std() == pytest.approx(ada.CONTRAST, rel=0.05)
    assert np.abs(sampled["whole_shift"]).max() <= ada.MAX_SHIFT


def test_the_generator_learns_through_it():
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)
    sampled = draws(2, **at_percentile("bgc", 0.6))
    direction = jax.random.normal(jax.random.key(1), images.shape)
    weights = jax.random.normal(jax.random.key(2), images.shape)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(ada.augment(x, sampled) * weights)))(images)
    # It is linear in the image but for a shift of all values.
    there = jnp.sum((ada.augment(images + direction, sampled) - augment(images, sampled)) * weights)
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(there), rel=1e-3)


def test_the_probability_follows_how_well_the_images_are_known():
    p = jnp.float32(0.2)
    assert float(ada.adjust(p, jnp.float32(0.9), 5_000)) == pytest.approx(0.21)
    assert float(ada.adjust(p, jnp.float32(0.3), 5_000)) == pytest.approx(0.19)
    assert float(ada.adjust(jnp.float32(0.001), jnp.float32(0.0), 5_000)) == 0.0
    assert float(ada.adjust(jnp.float32(0.999), jnp.float32(1.0), 5_000)) == 1.0
    faster = ada.adjust(p, jnp.float32(0.9), 5_000, full_speed=50_000)
    assert float(faster) == pytest.approx(0.3)
