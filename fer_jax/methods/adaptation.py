"""Test-time BatchNorm adaptation: statistics of the test images instead of the training's.

Schneider, Rusak, Eck, Bringmann, Brendel and Bethge 2020, arXiv:2006.16971. Labels are not read,
but the statistics are of the whole set before its first image is predicted, so the results have a
variant of their own. Differences of classes or people are normalized away like those of light.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fer_jax.checkpoints import inference_arrays
from fer_jax.data.augment import normalize
from fer_jax.data.batches import evaluation_batches
from fer_jax.data.records import Records
from fer_jax.errors import InputError
from fer_jax.models import xception
from fer_jax.sharding import batch_sharding, replicated, to_devices

ADAPTED = "adapted"
# The number of images that the training's statistics count for, N of the paper. It matters for
# small sets only: 16 images have half of the weight, 304 have 95 %.
SOURCE_IMAGES = 16
MIN_IMAGES = 32  # fewer depend too much on the people in them

MomentsStep = Callable[[dict[str, Any], jax.Array], dict[str, Any]]


def check_sizes(tests: Sequence[Records]) -> None:
    """Prints which sets are too small to be adapted to; InputError if all are."""
    small = [records for records in tests if len(records) < MIN_IMAGES]
    texts = [f"{records.name} {records.split} has {len(records)} images" for records in small]
    if len(small) == len(tests):
        raise InputError(f"--adapt needs {MIN_IMAGES} images of a set, and {', '.join(texts)}")
    for text in texts:
        print(f"{text}; --adapt needs {MIN_IMAGES}, so it is evaluated without")


def moments_step(network: dict[str, Any], images: jax.Array, *, graphdef: Any) -> dict[str, Any]:
    """Computes the moments of a batch, uint8 [b, s, s, 3], in every BatchNorm.

    Each layer before uses its own, for the BatchNorm of `graphdef` has momentum 0. Returns a tree
    like batch_stats, of means and biased variances.
    """
    arrays = inference_arrays(network)
    return xception.apply(
        graphdef, arrays["params"], arrays["batch_stats"], normalize(images), train=True
    )[1]


def compile_moments_step(model: dict[str, Any], network_sharding: Any, mesh: Mesh) -> MomentsStep:
    """Jits `moments_step` of `xception.Xception(**model)`: images sharded, moments everywhere."""
    graphdef = xception.graphdef(**model | {"batch_norm_momentum": 0.0, "dropout": 0.0})
    return jax.jit(
        functools.partial(moments_step, graphdef=graphdef),
        in_shardings=(network_sharding, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def estimated(
    step: MomentsStep, network: dict[str, Any], batches: Iterable[jax.Array]
) -> dict[str, Any]:
    """Returns BatchNorm's statistics over batches [b, s, s, 3], like batch_stats, on the host."""
    return _combine([jax.device_get(step(network, images)) for images in batches])


def _combine(moments: Sequence[Any]) -> Any:
    """Combines moments: the mean of means, and the mean of variances plus the means' variance."""
    if "mean" not in moments[0]:
        return {name: _combine([one[name] for one in moments]) for name in moments[0]}
    means = np.stack([one["mean"] for one in moments], dtype=np.float64)
    variances = np.stack([one["var"] for one in moments], dtype=np.float64)
    total = variances.mean(axis=0) + means.var(axis=0)
    return {"mean": np.float32(means.mean(axis=0)), "var": np.float32(total)}


def adapted(
    step: MomentsStep,
    network: dict[str, Any],
    records: Records,
    *,
    batch_size: int,
    image_size: int,
    mesh: Mesh,
    source_images: int = SOURCE_IMAGES,
) -> dict[str, Any]:
    """Returns a network whose BatchNorm statistics are mixed from the training's and a set's.

    Means and variances are N / (N + n) of the training's and n / (N + n) of the set's (equation 3
    of the paper), with N `source_images` and n the set's images, whose labels are not read.
    `batch_size` is over all devices and processes, and divisible by the devices.
    """
    # Records are sorted by people, and a batch must not be of one person. The first images fill
    # the last batch.
    count = len(records)
    order = np.random.default_rng(0).permutation(count)
    filled = np.resize(order, -(-count // batch_size) * batch_size)
    batches = evaluation_batches(records, filled, batch_size=batch_size, image_size=image_size)
    of_set = estimated(step, network, (to_devices(images, mesh) for images in batches))
    share = count / (source_images + count)
    mixed = jax.tree.map(
        lambda ours, theirs: jax.device_put(
            np.float32((1 - share) * np.asarray(ours) + share * theirs), ours.sharding
        ),
        network["batch_stats"],
        of_set,
    )
    return network | {"batch_stats": mixed}
