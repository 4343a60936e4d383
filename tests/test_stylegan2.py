"""The networks against published outputs, and against the paper's formulas written out."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nvidia_files import random_arrays, to_published

from fer_jax.errors import InputError
from fer_jax.models import stylegan2
from fer_jax.weights import nvidia
from fer_jax.weights.nvidia import Network, to_trees

GOLDENS = ("uncond64", "cond64", "paper256s", "tf_uncond64")
# The gates of the goldens' README.
# Half the time goes into compiling, and most of that into making it fast.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ATOL_W, ATOL_IMAGE, RTOL_BLOCK, RMS_BFLOAT16 = 1e-5, 1e-4, 1e-4, 0.03


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.transpose(array, (0, 2, 3, 1))


class Golden:
    """One file's outputs and networks. Every function is compiled for one batch size."""

    def __init__(self, folder: Path, name: str):
        self.outputs = dict(np.load(folder / f"{name}.npz"))
        self.networks = nvidia.read_networks(folder / f"{name}.pkl")
        self.trees = {name: to_trees(network) for name, network in self.networks.items()}
        config = self.networks["G_ema"].config
        assert isinstance(config, stylegan2.GeneratorConfig)
        self.config = config
        self.n = len(self.outputs["z"])
        self.c = self.outputs["c"] if config.mapping.c_dim else None
        self.map_latents = compiled(
            lambda params: stylegan2.map_latents(config.mapping, params, self.outputs["z"], self.c)
        )
        self.blocks = functools.cache(self._blocks)
        critic = self.networks["D"].config
        assert isinstance(critic, stylegan2.DiscriminatorConfig)
        self.discriminate = compiled(
            functools.partial(stylegan2.discriminate, critic),
            static_argnums=3,
        )

    def ws(self, which: str, psi: float, cutoff: int | None = None) -> jax.Array:
        params, buffers = self.trees[which]
        w = self.map_latents(params["mapping"])
        return stylegan2.truncate(w, buffers["w_avg"], self.config.num_ws, psi, cutoff)

    def _blocks(self, dtype: str) -> Any:
        def run(params: Any, ws: Any, noise: Any) -> Any:
            return list(stylegan2.synthesis_blocks(self.config, params, ws, noise, dtype))

        return compiled(run)

    def images(self, key: str, dtype: str, which: str = "G_ema") -> tuple[Any, np.ndarray]:
        """What an "img_*" output should be, and what it is: (blocks, reference)."""
        expected, psi = nhwc(self.outputs[key]), 1.0
        if key in ("img_mix", "img_wplus"):
            ws = self.outputs["mix_ws" if key == "img_mix" else "wplus"]
        else:
            psi, _, cutoff = key.split("_psi")[1].removesuffix("_G").partition("_cut")
            ws = self.ws(which, float(psi), int(cutoff) if cutoff else None)
        params, buffers = self.trees[which]
        noise = buffers["noise"]
        if "_none_" in key:
            noise = {name: jnp.zeros_like(array) for name, array in noise.items()}
        if "_random_" in key:
            noise = {name: nhwc(self.outputs[f"noise_{name}"]) for name in noise}
        noise = {name: self._whole_batch(array) for name, array in noise.items()}
        blocks = self.blocks(dtype)(params["synthesis"], self._whole_batch(ws), noise)
        return blocks, expected

    def _whole_batch(self, array: Any) -> np.ndarray:
        return np.resize(array, (self.n, *array.shape[1:]))


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request: Any, shared: Path) -> Golden:
    return Golden(shared / "golden" / "stylegan2", request.param)


def image_keys(golden: Golden) -> Iterator[str]:
    keys = [key for key in golden.outputs if key.startswith("img_")]
    assert len(keys) >= 4
    yield from keys


def test_the_mapping_is_the_published_one(golden: Golden):
    checked = 0
    for key, expected in golden.outputs.items():
        if key.startswith("ws_psi"):
            psi, _, cutoff = key.removeprefix("ws_psi").partition("_cut")
            found = golden.ws("G_ema", float(psi), int(cutoff) if cutoff else None)
            np.testing.assert_allclose(found, expected, atol=ATOL_W, rtol=0, err_msg=key)
            checked += 1
    assert checked >= 1


def test_images_are_the_published_ones(golden: Golden):
    for key in image_keys(golden):
        blocks, expected = golden.images(key, "float32", "G" if key.endswith("_G") else "G_ema")
        found = blocks[-1][2][: len(expected)]
        np.testing.assert_allclose(found, expected, atol=ATOL_IMAGE, rtol=0, err_msg=key)


