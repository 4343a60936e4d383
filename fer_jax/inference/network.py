"""The network of a run's config in JAX: its shapes, and what inference computes of a batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from fer_jax.checkpoints import inference_arrays
from fer_jax.config import Config
from fer_jax.data.augment import normalize
from fer_jax.models import xception
from fer_jax.schema import TASKS
from fer_jax.sharding import batch_sharding, replicated

PredictStep = Callable[[dict[str, Any], jax.Array], jax.Array]


def model_arguments(config: Config) -> dict[str, Any]:
    """Returns the config's model and task as keyword arguments of `xception.Xception`."""
    return dict(config.model) | {"num_classes": len(TASKS[config.task])}


def network_shapes(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Returns the shapes of a run's network, replicated over the mesh.

    They are {"params", "batch_stats", "ema"} (the average is empty where the run keeps none), each
    a nested dict of `jax.ShapeDtypeStruct` with shardings.
    """
    model = model_arguments(config)
    params, batch_stats = jax.eval_shape(lambda key: xception.init(key, **model), jax.random.key(0))
    shapes = {
        "params": params,
        "batch_stats": batch_stats,
        "ema": params if config.ema_decay else {},
    }
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes
    )


def predict_step(
    network: dict[str, Any], images: jax.Array, *, graphdef: Any, flip: bool = False
) -> jax.Array:
    """Computes the class probabilities of a batch, float32 [b, classes]; rows sum to 1.

    Args:
      network: {"params", "batch_stats", "ema"}; the average is used where there is one.
      images: uint8 [b, s, s, 3].
      graphdef: the network without its arrays.
      flip: returns the mean over each image and its mirror image.
    """
    arrays = inference_arrays(network)

    def probabilities(images: jax.Array) -> jax.Array:
        logits, _ = xception.apply(
            graphdef, arrays["params"], arrays["batch_stats"], normalize(images)
        )
        return jax.nn.softmax(logits)

    if not flip:
        return probabilities(images)
    return (probabilities(images) + probabilities(images[:, :, ::-1])) / 2


def pooled_features(network: dict[str, Any], images: jax.Array, *, graphdef: Any) -> jax.Array:
    """Averages the last activations over each image, uint8 [b, s, s, 3]: float32 [b, c]."""
    arrays = inference_arrays(network)
    merged = nnx.merge(graphdef, arrays["params"], arrays["batch_stats"])
    return merged.features(normalize(images)).astype("float32").mean(axis=(1, 2))


def compile_predict_step(
    graphdef: Any, network_sharding: Any, mesh: Mesh, *, flip: bool
) -> PredictStep:
    """Jits `predict_step`: images sharded over the mesh, probabilities on every device."""
    return jax.jit(
        functools.partial(predict_step, graphdef=graphdef, flip=flip),
        in_shardings=(network_sharding, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
