"""A network file to a generator, and seeds to images: w, truncation, edits, pixels."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fer_jax.checkpoints import fingerprint
from fer_jax.errors import InputError, did_you_mean
from fer_jax.models import stylegan2
from fer_jax.sharding import batch_sharding, replicated
from fer_jax.weights import convert, nvidia

NETWORKS = ("G_ema", "G")
NOISE = ("const", "none", "random")
DTYPES = ("float32", "bfloat16")
NUM_SEEDS = 2**32

Integers = Sequence[int] | np.ndarray


def load_generator(path: str | Path, network: str = "G_ema", dtype: str = "float32") -> "Generator":
    """Loads a generator from one of NVIDIA's StyleGAN2 pickles or a folder of `fer-jax convert`.

    `network` is "G_ema", the moving average of the training, or "G"; `dtype` is of the activations,
    "float32" or "bfloat16": parameters and images are float32. InputError for other files and
    values.
    """
    if network not in NETWORKS:
        raise InputError(f"no generator '{network}'{did_you_mean(network, NETWORKS)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype cannot be '{dtype}'{did_you_mean(dtype, DTYPES)}")
    read = convert.read_networks(Path(path), (network,))[network]
    assert isinstance(read.config, stylegan2.GeneratorConfig)  # both of NETWORKS are
    params, buffers = nvidia.to_trees(read)
    return Generator(read.config, params, buffers, dtype)


def generator_fingerprint(generator: "Generator") -> str:
    """Returns the SHA-256 of the arrays: the same for NVIDIA's file and a converted one."""
    return fingerprint((dict(generator.params), dict(generator.buffers)))


