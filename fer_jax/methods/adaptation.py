"""Test-time BatchNorm adaptation: statistics of the images at hand instead of the training's.

Schneider, Rusak, Eck, Bringmann, Brendel and Bethge 2020, arXiv:2006.16971. Labels are not read,
but the network has seen every image of the set before it answers for the first: a result is of
another kind than a plain one, and stands in a table of its own. Where the set's classes or people
differ from the training's, that is taken for a change of light and normalised away, too.
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
# How many images the training's statistics count for; the paper's N, whose choice matters for
# small sets only: a set of 16 has half a say, one of 304 has 95 %.
SOURCE_IMAGES = 16
MIN_IMAGES = 32  # fewer say too little of what is the light and what the people

MomentsStep = Callable[[dict[str, Any], jax.Array], dict[str, Any]]


def check_size(records: Records) -> None:
    """Refuses a set that is too small to be adapted to.

    Raises:
      InputError: names the set and the smallest size.
    """
    if len(records) < MIN_IMAGES:
        raise InputError(
            f"{records.name} {records.split} has {len(records)} images, and --adapt needs "
            f"{MIN_IMAGES}; leave it out or name a larger split"
        )


def moments_step(network: dict[str, Any], images: jax.Array, *, graphdef: Any) -> dict[str, Any]:
    """The moments of a batch in every BatchNorm, each after the layers before used theirs.

    Args:
      network: {"params", "batch_stats", "ema"}; the average is used where there is one.
      images: uint8 [b, s, s, 3].
      graphdef: of a network whose BatchNorm keeps nothing of the statistics it had.

    Returns:
      A tree like batch_stats, of means and biased variances.
    """
    arrays = inference_arrays(network)
    return xception.apply(
        graphdef, arrays["params"], arrays["batch_stats"], normalize(images), train=True
    )[1]


def compile_moments_step(model: dict[str, Any], network_sharding: Any, mesh: Mesh) -> MomentsStep:
    """`moments_step`, jitted: images sharded over the mesh, moments on every device.

    Args:
      model: keyword arguments of `xception.Xception`.
      network_sharding: of {"params", "batch_stats", "ema"}.
      mesh: from `make_mesh`.
    """
    graphdef = xception.graphdef(**model | {"batch_norm_momentum": 0.0, "dropout": 0.0})
    return jax.jit(
        functools.partial(moments_step, graphdef=graphdef),
        in_shardings=(network_sharding, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def estimated(
    step: MomentsStep, network: dict[str, Any], batches: Iterable[jax.Array]
) -> dict[str, Any]:
    """BatchNorm's statistics over several batches of equal size.

    Args:
      step: from `compile_moments_step`.
      network: {"params", "batch_stats", "ema"}.
      batches: uint8 [b, s, s, 3] each, on the devices; images in no order.

    Returns:
      A tree like batch_stats, float32 on the host.
    """
    return _together([jax.device_get(step(network, images)) for images in batches])


def _together(moments: Sequence[Any]) -> Any:
    """The means' mean, and the variances' mean plus the variance of the means."""
    if "mean" not in moments[0]:
        return {name: _together([one[name] for one in moments]) for name in moments[0]}
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
    """A network with BatchNorm's statistics mixed from the training's and a set's.

    N / (N + n) of the training's and n / (N + n) of the set's (equation 3 of the paper), for the
    means and for the variances, with n the set's images.

    Args:
      step: from `compile_moments_step`.
      network: {"params", "batch_stats", "ema"}.
      records: the set; its labels are not read.
      batch_size: over all devices and processes; divisible by the devices.
      image_size: pixels a side.
      mesh: from `make_mesh`.
      source_images: N.

    Returns:
      The network; nothing but its batch_stats differs.
    """
    # A set lies in the order of its people; a batch must not be one of them. The first images
    # come a second time to fill the last batch.
    count = len(records)
    order = np.random.default_rng(0).permutation(count)
    filled = np.resize(order, -(-count // batch_size) * batch_size)
    batches = evaluation_batches(
        records,
        filled,
        batch_size=batch_size,
        image_size=image_size,
        process=jax.process_index(),
        num_processes=jax.process_count(),
    )
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
