"""The penalty is the distance between the sources' means and covariances, and nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fer_jax.methods.coral import coral
from fer_jax.sharding import batch_sharding, make_mesh


def draw(domain: list[int], width: int = 5, seed: int = 0) -> np.ndarray:
    """float64 [n, width] of correlated features, each domain with its own mean and spread."""
    rng = np.random.default_rng(seed)
    turns, offsets = rng.standard_normal((9, width, width)), rng.standard_normal((9, width))
    return np.stack([turns[d] @ rng.standard_normal(width) + offsets[d] for d in domain])


def by_definition(features: np.ndarray, domain: np.ndarray) -> float:
    """Covariances formed, pair after pair."""
    parts = [features[domain == d] for d in np.unique(domain)]
    apart = []
    for one, other in itertools.combinations([part for part in parts if len(part) > 1], 2):
        covariances = np.cov(one, rowvar=False) - np.cov(other, rowvar=False)
        means = one.mean(axis=0) - other.mean(axis=0)
        apart.append(np.mean(covariances**2) + np.mean(means**2))
    return float(np.mean(apart)) if apart else 0.0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.integers(0, 100))
def test_it_is_the_mean_over_pairs_by_definition(domain: list[int], seed: int):
    features = draw(domain, seed=seed)
    with jax.enable_x64(True):
        found = jax.jit(coral, static_argnums=2)(features, jnp.asarray(domain), 4)
    # A domain of one image is in no pair; num_domains may be more than the batch has.
    assert float(found) == pytest.approx(by_definition(features, np.asarray(domain)), abs=1e-12)


def test_equal_distributions_cost_nothing():
    features = np.tile(draw([0] * 20, width=64), (2, 1)).astype(np.float32)
    domain = np.repeat([0, 1], 20)
    assert abs(float(coral(jnp.asarray(features), jnp.asarray(domain), 2))) < 1e-5
    moved = features + domain[:, None].astype(np.float32)
    assert float(coral(jnp.asarray(moved), jnp.asarray(domain), 2)) == pytest.approx(1, rel=1e-4)


def test_the_gradient_is_that_of_the_penalty_and_finite_without_a_pair():
    domain = [0, 0, 0, 1, 1, 1, 1, 2]
    with jax.enable_x64(True):
        features = jnp.asarray(draw(domain))
        check_grads(
            lambda x: coral(x, jnp.asarray(domain), 3), (features,), order=1, modes=("rev",)
        )
        gradient = jax.grad(coral)(features, jnp.asarray(domain), 3)
        alone = jax.grad(coral)(features, jnp.zeros(8, jnp.int32), 3)
    assert np.abs(gradient[:7]).min() > 0
    np.testing.assert_array_equal(gradient[7], 0)
    np.testing.assert_array_equal(alone, 0)


def test_eight_devices_compare_all_their_images():
    # Every device has images of one source alone: it would find nothing to compare.
    domain = np.repeat(np.asarray([0, 1], np.int32), [10, 6])
    features = draw(domain.tolist()).astype(np.float32)
    found = []
    for count in (1, 8):
        where = batch_sharding(make_mesh(jax.devices()[:count]))
        both = jax.jit(
            jax.value_and_grad(lambda x, domain: coral(x, domain, 2)), in_shardings=(where, where)
        )
        found.append(jax.device_get(both(features, domain)))
    assert found[0][0] == pytest.approx(by_definition(features, domain), rel=1e-4)
    # float32 sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *found)