def latents(seeds: Sequence[int] | np.ndarray, z_dim: int) -> np.ndarray:
    """Samples a latent for each seed as NVIDIA's tools do: float32 [n, z_dim], standard normal.

    Raises InputError for a seed outside 0 to 2**32 - 1.
    """
    if wrong := [seed for seed in seeds if not 0 <= int(seed) < NUM_SEEDS]:
        raise InputError(f"a seed must be an integer from 0 to 2**32 - 1, got {wrong[0]}")
    rows = [np.random.RandomState(int(seed)).randn(z_dim) for seed in seeds]
    return np.asarray(rows, np.float32).reshape(len(rows), z_dim)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A StyleGAN2 generator with its arrays."""

    config: stylegan2.GeneratorConfig
    params: Mapping[str, Any]  # "mapping" and "synthesis", as `fer_jax.models.stylegan2` takes them
    buffers: Mapping[str, Any]  # "noise" by layer and, if the network has it, "w_avg"
    dtype: str = "float32"  # of the activations

    @property
    def z_dim(self) -> int:
        """Width of a latent."""
        return self.config.mapping.z_dim

    @property
    def w_dim(self) -> int:
        """Width of a w."""
        return self.config.mapping.w_dim

    @property
    def c_dim(self) -> int:
        """Number of classes; 0 for an unconditional network."""
        return self.config.mapping.c_dim

    @property
    def num_ws(self) -> int:
        """Number of w per image."""
        return self.config.num_ws

    @property
    def resolution(self) -> int:
        """Pixels a side."""
        return self.config.resolution

    def map(
        self,
        z: Any,
        c: Any = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> jax.Array:
        """Maps latents [n, z_dim], standard normal, and classes to ws float32 [n, num_ws, w_dim].

        `c` is for a conditional network: a class, [n] classes, or [n, c_dim] one-hot.
        `truncation_psi` 1 leaves w unchanged, 0 gives the network's mean w over all classes;
        `truncation_cutoff` is how many of the first layers are truncated; None: all. Raises
        InputError for a wrong shape, a class that the network does not have or that is missing, a
        psi that is not finite, or truncation by a network without a mean w.
        """
        z = _floats("z", z, ("n", self.z_dim))
        if not isinstance(truncation_psi, numbers.Real) or not math.isfinite(truncation_psi):
            raise InputError(f"truncation_psi must be a finite number, not {truncation_psi!r}")
        if truncation_cutoff is not None and (
            not isinstance(truncation_cutoff, numbers.Integral) or truncation_cutoff < 0
        ):
            raise InputError(
                f"truncation_cutoff is a number of layers or None, not {truncation_cutoff!r}"
            )
        classes = self._classes(c, len(z))
        center = self.buffers.get("w_avg")
        if center is None:
            if truncation_psi != 1:
                raise InputError("the network has no mean w: truncation_psi must be 1")
            center = jnp.zeros(self.w_dim)
        cutoff = self.num_ws if truncation_cutoff is None else min(truncation_cutoff, self.num_ws)
        mapping = self.params.get("mapping", {})
        # Always a float and an int, so that other values compile nothing.
        return _map(self.config, mapping, z, classes, center, float(truncation_psi), int(cutoff))

    def synthesize(self, ws: Any, noise: str = "const", key: jax.Array | None = None) -> jax.Array:
        """Generates images of ws [n, num_ws, w_dim]: float32 [n, resolution, resolution, 3].

        They are around [-1, 1], not clipped. `noise` is "const" (the network's own, the same for
        all images), "none", or "random" with a `key`: one, or [n] keys, one per sample. A sample's
        noise does not depend on the rest of the batch. Raises InputError for a wrong shape, or a
        key that is missing or superfluous.
        """
        ws = _floats("ws", ws, ("n", self.num_ws, self.w_dim))
        if noise not in NOISE:
            raise InputError(f"noise cannot be '{noise}'{did_you_mean(noise, NOISE)}")
        if key is not None and noise != "random":
            raise InputError('a key belongs to noise="random"')
        keys = _sample_keys(key, len(ws)) if noise == "random" else None
        arrays = self.buffers["noise"] if noise == "const" else {}
        synthesis = self.params["synthesis"]
        return _synthesize(self.config, synthesis, ws, arrays, keys, jnp.dtype(self.dtype))

    def _classes(self, c: Any, n: int) -> jax.Array | None:
        if not self.c_dim:
            if c is not None and np.size(c):
                raise InputError("the network is unconditional: it takes no class c")
            return None
        if c is None:
            raise InputError(f"the network is conditional: c must be one of {self.c_dim} classes")
        if np.ndim(c) == 2:
            return _floats("c", c, (n, self.c_dim))
        indices = np.asarray(c)
        if indices.dtype.kind not in "iu" or indices.shape not in ((), (n,)):
            raise InputError(
                f"c is a class, {n} classes or one-hot [{n}, {self.c_dim}], not "
                f"{indices.dtype} {list(indices.shape)}"
            )
        if indices.min() < 0 or indices.max() >= self.c_dim:
            wrong = indices.min() if indices.min() < 0 else indices.max()
            raise InputError(f"the network has classes 0 to {self.c_dim - 1}, not {wrong}")
        return jax.nn.one_hot(np.broadcast_to(indices, (n,)), self.c_dim)


@functools.partial(jax.jit, static_argnums=0)
def _map(
    config: stylegan2.GeneratorConfig,
    params: stylegan2.Params,
    z: jax.Array,
    c: jax.Array | None,
    center: jax.Array,
    psi: float,
    cutoff: int,
) -> jax.Array:
    w = stylegan2.map_latents(config.mapping, params, z, c)
    return stylegan2.truncate(w, center, config.num_ws, psi, cutoff)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _synthesize(
    config: stylegan2.GeneratorConfig,
    params: stylegan2.Params,
    ws: jax.Array,
    noise: Mapping[str, jax.Array],
    keys: jax.Array | None,
    dtype: Any,
) -> jax.Array:
    if keys is not None:
        noise = stylegan2.random_noise(config, keys)
    return stylegan2.synthesize(config, params, ws, noise, dtype)


def _sample_keys(key: Any, n: int) -> jax.Array:
    if key is None:
        raise InputError('noise="random" needs a key, such as jax.random.key(0)')
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise InputError(f"key must be one of jax.random.key, not {type(key).__name__}")
    if key.shape == ():
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
    if key.shape != (n,):
        raise InputError(f"key must be one key or [{n}] keys, not {list(key.shape)}")
    return key


def _floats(name: str, value: Any, shape: tuple[int | str, ...]) -> jax.Array:
    """Returns an argument as float32 after checking its shape; a text is any size above 0."""
    expected = ", ".join(map(str, shape))
    try:
        array = jnp.asarray(value, jnp.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers [{expected}]") from error
    fits = len(array.shape) == len(shape) and all(
        actual > 0 if isinstance(size, str) else actual == size
        for actual, size in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must be [{expected}], not {list(array.shape)}")
    return array


@dataclasses.dataclass(frozen=True)
class Renderer:
    """A generator on its devices, and how a seed becomes an image under each sampling condition.

    The latent of a seed is numpy.random.RandomState(seed).randn(z_dim), as in the published tools.
    The image of a seed does not depend on the rest of its batch.
    """

    generator: Generator  # its arrays are on every device
    mesh: Mesh  # the devices that share a batch
    # int [conditions], classes of a conditional network; None: it is unconditional.
    classes: np.ndarray | None
    # float32 [conditions, w_dim], to truncate towards; None: the network's mean w.
    centers: np.ndarray | None
    # float32 [conditions, w_dim], added to w after the truncation; None: w is not edited.
    edits: np.ndarray | None
    edited_layers: np.ndarray  # bool [num_ws], the layers whose w is edited
    psi: float = 1.0  # of the truncation
    cutoff: int | None = None  # how many of the first layers are truncated; None: all
    noise: str = "const"  # "const", "none", or "random" (by the seed)

    def ws(self, seeds: Integers, conditions: Integers) -> jax.Array:
        """Maps seeds [n], n divisible by the devices, under conditions to w [n, num_ws, w_dim]."""
        z = jax.device_put(latents(seeds, self.generator.z_dim), batch_sharding(self.mesh))
        rows = np.asarray(conditions)
        c = None if self.classes is None else self.classes[rows]
        if self.centers is None:
            ws = self.generator.map(z, c, self.psi, self.cutoff)
        else:
            w, num_ws = self.generator.map(z, c)[:, 0], self.generator.num_ws
            center = jnp.asarray(self.centers[rows])
            ws = stylegan2.truncate(w, center, num_ws, self.psi, self.cutoff)
        if self.edits is None:
            return ws
        return ws + jnp.where(self.edited_layers[:, None], self.edits[rows][:, None], 0)

    def floats(self, ws: jax.Array, seeds: Integers) -> jax.Array:
        """Returns the network's images, float32 [n, s, s, 3], around [-1, 1]."""
        keys = None
        if self.noise == "random":
            numbers = jnp.asarray(np.asarray(seeds, np.uint32))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), numbers)
        return self.generator.synthesize(ws, self.noise, keys)

    def images(self, ws: jax.Array, seeds: Integers) -> jax.Array:
        """Returns images, uint8 RGB [n, s, s, 3], which may still be being computed."""
        return to_uint8(self.floats(ws, seeds))

    def map_seeds(
        self, seeds: Integers, batch_size: int, conditions: Integers | None = None
    ) -> np.ndarray:
        """Maps any number of seeds [n] in batches, by default under the first condition, to w.

        Returns float32 [n, num_ws, w_dim].
        """
        conditions = np.zeros(len(seeds), int) if conditions is None else conditions
        return np.concatenate(
            [
                np.asarray(self.ws(np.take(seeds, rows), np.take(conditions, rows)))[:count]
                for rows, count in _batches(len(seeds), batch_size)
            ]
        )

    def render(self, ws: np.ndarray, seeds: Integers, batch_size: int) -> Iterator[np.ndarray]:
        """Yields the image of each w, uint8 RGB [s, s, 3]; `seeds` [n] choose random noise."""
        for rows, count in _batches(len(ws), batch_size):
            yield from np.asarray(self.images(jnp.asarray(ws[rows]), np.take(seeds, rows)))[:count]


