"""Augmentation: shapes, ranges and dtypes stay, warps land where they must."""

from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_jax.data.augment import Augmentation, affine_matrix, augment, normalize, warp
from fer_jax.errors import InputError
from fer_jax.sharding import batch_sharding, make_mesh

OFF: dict[str, Any] = {
    "rotation_degrees": 0.0,
    "shift": 0.0,
    "shear": 0.0,
    "zoom": 0.0,
    "horizontal_flip": False,
}
EVERYTHING: dict[str, Any] = {
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "erasing": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
}


def batch(n: int = 8, height: int = 20, width: int = 24) -> tuple[Any, Any]:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return images, np.eye(7, dtype=np.float32)[rng.integers(0, 7, n)]


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**31), st.sampled_from(sorted(EVERYTHING)), st.booleans())
def test_shape_range_dtype_and_target_mass_stay(seed: int, name: str, geometry: bool):
    images, targets = batch()
    options = {name: EVERYTHING[name]} | ({} if geometry else OFF)
    new_images, new_targets = augment(
        images, targets, jax.random.key(seed), Augmentation(**options)
    )
    assert (new_images.shape, new_images.dtype) == (images.shape, images.dtype)
    assert (new_targets.shape, new_targets.dtype) == (targets.shape, targets.dtype)
    np.testing.assert_allclose(new_targets.sum(axis=1), 1, rtol=1e-6)
    assert float(jnp.min(new_targets)) >= 0


def test_it_is_a_pure_function_of_its_key():
    images, targets = batch()
    run = jax.jit(lambda key: augment(images, targets, key, Augmentation(**EVERYTHING)))
    first, again, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first[0], other[0])


def test_everything_off_changes_nothing():
    images, targets = batch()
    same, kept = augment(images, targets, jax.random.key(0), Augmentation(**OFF))
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(kept, targets)


@pytest.mark.parametrize("options", [{}, EVERYTHING])
@pytest.mark.usefixtures("optimized")  # other code rounds the two programs differently
def test_eight_devices_give_what_one_gives(options: dict[str, Any]):
    images, targets = batch(16)
    key = jax.random.key(3)
    run = jax.jit(lambda x, t, k: augment(x, t, k, Augmentation(**options)))
    alone = run(images, targets, key)
    sharding = batch_sharding(make_mesh())
    divided = run(*jax.device_put((images, targets), sharding), key)
    np.testing.assert_array_equal(alone[0], divided[0])
    np.testing.assert_allclose(alone[1], divided[1], rtol=1e-6)


def test_a_sharded_batch_needs_no_collective():
    images, targets = jax.device_put(batch(16), batch_sharding(make_mesh()))
    options = {k: v for k, v in EVERYTHING.items() if k not in ("mixup", "cutmix")}
    run = jax.jit(lambda x, t, k: augment(x, t, k, Augmentation(**options)))
    program = run.lower(images, targets, jax.random.key(0)).compile().as_text()
    assert program
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in program


def warped(image: Any, **parameters: object) -> np.ndarray:
    return np.asarray(warp(image[None], affine_matrix(**parameters)[None]))[0]


@pytest.mark.parametrize(("height", "width"), [(20, 24), (21, 21), (16, 17)])
def test_exact_maps_are_exact(height: int, width: int):
    image = batch(1, height, width)[0][0]
    np.testing.assert_array_equal(warped(image), image)
    np.testing.assert_array_equal(warped(image, flip=True), image[:, ::-1])
    moved = warped(image, shift=(3.0, -2.0))
    np.testing.assert_array_equal(moved[: height - 2, 3:], image[2:, : width - 3])
    # The border's pixels are repeated.
    np.testing.assert_array_equal(moved[:, 0], moved[:, 3])


@pytest.mark.parametrize("size", [20, 21])
def test_a_quarter_turn_is_rot90(size: int):
    image = batch(1, size, size)[0][0]
    np.testing.assert_array_equal(warped(image, rotation=np.pi / 2), np.rot90(image))