@pytest.mark.parametrize("golden", ["uncond64", "cond64"], indirect=True)  # those that have them
def test_every_block_is_the_published_one(golden: Golden):
    blocks, _ = golden.images("img_const_psi0.7", "float32")
    for size, *found in blocks:
        for name, array in zip(("x", "img"), found, strict=True):
            expected = nhwc(golden.outputs[f"act_b{size}_{name}"])
            atol = RTOL_BLOCK * max(1, np.abs(expected).max())
            np.testing.assert_allclose(array[:1], expected, atol=atol, rtol=0)


def test_bfloat16_images_stay_near(golden: Golden):
    for key in image_keys(golden):
        blocks, expected = golden.images(key, "bfloat16", "G" if key.endswith("_G") else "G_ema")
        assert blocks[0][1].dtype == jnp.bfloat16
        assert blocks[-1][2].dtype == jnp.float32
        error = np.asarray(blocks[-1][2])[: len(expected)] - expected
        rms = np.sqrt(np.mean(error**2) / np.mean(expected**2))
        assert 1e-5 < rms < RMS_BFLOAT16, key


@pytest.mark.parametrize(("dtype", "atol"), [("float32", ATOL_IMAGE), ("bfloat16", 0.05)])
def test_logits_are_the_published_ones(golden: Golden, dtype: str, atol: float):
    # bfloat16 has no gate of its own; logits are of the order of 1 and off by up to 0.025.
    fake = nhwc(golden.outputs["img_const_psi0.7"])
    cases = [("d_fake", fake)]
    if dtype == "float32":
        cases.append(("d_fake_n1", fake[:1]))
    if "real" in golden.outputs:
        cases.append(("d_real", nhwc(golden.outputs["real"])))
    for key, images in cases:
        if key in golden.outputs:
            c = None if golden.c is None else golden.c[: len(images)]
            found = golden.discriminate(golden.trees["D"][0], images, c, jnp.dtype(dtype))
            np.testing.assert_allclose(found, golden.outputs[key], atol=atol, rtol=0, err_msg=key)


# The same networks as the paper has them: weights of its own for every sample, zeros in between,
# one convolution with the whole filter; float64, NCHW, NVIDIA's layouts.

GAINS = {"lrelu": math.sqrt(2), "relu": math.sqrt(2), "linear": 1.0, "tanh": 1.0}


def act(x: np.ndarray, kind: str) -> np.ndarray:
    functions = {
        "lrelu": lambda x: np.where(x > 0, x, 0.2 * x),
        "relu": lambda x: np.maximum(x, 0),
        "linear": lambda x: x,
        "tanh": np.tanh,
    }
    return functions[kind](x) * GAINS[kind]


def finish(
    x: np.ndarray, bias: np.ndarray, kind: str, gain: float, clamp: float | None
) -> np.ndarray:
    x = act(x + bias[:, None, None], kind) * gain
    return x if clamp is None else np.clip(x, -clamp * gain, clamp * gain)


def correlate(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[c, h, w] with [o, c, k, l], no padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (1, 2))
    return np.einsum("chwkl,ockl->ohw", windows, weight)


def resample(
    x: np.ndarray, taps: np.ndarray, *, up: int = 1, down: int = 1, pad: int = 0
) -> np.ndarray:
    """[c, h, w]: zeros in between, padding, true convolution with the filter, every down-th."""
    c, h, w = x.shape
    grid = np.zeros((c, h * up, w * up))
    grid[:, ::up, ::up] = x
    for axis, size in ((1, taps.shape[0]), (2, taps.shape[1])):
        if up > 1:
            before, after = pad + (size + up - 1) // 2, pad + (size - up) // 2
        else:
            before, after = pad + (size - down + 1) // 2, pad + (size - down) // 2
        edges = [(0, 0)] * 3
        edges[axis] = (before, max(after, 0))
        grid = np.pad(grid, edges)
        if after < 0:
            grid = np.take(grid, range(grid.shape[axis] + after), axis)
    one = np.stack([correlate(line[None], taps[None, None, ::-1, ::-1])[0] for line in grid])
    return one[:, ::down, ::down] * up**2


def two_axes(config: Any) -> np.ndarray:
    taps = np.asarray(config.resample_filter, np.float64)
    taps = np.outer(taps, taps) if taps.ndim == 1 else taps
    return taps / taps.sum()