def _batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (rows [batch_size], how many are new); the last batch repeats its last row."""
    for first in range(0, count, batch_size):
        rows = np.arange(first, first + batch_size)
        yield np.minimum(rows, count - 1), min(batch_size, count - first)


def make_renderer(
    generator: Generator,
    mesh: Mesh,
    *,
    psi: float = 1.0,
    cutoff: int | None = None,
    noise: str = "const",
    classes: Sequence[int] | None = None,
    centers: np.ndarray | None = None,
    edits: np.ndarray | None = None,
    edited_layers: tuple[int, int] | None = None,
) -> Renderer:
    """Puts a generator onto devices; the other arguments are attributes of `Renderer`.

    `edited_layers` are the first and the last layer of the edits; None: all. InputError for layers,
    or a mean w, that the network does not have.
    """
    if centers is None and psi != 1 and generator.buffers.get("w_avg") is None:
        raise InputError("the network has no mean w: --psi must be 1")
    first, last = edited_layers or (0, generator.num_ws - 1)
    if not 0 <= first <= last < generator.num_ws:
        raise InputError(
            f"--direction_layers is FIRST-LAST within 0-{generator.num_ws - 1}, not {first}-{last}"
        )
    params, buffers = jax.device_put(
        (dict(generator.params), dict(generator.buffers)), replicated(mesh)
    )
    layers = np.arange(generator.num_ws)
    return Renderer(
        generator=dataclasses.replace(generator, params=params, buffers=buffers),
        mesh=mesh,
        classes=None if classes is None else np.asarray(classes),
        centers=None if centers is None else np.asarray(centers, np.float32),
        edits=None if edits is None else np.asarray(edits, np.float32),
        edited_layers=(layers >= first) & (layers <= last),
        psi=psi,
        cutoff=cutoff,
        noise=noise,
    )


@jax.jit
def to_uint8(images: jax.Array) -> jax.Array:
    """Converts images [..., 3] in [-1, 1] to uint8: rounded to 256 levels, clipped."""
    levels = jnp.floor((images + 1) * 127.5 + 0.5)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)