@pytest.mark.parametrize(
    "parameters",
    [
        {"rotation": 0.4},
        {"zoom": (1.2, 0.85)},
        {"shear": 0.2},
        {"shift": (2.3, -1.6)},
        {"rotation": -0.3, "zoom": (0.9, 1.1), "shear": -0.1, "shift": (1.5, 2.5), "flip": True},
    ],
)
def test_a_warp_agrees_with_opencv(parameters: dict[str, object]):
    # Smooth, so that OpenCV's rounding of positions to 1/32 pixel costs little.
    image = cv2.GaussianBlur(batch(1, 40, 48)[0][0], (0, 0), 3)
    matrix = np.asarray(affine_matrix(**parameters), np.float64)
    centre = np.asarray([(48 - 1) / 2, (40 - 1) / 2])
    matrix[:, 2] += centre - matrix[:, :2] @ centre
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    expected = cv2.warpAffine(image, matrix, (48, 40), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    # Measured: 2 grey levels at most, from OpenCV's fixed-point positions and weights.
    difference = np.abs(warped(image, **parameters).astype(int) - expected.astype(int))
    assert difference.max() <= 2


def test_a_zoom_above_one_enlarges_and_a_positive_shift_moves_right_and_down():
    image = np.zeros((21, 21, 3), np.uint8)
    image[8:13, 8:13] = 255
    assert (warped(image, zoom=(2.0, 2.0)) > 127).sum() > 3 * (image > 127).sum()
    assert warped(image, shift=(4.0, 2.0))[12, 14, 0] == 255
    assert warped(image, shift=(4.0, 2.0))[8, 8, 0] == 0


def test_sampled_parameters_stay_in_their_bounds():
    """A cross's bar turns by at most the bound, and nearly reaches it."""
    image = np.zeros((64, 65, 3), np.uint8)
    image[:, 31:34] = 255
    images = jnp.repeat(image[None], 200, axis=0)
    options: dict[str, Any] = OFF | {"rotation_degrees": 10.0}
    turned, _ = augment(images, jnp.ones((200, 7)), jax.random.key(0), Augmentation(**options))
    angles = []
    for picture in np.asarray(turned)[..., 0]:
        y, x = np.nonzero(picture > 127)
        angles.append(np.rad2deg(np.arctan(np.polyfit(y, x, 1)[0])))
    assert 9 < np.abs(angles).max() < 10.7
    assert abs(np.mean(angles)) < 2


def test_cutmix_weighs_targets_by_the_pasted_area():
    images = jnp.stack([np.full((30, 30, 3), v, np.uint8) for v in (0, 255)])
    targets = jnp.eye(2)
    for seed in range(5):
        mixed, new = augment(images, targets, jax.random.key(seed), Augmentation(**OFF, cutmix=1.0))
        pasted = np.mean(np.asarray(mixed)[0] == 255)
        np.testing.assert_allclose(new, [[1 - pasted, pasted], [pasted, 1 - pasted]], atol=1e-6)


def test_mixup_weighs_targets_as_pixels():
    images = jnp.stack([np.full((4, 4, 3), v, np.uint8) for v in (0, 200)])
    mixed, new = augment(images, jnp.eye(2), jax.random.key(7), Augmentation(**OFF, mixup=1.0))
    np.testing.assert_allclose(np.asarray(mixed)[0] / 200, float(new[0, 1]), atol=0.5 / 200 + 1e-6)


def test_erasing_happens_as_often_as_asked():
    images = jnp.zeros((400, 32, 32, 3), jnp.uint8)
    erased, _ = augment(
        images, jnp.ones((400, 2)), jax.random.key(1), Augmentation(**OFF, erasing=0.25)
    )
    areas = (np.asarray(erased)[..., 0] == 127).mean(axis=(1, 2))
    assert 0.17 < (areas > 0).mean() < 0.33
    assert areas.max() <= 0.25


@pytest.mark.parametrize(
    ("name", "value"),
    [("zoom", 1.0), ("shift", -0.1), ("erasing", 1.5), ("mixup", float("nan"))],
)
def test_invalid_settings_are_refused(name: str, value: float):
    options: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=f"augment.{name}"):
        Augmentation(**options)


def test_normalize_reaches_both_ends():
    np.testing.assert_array_equal(normalize(jnp.uint8([0, 255])), [-1, 1])