def dense(p: dict[str, Any], name: str, x: np.ndarray, lr: float = 1.0) -> np.ndarray:
    weight = p[f"{name}.weight"]
    return x @ weight.T * (lr / math.sqrt(weight.shape[1])) + p[f"{name}.bias"] * lr


def moment(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2) + 1e-8)


def paper_mapping(config: Any, p: dict[str, Any], z: np.ndarray, c: np.ndarray) -> np.ndarray:
    parts = [moment(z)] if config.z_dim else []
    if config.c_dim:
        parts.append(moment(dense(p, "mapping.embed", c)))
    x = np.concatenate(parts)
    for layer in range(config.num_layers):
        x = act(dense(p, f"mapping.fc{layer}", x, config.lr_multiplier), config.activation)
    return x


def paper_synthesis(
    config: Any, p: dict[str, Any], ws: np.ndarray, noise: dict[str, np.ndarray]
) -> np.ndarray:
    """One sample: ws [num_ws, w_dim] and noise [h, w] to an image [c, h, w]."""
    taps, taken = two_axes(config), iter(ws)
    x, image = p["synthesis.b4.const"], None
    for size in config.resolutions:
        block = f"synthesis.b{size}"
        shortcut = None
        if config.architecture == "resnet" and size > 4:
            weight = p[f"{block}.skip.weight"]
            shortcut = correlate(x, weight / math.sqrt(weight.shape[1]))
            shortcut = resample(shortcut, taps, up=2) * math.sqrt(0.5)
        for name in ("conv0", "conv1") if size > 4 else ("conv1",):
            layer = f"{block}.{name}"
            w = next(taken)
            style = dense(p, f"{layer}.affine", w)
            weight = p[f"{layer}.weight"] * style[:, None, None]
            weight = weight / np.sqrt(np.sum(weight**2, axis=(1, 2, 3), keepdims=True) + 1e-8)
            if name == "conv0":
                x = correlate(resample(x, taps, up=2, pad=1), weight[:, :, ::-1, ::-1])
            else:
                x = correlate(np.pad(x, ((0, 0), (1, 1), (1, 1))), weight)
            if config.use_noise and f"b{size}_{name}" in noise:
                x = x + noise[f"b{size}_{name}"] * p[f"{layer}.noise_strength"]
            gain = math.sqrt(0.5) if shortcut is not None and name == "conv1" else 1.0
            x = finish(x, p[f"{layer}.bias"], config.activation, gain, config.conv_clamp)
        if shortcut is not None:
            x = x + shortcut
        if config.architecture == "skip" or size == config.resolution:
            # This w is read again by the next block.
            taken, w = peek(taken)
            layer = f"{block}.torgb"
            style = dense(p, f"{layer}.affine", w) / math.sqrt(len(x))
            y = correlate(x, p[f"{layer}.weight"] * style[:, None, None])
            y = finish(y, p[f"{layer}.bias"], "linear", 1.0, config.conv_clamp)
            image = y if image is None else resample(image, taps, up=2) + y
    assert image is not None
    return image


def peek(iterator: Iterator[Any]) -> tuple[Iterator[Any], Any]:
    rest = list(iterator)
    return iter(rest), rest[0]


