"""Styles are mixed between images, their content stays, and only in training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.methods.mixstyle import mix_styles, partners
from fer_jax.models import xception
from fer_jax.sharding import batch_sharding, make_mesh

TWO_DOMAINS = jnp.asarray([0, 1], jnp.int32)


def feature_maps(n: int, seed: int = 0) -> jax.Array:
    """float32 [n, 6, 5, 4]; every image and channel has a mean and a deviation of its own."""
    rng = np.random.default_rng(seed)
    scale, offset = rng.uniform(0.5, 3, (n, 1, 1, 4)), rng.uniform(-2, 2, (n, 1, 1, 4))
    return jnp.float32(offset + scale * rng.standard_normal((n, 6, 5, 4)))


def mixed_by(x: Any, probability: float, key: jax.Array, domain: Any) -> jax.Array:
    return mix_styles(x, 1, probability=probability, key=key, domain=domain)


def moments(x: Any) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=(1, 2)), x.std(axis=(1, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_probability_zero_is_the_identity_and_shape_and_dtype_stay(dtype: str):
    x = jnp.asarray(feature_maps(8), dtype)
    domain = jnp.arange(8, dtype=jnp.int32) % 3
    for probability in (0.0, 1.0):
        mixed = mixed_by(x, probability, jax.random.key(0), domain)
        assert (mixed.shape, mixed.dtype) == (x.shape, x.dtype)
        assert np.array_equal(mixed, x) is (probability == 0)


def test_the_output_has_the_mixed_statistics_and_the_inputs_content():
    x = feature_maps(2)
    mean, deviation = moments(x)
    keys = jax.random.split(jax.random.key(0), 50)
    outputs = jax.vmap(lambda key: mixed_by(x, 1.0, key, TWO_DOMAINS))(keys)
    shares = []
    for mixed in np.asarray(outputs):
        mixed_mean, mixed_deviation = moments(mixed)
        for image, other in ((0, 1), (1, 0)):
            # Two images of two domains: each has the other for a partner.
            share = (mixed_mean[image] - mean[other]) / (mean[image] - mean[other])
            np.testing.assert_allclose(share, share[0], atol=1e-4)
            between = share[0] * deviation[image] + (1 - share[0]) * deviation[other]
            np.testing.assert_allclose(mixed_deviation[image], between, rtol=1e-4)
            shares.append(share[0])
        standard = (mixed - mixed_mean[:, None, None]) / mixed_deviation[:, None, None]
        before = (x - mean[:, None, None]) / deviation[:, None, None]
        np.testing.assert_allclose(standard, before, atol=1e-4)
    assert min(shares) > -1e-4 and max(shares) < 1 + 1e-4
    # Beta(0.1, 0.1) has half of its mass within 0.002 of either end and reaches the middle.
    assert np.mean(np.abs(np.asarray(shares) - 0.5) > 0.49) > 0.5
    assert np.min(np.abs(np.asarray(shares) - 0.5)) < 0.3
    assert len(np.unique(np.round(shares, 4))) > 20


def test_partners_are_of_another_domain_where_there_is_one():
    domain = np.asarray([0] * 9 + [1] * 2 + [2] * 5)
    keys = jax.random.split(jax.random.key(0), 400)
    sampled = np.asarray(jax.vmap(lambda key: partners(key, jnp.asarray(domain)))(keys))
    assert (domain[sampled] != domain).all()
    # The first image has seven strangers, all equally likely: 57 draws each of 400.
    counts = np.bincount(sampled[:, 0], minlength=16)
    assert counts[:9].sum() == 0 and counts[9:].min() > 30 and counts[9:].max() < 90
    alone = np.asarray(jax.vmap(lambda key: partners(key, jnp.zeros(4, jnp.int32)))(keys))
    assert np.bincount(alone.ravel(), minlength=4).min() > 300


def test_a_batch_is_mixed_as_often_as_the_probability_says():
    x = feature_maps(2)
    keys = jax.random.split(jax.random.key(1), 1000)
    mixed = jax.vmap(lambda key: mixed_by(x, 0.3, key, TWO_DOMAINS))(keys)
    changed = (np.asarray(mixed) != x).any(axis=(1, 2, 3, 4))
    assert 0.25 < changed.mean() < 0.35


def test_no_gradient_flows_through_the_statistics():
    x = feature_maps(2)
    arguments = 1.0, jax.random.key(3), TWO_DOMAINS
    gradient = jax.grad(lambda x: mixed_by(x, *arguments).sum())(x)
    ratio = moments(np.asarray(mixed_by(x, *arguments)))[1] / moments(x)[1]
    expected = np.broadcast_to(ratio[:, None, None], x.shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)
    assert np.abs(ratio - 1).max() > 0.05


def test_the_network_mixes_in_training_only():
    model = {"num_classes": 7, "width": 0.03, "num_middle_blocks": 0, "image_size": 71}
    model["dropout"] = 0.0
    network = jax.eval_shape(lambda key: xception.init(key, **model), jax.random.key(0))
    graphdef = xception.graphdef(**model)
    images = jax.ShapeDtypeStruct((4, 71, 71, 3), jnp.float32)
    domain = jnp.asarray([0, 0, 1, 1], jnp.int32)
    mix = functools.partial(mix_styles, probability=1.0, key=jax.random.key(2), domain=domain)

    def program(train: bool, mix: xception.Mix | None) -> str:
        step = jax.jit(lambda p, s, x: xception.apply(graphdef, p, s, x, train=train, mix=mix))
        return step.lower(*network, images).as_text()

    assert program(False, mix) == program(False, None)
    assert program(True, mix) != program(True, None)


def test_eight_devices_borrow_from_each_other():
    x = feature_maps(16)
    domain = np.repeat(np.asarray([0, 1], np.int32), [10, 6])
    found = []
    for count in (1, 8):
        where = batch_sharding(make_mesh(jax.devices()[:count]))
        mix = jax.jit(
            lambda x, domain: mixed_by(x, 1.0, jax.random.key(4), domain),
            in_shardings=(where, where),
            out_shardings=where,
        )
        found.append(np.asarray(mix(x, domain)))
    np.testing.assert_allclose(*found, atol=1e-5)
    assert np.abs(found[0] - np.asarray(x)).max() > 0.1
