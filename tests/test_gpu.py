"""What only a GPU can show: `JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu` on a machine with one.

On others these are skipped, with a line.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_stylegan2 import ATOL_IMAGE, GOLDENS, Golden, image_keys

from fer_jax.data.augment import Augmentation
from fer_jax.models import xception
from fer_jax.models.layers import Unnormalized, affine, grouped_conv3x3, shifted_conv3x3
from fer_jax.training.step import StepOptions, init_state, train_step

pytestmark = pytest.mark.gpu
MODEL = {"num_classes": 7, "width": 0.25, "num_middle_blocks": 2, "image_size": 96, "dropout": 0.0}


@pytest.fixture(scope="module")
def gpu() -> Any:
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU that JAX sees, and JAX_PLATFORMS=cuda,cpu")
    return jax.devices()[0]


def test_in_float32_the_network_is_the_cpus(gpu: Any):
    params, batch_stats = xception.init(jax.random.key(0), **MODEL)
    images = np.random.default_rng(0).uniform(-1, 1, (4, 96, 96, 3)).astype(np.float32)
    graphdef = xception.graphdef(**MODEL)

    def loss(params: Any, batch_stats: Any, images: Any) -> Any:
        logits, moved = xception.apply(graphdef, params, batch_stats, images, train=True)
        return jnp.mean(jnp.sum(logits**2, axis=-1)), (logits, moved)

    found = []
    for device in (gpu, jax.devices("cpu")[0]):
        # By default a GPU multiplies float32 in fewer bits.
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            arguments = jax.device_put((params, batch_stats, images), device)
            f = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (value, (logits, moved)), gradient = jax.device_get(f(*arguments))
            found.append((value, logits, moved, optax.tree.norm(gradient)))
    # Sums in another order, through BatchNorm over four images: of eight CPU devices and one,
    # gradients differ by up to 5e-3.
    (value, logits, moved, norm), (value2, logits2, moved2, norm2) = found
    np.testing.assert_allclose(value, value2, rtol=1e-3)
    np.testing.assert_allclose(logits, logits2, atol=1e-3 * np.abs(logits2).max(), rtol=0)
    np.testing.assert_allclose(norm, norm2, rtol=5e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), moved, moved2)


@pytest.mark.parametrize("relu", [False, True])
def test_both_depthwise_forms_are_the_same(gpu: Any, relu: bool):
    keys = jax.random.split(jax.random.key(0), 4)
    scale, offset = (jax.random.normal(key, (24,)) for key in keys[:2])
    x = Unnormalized(jax.random.normal(keys[2], (2, 19, 17, 24)), scale, offset)
    kernel = jax.random.normal(keys[3], (3, 3, 24))

    def grouped(x: Unnormalized, kernel: jax.Array) -> jax.Array:
        inputs = affine(x)
        return grouped_conv3x3(jax.nn.relu(inputs) if relu else inputs, kernel)

    def shifted(x: Unnormalized, kernel: jax.Array) -> jax.Array:
        return shifted_conv3x3(x, kernel, relu)

    with jax.default_matmul_precision("highest"):
        results = []
        for form in (grouped, shifted):
            y, pull = jax.vjp(form, x, kernel)
            results.append((y, pull(jnp.cos(y))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), *results)


def test_a_bfloat16_step_trains(gpu: Any):
    del gpu  # it is the default device
    model = MODEL | {"dtype": "bfloat16"}
    optimizer = optax.adam(1e-3)
    state = init_state(jax.random.key(0), optimizer, model=model, ema=False)
    options = StepOptions(
        graphdef=xception.graphdef(**model),
        optimizer=optimizer,
        class_weights=np.ones(7, np.float32),
        augmentation=Augmentation(
            rotation_degrees=0.0, shift=0.0, shear=0.0, zoom=0.0, horizontal_flip=False
        ),
    )
    step = jax.jit(
        functools.partial(train_step, options=options),
        donate_argnums=0,
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (32, 96, 96, 3), dtype=np.uint8),
        "target": np.eye(7, dtype=np.float32)[rng.integers(0, 7, 32)],
    }
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics.loss.total))
    # It learns one batch by heart: from about log 7 = 1.95.
    assert losses[0] > 1.5 and losses[-1] < 0.3


@pytest.mark.parametrize("name", GOLDENS)
def test_generated_images_are_the_published_ones(gpu: Any, name: str, shared: Path):
    del gpu  # it is the default device
    golden = Golden(shared / "golden" / "stylegan2", name)
    with jax.default_matmul_precision("highest"):
        for key in image_keys(golden):
            blocks, expected = golden.images(key, "float32", "G" if key.endswith("_G") else "G_ema")
            found = blocks[-1][2][: len(expected)]
            np.testing.assert_allclose(found, expected, atol=ATOL_IMAGE, rtol=0, err_msg=key)