def paper_discriminator(
    config: Any, p: dict[str, Any], images: np.ndarray, c: np.ndarray
) -> np.ndarray:
    """[n, c, h, w] to [n]."""
    taps, clamp = two_axes(config), config.conv_clamp

    def conv(x: np.ndarray, name: str, kind: str, **how: Any) -> np.ndarray:
        weight = p[f"{name}.weight"]
        weight = weight / math.sqrt(math.prod(weight.shape[1:]))
        pad = weight.shape[2] // 2
        x = correlate(np.pad(x, ((0, 0), (pad, pad), (pad, pad))), weight)
        return finish(x, p[f"{name}.bias"], kind, how.get("gain", 1.0), how.get("clamp", clamp))

    features = []
    for image in images.astype(np.float64):
        x: Any = None
        for size in reversed(config.resolutions):
            kind = config.activation if size > 4 else config.epilogue_activation
            if config.architecture == "skip" or size == config.resolution:
                read = conv(image, f"b{size}.fromrgb", kind, clamp=clamp if size > 4 else None)
                x = read if x is None else x + read
                if size > 4:
                    image = resample(image, taps, down=2)
            if size == 4:
                break
            y = conv(x, f"b{size}.conv0", kind)
            weight = p[f"b{size}.conv1.weight"]
            weight = weight / math.sqrt(math.prod(weight.shape[1:]))
            gain = math.sqrt(0.5) if config.architecture == "resnet" else 1.0
            y = correlate(padded_filter(y, taps), weight)[:, ::2, ::2]
            y = finish(y, p[f"b{size}.conv1.bias"], kind, gain, clamp)
            if config.architecture == "resnet":
                weight = p[f"b{size}.skip.weight"]
                weight = weight / math.sqrt(weight.shape[1])
                y = y + correlate(resample(x, taps, down=2), weight) * gain
            x = y
        features.append(x)
    x = np.stack(features)
    if config.mbstd_num_channels:
        x = np.concatenate([x, deviations(config, x)], axis=1)
    kind = config.epilogue_activation
    x = np.stack([conv(sample, "b4.conv", kind) for sample in x]).reshape(len(x), -1)
    x = np.stack([dense(p, "b4.out", act(dense(p, "b4.fc", sample), kind)) for sample in x])
    if config.mapping is None:
        return x[:, 0]
    classes = [paper_mapping(config.mapping, p, np.zeros(0), one) for one in c]
    return np.sum(x * np.stack(classes), axis=1) / math.sqrt(config.mapping.w_dim)


