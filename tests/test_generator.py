"""The generator as people use it: seeds to w to images."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from nvidia_files import random_arrays, write_torch

from fer_jax.errors import InputError
from fer_jax.models import stylegan2
from fer_jax.sharding import make_mesh
from fer_jax.synthesis import Generator, latents, load_generator
from fer_jax.synthesis.generator import _map, _synthesize
from fer_jax.weights import convert, nvidia

# Sums in another order, in float32, on images of the order of 1.
ATOL_BATCH = 1e-5


@pytest.fixture(scope="module")
def file(tmp_path_factory: Any) -> Path:
    """A conditional 8 px network; its G has no mean w and no noise."""
    small: dict[str, Any] = {"resolution": 8, "channel_base": 128, "channel_max": 8}
    mapping = stylegan2.MappingConfig(
        z_dim=6, c_dim=3, w_dim=7, num_layers=2, embed_features=4, layer_features=5
    )
    configs = {
        "G": stylegan2.GeneratorConfig(**small, mapping=mapping, w_avg_beta=None, use_noise=False),
        "G_ema": stylegan2.GeneratorConfig(**small, mapping=mapping),
        "D": stylegan2.DiscriminatorConfig(**small),
    }
    arrays = {name: random_arrays(config) for name, config in configs.items()}
    for array in arrays["G_ema"].values():
        array *= 0.5
    return write_torch(tmp_path_factory.mktemp("generator") / "x.pkl", configs, arrays)


@pytest.fixture(scope="module")
def generator(file: Path) -> Generator:
    return load_generator(file)


def test_the_published_images_from_either_form(shared: Path, tmp_path: Path):
    folder = shared / "golden" / "stylegan2"
    convert.convert(folder / "cond64.pkl", tmp_path)
    outputs = np.load(folder / "cond64.npz")
    images = outputs["img_const_psi0.5_cut4"].transpose(0, 2, 3, 1)
    for path in (folder / "cond64.pkl", str(tmp_path)):
        loaded = load_generator(path)
        assert (loaded.z_dim, loaded.w_dim, loaded.c_dim) == (32, 48, 7)
        assert (loaded.num_ws, loaded.resolution) == (10, 64)
        ws = loaded.map(outputs["z"], outputs["c"], 0.5, 4)
        np.testing.assert_allclose(ws, outputs["ws_psi0.5_cut4"], atol=1e-5)
        by_index = loaded.map(outputs["z"], outputs["c"].argmax(1), 0.5, truncation_cutoff=4)
        np.testing.assert_array_equal(by_index, ws)
        found = loaded.synthesize(ws)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, images, atol=1e-4)


def test_a_seeds_latent_is_the_published_tools_own():
    rows = latents([7, 2**32 - 1, 7], 4)
    expected = np.random.RandomState(7).randn(1, 4).astype(np.float32)
    np.testing.assert_array_equal(rows[[0, 2]], np.repeat(expected, 2, axis=0))
    assert rows.dtype == np.float32 and latents([], 4).shape == (0, 4)
    for wrong in (-1, 2**32):
        with pytest.raises(InputError, match="a seed must be an integer"):
            latents([1, wrong], 4)


@pytest.mark.parametrize("noise", ["const", "random"])
def test_a_seed_gives_its_image_in_any_batch(generator: Generator, noise: str):
    z, c = latents(range(16), generator.z_dim), np.arange(16) % 3
    keys = jax.vmap(jax.random.key)(jnp.arange(16))

    def images(n: int) -> np.ndarray:
        parts = [slice(start, start + n) for start in range(0, 16 - 16 % n, n)]
        return np.concatenate(
            [
                generator.synthesize(
                    generator.map(z[part], c[part], 0.7),
                    noise,
                    key=keys[part] if noise == "random" else None,
                )
                for part in parts
            ]
        )

    expected = images(16)
    assert expected.std() > 0.1
    for n in (1, 3):
        found = images(n)
        np.testing.assert_allclose(found, expected[: len(found)], atol=ATOL_BATCH, rtol=0)


def test_eight_devices_give_the_same_images(generator: Generator):
    z, c = latents(range(16), generator.z_dim), np.arange(16) % 3
    expected = generator.synthesize(generator.map(z, c, 0.7))
    mesh = make_mesh()
    assert mesh.size == 8
    divided = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    images = generator.synthesize(generator.map(divided, c, 0.7))
    assert len(images.sharding.device_set) == 8
    np.testing.assert_allclose(images, expected, atol=ATOL_BATCH, rtol=0)


def test_noise_of_every_kind(generator: Generator):
    ws = generator.map(latents(range(3), generator.z_dim), 1)
    none = generator.synthesize(ws, "none")
    const = generator.synthesize(ws)
    assert all(np.abs(image).max() > 1e-3 for image in const - none)
    first = generator.synthesize(ws, "random", key=jax.random.key(0))
    again = generator.synthesize(ws[:1], "random", key=jax.random.key(0))
    other = generator.synthesize(ws, "random", key=jax.random.key(1))
    np.testing.assert_allclose(first[:1], again, atol=ATOL_BATCH)
    difference = np.abs(first - other).max(axis=(1, 2, 3))
    assert (difference > 1e-2).all()
    # Two samples of one w differ by their noise alone.
    twins = generator.synthesize(ws[np.zeros(3, int)], "random", key=jax.random.key(0))
    assert np.abs(twins[0] - twins[1]).max() > 1e-2


def test_a_network_without_noise_and_without_a_mean(file: Path):
    raw = load_generator(file, network="G")
    ws = raw.map(latents([0], raw.z_dim), [2])
    np.testing.assert_array_equal(raw.synthesize(ws, "const"), raw.synthesize(ws, "none"))
    with pytest.raises(InputError, match="no mean w"):
        raw.map(latents([0], raw.z_dim), [2], 0.7)


def test_bfloat16_is_near(file: Path, generator: Generator):
    half = load_generator(file, dtype="bfloat16")
    ws = generator.map(latents(range(3), generator.z_dim), 1)
    exact, found = generator.synthesize(ws), half.synthesize(ws)
    assert found.dtype == jnp.float32
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.03


def test_another_psi_compiles_nothing(generator: Generator):
    def compilations() -> list[int]:
        jitted: list[Any] = [_map, _synthesize]
        return [function._cache_size() for function in jitted]

    z = latents(range(3), generator.z_dim)
    generator.synthesize(generator.map(z, 0, 1.0))
    before = compilations()
    settings: list[Any] = [(0.5, None, 1), (np.float32(-0.3), 2, [0, 1, 2]), (0, 0, np.eye(3))]
    for psi, cutoff, c in settings:
        generator.synthesize(generator.map(z, c, psi, cutoff))
    assert compilations() == before


Z = np.zeros((2, 6), np.float32)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((Z[:, :5], 0), r"z must be \[n, 6\], not \[2, 5\]"),
        ((Z[0], 0), r"z must be \[n, 6\], not \[6\]"),
        ((Z[:0], 0), r"z must be \[n, 6\], not \[0, 6\]"),
        (("abc", 0), r"z must be numbers \[n, 6\]"),
        ((Z,), "conditional: c must be one of 3 classes"),
        ((Z, 3), "classes 0 to 2, not 3"),
        ((Z, [0, -1]), "classes 0 to 2, not -1"),
        ((Z, [0, 1, 2]), r"not int64 \[3\]"),
        ((Z, [0.0, 1.0]), r"not float64 \[2\]"),
        ((Z, np.eye(2)), r"c must be \[2, 3\], not \[2, 2\]"),
        ((Z, 0, float("nan")), "finite number, not nan"),
        ((Z, 0, float("inf")), "finite number, not inf"),
        ((Z, 0, "0.7"), "finite number, not '0.7'"),
        ((Z, 0, 0.7, -1), "number of layers or None, not -1"),
        ((Z, 0, 0.7, 1.5), "number of layers or None, not 1.5"),
    ],
)
def test_what_cannot_be_mapped(generator: Generator, arguments: Any, match: str):
    with pytest.raises(InputError, match=match):
        generator.map(*arguments)


def test_what_cannot_be_synthesized(generator: Generator):
    ws = generator.map(Z, 0)

    def refused(match: str, *arguments: Any, **how: Any) -> None:
        with pytest.raises(InputError, match=match):
            generator.synthesize(*arguments, **how)

    refused(r"ws must be \[n, 4, 7\], not \[2, 7\]", ws[:, 0])
    refused("noise cannot be 'randon'; did you mean 'random'", ws, "randon")
    refused("needs a key", ws, "random")
    refused("key must be one of jax.random.key, not int", ws, "random", key=3)
    refused(r"one key or \[2\] keys, not \[3\]", ws, "random", key=jax.random.split(Z_KEY, 3))
    refused("a key belongs to", ws, key=Z_KEY)


Z_KEY = jax.random.key(0)


def test_what_cannot_be_loaded(file: Path, tmp_path: Path):
    for how, match in (
        ({"network": "D"}, "no generator 'D'"),
        ({"network": "G_emma"}, "did you mean 'G_ema'"),
        ({"dtype": "float16"}, "dtype cannot be 'float16'"),
    ):
        with pytest.raises(ValueError, match=match):
            load_generator(file, **how)
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(ValueError, match="no network file|has no config.json"):
            load_generator(path)


def test_an_unconditional_network_takes_no_class(file: Path, tmp_path: Path):
    mapping = stylegan2.MappingConfig(
        z_dim=6, c_dim=0, w_dim=7, num_layers=1, embed_features=0, layer_features=5
    )
    config = stylegan2.GeneratorConfig(resolution=8, channel_max=2, mapping=mapping)
    params, buffers = nvidia.to_trees(nvidia.checked(config, random_arrays(config)))
    plain = Generator(config, params, buffers)
    ws = plain.map(Z)
    np.testing.assert_array_equal(plain.map(Z, np.zeros((2, 0))), ws)
    with pytest.raises(InputError, match="unconditional: it takes no class"):
        plain.map(Z, 0)