def padded_filter(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """The filter before a 3x3 convolution of stride 2, at full resolution."""
    for axis, size in ((1, taps.shape[0]), (2, taps.shape[1])):
        edges = [(0, 0)] * 3
        edges[axis] = (1 + (size - 1) // 2, 1 + (size - 2) // 2)
        x = np.pad(x, edges)
    return np.stack([correlate(line[None], taps[None, None, ::-1, ::-1])[0] for line in x])


def deviations(config: Any, x: np.ndarray) -> np.ndarray:
    n, channels = x.shape[:2]
    group, features = min(config.mbstd_group_size or n, n), config.mbstd_num_channels
    found = np.zeros((n, features, *x.shape[2:]))
    for sample in range(n):
        members = x[sample % (n // group) :: n // group]
        deviation = np.sqrt(members.var(0) + 1e-8)
        for feature in range(features):
            share = channels // features
            found[sample, feature] = deviation[feature * share : (feature + 1) * share].mean()
    return found


MAPPING: dict[str, Any] = {
    "z_dim": 6,
    "c_dim": 0,
    "w_dim": 7,
    "num_layers": 2,
    "embed_features": 0,
    "layer_features": 5,
    "lr_multiplier": 0.5,
}
SMALL: dict[str, Any] = {"resolution": 16, "channel_base": 64, "channel_max": 5}
ASYMMETRIC = (1.0, 2.0, 4.0, 1.5, 0.5)
NOT_SEPARABLE = ((1.0, 2.0, 0.0, 1.0, 0.0), (0.0, 3.0, 1.0, 0.0, 2.0))
CLASSES: dict[str, Any] = {"c_dim": 3, "embed_features": 4}
KINDS: list[dict[str, Any]] = [
    {"architecture": "skip", "resample_filter": ASYMMETRIC, "conv_clamp": 0.7},
    {"architecture": "resnet", "conv_clamp": 0.5, "mapping": CLASSES},
    {"architecture": "resnet", "resample_filter": (1.0,), "activation": "relu"},
    {"architecture": "orig", "resample_filter": NOT_SEPARABLE, "activation": "linear"},
    {"architecture": "orig", "img_channels": 1, "resample_filter": (1.0, 1.0)},
    {"architecture": "skip", "activation": "tanh", "resample_filter": (1.0, 2.0, 1.0)},
]


def in_float64(network: Network) -> tuple[Any, Any]:
    """The arrays in double precision, so that only a wrong formula makes a difference."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), to_trees(network))


@pytest.mark.parametrize("kind", [*KINDS[:-1], {**KINDS[-1], "use_noise": False}], ids=str)
def test_every_kind_of_generator_is_the_papers(kind: dict[str, Any]):
    mapping = stylegan2.MappingConfig(**MAPPING | kind.get("mapping", {}))
    config = stylegan2.GeneratorConfig(**{**SMALL, **kind, "mapping": mapping})
    arrays = random_arrays(config)
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    rng = np.random.default_rng(1)
    z, c = rng.standard_normal((2, mapping.z_dim)), np.eye(3)[[2, 0]][:, : mapping.c_dim]
    ws = rng.standard_normal((2, config.num_ws, mapping.w_dim))
    noise = {
        f"b{size}_{name}": rng.standard_normal((2, size, size, 1))
        for size, name in config.convolutions
    }
    with jax.enable_x64(True):
        params, _ = in_float64(nvidia.checked(config, arrays))
        found_w = stylegan2.map_latents(mapping, params["mapping"], jnp.asarray(z), jnp.asarray(c))
        run = compiled(lambda p, ws, n: stylegan2.synthesize(config, p, ws, n, jnp.float64))
        found = np.asarray(run(params["synthesis"], ws, noise))
    for sample in range(2):
        w = paper_mapping(mapping, exact, z[sample], c[sample])
        np.testing.assert_allclose(found_w[sample], w, atol=1e-10, rtol=0)
        own = {name: array[sample, :, :, 0] for name, array in noise.items()}
        image = paper_synthesis(config, exact, ws[sample], own)
        assert np.abs(image).max() > 0.1
        np.testing.assert_allclose(found[sample], image.transpose(1, 2, 0), atol=1e-10, rtol=0)


DISCRIMINATORS: list[dict[str, Any]] = [
    {**KINDS[0], "epilogue_activation": "relu", "mbstd_num_channels": 5},
    {**KINDS[1], "mbstd_group_size": 2},
    {**KINDS[2], "mbstd_num_channels": 0},
    {**KINDS[3], "mbstd_group_size": None},
    {**KINDS[4], "mbstd_group_size": 8},
    KINDS[5],
]


@pytest.mark.parametrize("kind", DISCRIMINATORS, ids=str)
def test_every_kind_of_discriminator_is_the_papers(kind: dict[str, Any]):
    mapping = None
    if "mapping" in kind:
        mapping = stylegan2.MappingConfig(**MAPPING | kind["mapping"] | {"z_dim": 0})
    config = stylegan2.DiscriminatorConfig(**{**SMALL, **kind, "mapping": mapping})
    arrays = random_arrays(config)
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    images = np.random.default_rng(1).standard_normal((4, 16, 16, config.img_channels))
    c = np.eye(3)[[2, 0, 0, 1]]
    with jax.enable_x64(True):
        params, _ = in_float64(nvidia.checked(config, arrays))
        run = compiled(
            lambda p, x: stylegan2.discriminate(config, p, x, jnp.asarray(c), jnp.float64)
        )
        found = run(params, images)
        every = None
        if mapping:
            every = compiled(
                lambda p, x: stylegan2.discriminate_classes(config, p, x, jnp.float64)
            )(params, images)
    expected = paper_discriminator(config, exact, images.transpose(0, 3, 1, 2), c)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-10, rtol=0)
    if every is not None:
        np.testing.assert_allclose(
            np.asarray(every)[range(4), c.argmax(1)], expected, atol=1e-10, rtol=0
        )


@pytest.mark.parametrize(
    ("resolution", "architecture"),
    [
        *((size, "skip") for size in (32, 64, 128, 256, 512, 1024)),
        *((1024, architecture) for architecture in ("resnet", "orig")),
    ],
)
def test_every_resolution_has_its_shapes(resolution: int, architecture: str):
    mapping = stylegan2.MappingConfig(**MAPPING)
    options: dict[str, Any] = {
        "resolution": resolution,
        "architecture": architecture,
        "channel_max": 64,
    }
    config = stylegan2.GeneratorConfig(mapping=mapping, **options)
    assert config.num_ws == 2 * round(math.log2(resolution)) - 2
    trees = jax.eval_shape(lambda: to_trees(blank(config)))
    ws = jax.ShapeDtypeStruct((2, config.num_ws, mapping.w_dim), jnp.float32)
    run = functools.partial(stylegan2.synthesize, config)
    images = jax.eval_shape(run, trees[0]["synthesis"], ws, trees[1]["noise"])
    assert images.shape == (2, resolution, resolution, 3)
    critic = stylegan2.DiscriminatorConfig(**options)
    trees = jax.eval_shape(lambda: to_trees(blank(critic)))
    logits = jax.eval_shape(functools.partial(stylegan2.discriminate, critic), trees[0], images)
    assert logits.shape == (2, 1)


def blank(config: Any) -> Network:
    # One number stands for all: nothing is allocated.
    zero = np.float32(0)
    arrays = {
        name: np.broadcast_to(zero, shape) for name, shape in stylegan2.shapes(config).items()
    }
    return Network(config, {name: to_published(name, array) for name, array in arrays.items()})


def test_random_noise_is_independent_and_normal():
    config = stylegan2.GeneratorConfig(resolution=32, mapping=stylegan2.MappingConfig(**MAPPING))
    noise = stylegan2.random_noise(config, jax.random.split(jax.random.key(0), 4))
    assert [array.shape[:3] for array in noise.values()] == [
        (4, size, size) for size in (4, 8, 8, 16, 16, 32, 32)
    ]
    numbers = np.concatenate([np.ravel(array) for array in noise.values()])
    assert len(np.unique(numbers)) > 0.99 * len(numbers)
    # Four standard errors.
    assert abs(numbers.mean()) < 4 / len(numbers) ** 0.5
    assert abs(numbers.std() - 1) < 4 / (2 * len(numbers)) ** 0.5


def test_a_network_without_noise_has_no_arrays_for_it():
    mapping = stylegan2.MappingConfig(**MAPPING)
    names = {
        use_noise: set(
            stylegan2.shapes(
                stylegan2.GeneratorConfig(**SMALL, mapping=mapping, use_noise=use_noise)
            )
        )
        for use_noise in (True, False)
    }
    assert len(names[True] - names[False]) == 2 * 5 and names[False] < names[True]


def test_the_published_sizes():
    # "config-f" of the StyleGAN2 paper has 30.37 and 29.01 million parameters at 1024 px.
    mapping = stylegan2.MappingConfig(
        **{**MAPPING, "z_dim": 512, "w_dim": 512, "num_layers": 8, "layer_features": 512}
    )
    generator = stylegan2.shapes(stylegan2.GeneratorConfig(resolution=1024, mapping=mapping))
    buffers = ("w_avg", "noise_const")
    counted = [math.prod(s) for name, s in generator.items() if not name.endswith(buffers)]
    assert sum(counted) == 30_370_060
    discriminator = stylegan2.shapes(stylegan2.DiscriminatorConfig(resolution=1024))
    assert sum(map(math.prod, discriminator.values())) == 29_012_513


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"resolution": 48}, "power of two from 8 to 4096, not 48"),
        ({"resolution": 4}, "power of two"),
        ({"channel_base": 8}, "without channels"),
        ({"architecture": "skipp"}, "architecture cannot be 'skipp'; did you mean 'skip'"),
        ({"activation": "gelu"}, "activation cannot be 'gelu'"),
        ({"conv_clamp": float("nan")}, "conv_clamp must be above 0"),
        ({"resample_filter": ()}, "resample_filter cannot be"),
        ({"resample_filter": (1.0,) * 65}, "more than 64 taps"),
        ({"mbstd_num_channels": 4}, "mbstd_num_channels 4 must divide 5"),
        ({"mbstd_group_size": 0}, "mbstd_group_size must be at least 1"),
        ({"epilogue_activation": "x"}, "epilogue_activation cannot be"),
        ({"mapping": stylegan2.MappingConfig(**MAPPING)}, "maps classes, and only classes"),
    ],
)
def test_what_makes_no_network_is_refused(wrong: dict[str, Any], match: str):
    with pytest.raises(InputError, match=match):
        stylegan2.DiscriminatorConfig(**SMALL | wrong)


def test_what_makes_no_mapping_is_refused():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_layers": 101}, "num_layers cannot be 101"),
        ({"num_layers": 0}, "without layers cannot be 7 wide"),
        ({"z_dim": 0}, "needs an input"),
        ({"lr_multiplier": 0.0}, "lr_multiplier must be above 0"),
    ]
    for wrong, match in cases:
        with pytest.raises(InputError, match=match):
            stylegan2.MappingConfig(**MAPPING | wrong)
    mapping = stylegan2.MappingConfig(**MAPPING)
    with pytest.raises(InputError, match=r"w_avg_beta must be in \[0, 1\]"):
        stylegan2.GeneratorConfig(**SMALL, mapping=mapping, w_avg_beta=2.0)


def test_a_batch_that_makes_no_groups_is_refused():
    config = stylegan2.DiscriminatorConfig(**SMALL)
    params, _ = jax.eval_shape(lambda: to_trees(blank(config)))
    run = functools.partial(stylegan2.discriminate, config)
    with pytest.raises(InputError, match="batch of 6 cannot be divided into groups of 4"):
        jax.eval_shape(run, params, jax.ShapeDtypeStruct((6, 16, 16, 3), jnp.float32))
