"""A network file to a generator: latents to w, w to images."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.errors import InputError, did_you_mean
from fer_jax.models import stylegan2
from fer_jax.weights import convert, nvidia

NETWORKS = ("G_ema", "G")
NOISE = ("const", "none", "random")
DTYPES = ("float32", "bfloat16")


def load_generator(path: str | Path, network: str = "G_ema", dtype: str = "float32") -> "Generator":
    """Loads a generator.

    Args:
      path: one of NVIDIA's StyleGAN2 pickles, or a folder that `fer-jax convert` wrote.
      network: "G_ema", the average over the training that is meant to be used, or "G".
      dtype: "float32" or "bfloat16", of the activations; parameters and images are float32.

    Raises:
      InputError: a file that is not such a thing, or a word that is not accepted.
    """
    if network not in NETWORKS:
        raise InputError(f"no generator '{network}'{did_you_mean(network, NETWORKS)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype cannot be '{dtype}'{did_you_mean(dtype, DTYPES)}")
    read = convert.read_networks(Path(path), (network,))[network]
    assert isinstance(read.config, stylegan2.GeneratorConfig)  # both of NETWORKS are
    params, buffers = nvidia.to_trees(read)
    return Generator(read.config, params, buffers, dtype)


def latents(seeds: Sequence[int] | np.ndarray, z_dim: int) -> np.ndarray:
    """A latent for each seed, the one that NVIDIA's tools draw for it.

    Args:
      seeds: [n] whole numbers in [0, 2**32).
      z_dim: of the generator.

    Returns:
      float32 [n, z_dim], standard normal; each row depends on its own seed alone.

    Raises:
      InputError: a seed outside the range.
    """
    wrong = [seed for seed in seeds if not 0 <= int(seed) < 2**32]
    if wrong:
        raise InputError(f"a seed is a whole number from 0 to 2**32 - 1, not {wrong[0]}")
    rows = [np.random.RandomState(int(seed)).randn(z_dim) for seed in seeds]
    return np.asarray(rows, np.float32).reshape(len(rows), z_dim)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A StyleGAN2 generator with its arrays.

    Attributes:
      config: of the network.
      params: "mapping" and "synthesis", as `fer_jax.models.stylegan2` takes them.
      buffers: "noise" by layer and, if the network has it, "w_avg".
      dtype: of the activations.
    """

    config: stylegan2.GeneratorConfig
    params: Mapping[str, Any]
    buffers: Mapping[str, Any]
    dtype: str = "float32"

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
        """How many w an image takes."""
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
        """Maps latents and classes to w.

        Args:
          z: [n, z_dim], standard normal.
          c: for a conditional network: a class, [n] classes, or [n, c_dim] one-hot.
          truncation_psi: 1 leaves w as it is; towards 0 it nears the mean of all classes.
          truncation_cutoff: only so many of the first layers are truncated; None: all.

        Returns:
          ws float32 [n, num_ws, w_dim].

        Raises:
          InputError: a wrong shape, a class that the network lacks or that is missing, a
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
        w_avg = self.buffers.get("w_avg")
        if w_avg is None:
            if truncation_psi != 1:
                raise InputError("the network has no mean w: truncation_psi must be 1")
            w_avg = jnp.zeros(self.w_dim)
        cutoff = self.num_ws if truncation_cutoff is None else min(truncation_cutoff, self.num_ws)
        mapping = self.params.get("mapping", {})
        # One type each, so that another value compiles nothing.
        return _map(self.config, mapping, z, classes, w_avg, float(truncation_psi), int(cutoff))

    def synthesize(
        self, ws: Any, noise: str | Mapping[str, Any] = "const", key: jax.Array | None = None
    ) -> jax.Array:
        """Makes images.

        Args:
          ws: [n, num_ws, w_dim], from `map`.
          noise: "const" (the network's own, the same for all images), "none", "random", or
            arrays [n or 1, h, w, 1] by layer: "b4_conv1", "b8_conv0", "b8_conv1", ...; a layer
            without one gets none.
          key: for "random": a key, from which sample i takes its i-th, or an array of [n] keys,
            one for each sample. A sample's noise does not depend on the rest of the batch.

        Returns:
          float32 [n, resolution, resolution, 3], around [-1, 1], not clipped.

        Raises:
          InputError: a wrong shape or layer, or a key that is missing or superfluous.
        """
        ws = _floats("ws", ws, ("n", self.num_ws, self.w_dim))
        keys = None
        if noise == "random":
            keys = _sample_keys(key, len(ws))
        elif key is not None:
            raise InputError('a key belongs to noise="random"')
        if isinstance(noise, str):
            if noise not in NOISE:
                raise InputError(f"noise cannot be '{noise}'{did_you_mean(noise, NOISE)}")
            arrays = self.buffers["noise"] if noise == "const" else {}
        else:
            arrays = self._noise_arrays(noise, len(ws))
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

    def _noise_arrays(self, noise: Mapping[str, Any], n: int) -> dict[str, jax.Array]:
        if not self.config.use_noise:
            raise InputError("the network takes no noise")
        sizes = {f"b{size}_{name}": size for size, name in self.config.convolutions}
        arrays = {}
        for name, array in noise.items():
            if name not in sizes:
                raise InputError(f"the network has no layer '{name}'{did_you_mean(name, sizes)}")
            size, count = sizes[name], 1 if np.shape(array)[:1] == (1,) else n
            arrays[name] = _floats(f"noise {name}", array, (count, size, size, 1))
        return arrays


@functools.partial(jax.jit, static_argnums=0)
def _map(
    config: stylegan2.GeneratorConfig,
    params: stylegan2.Params,
    z: jax.Array,
    c: jax.Array | None,
    w_avg: jax.Array,
    psi: float,
    cutoff: int,
) -> jax.Array:
    w = stylegan2.map_latents(config.mapping, params, z, c)
    return stylegan2.truncate(w, w_avg, config.num_ws, psi, cutoff)


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


def _floats(name: str, value: Any, shape: tuple[Any, ...]) -> jax.Array:
    """An argument as float32, if it has the shape; a word in it stands for any size above 0."""
    wanted = ", ".join(map(str, shape))
    try:
        array = jnp.asarray(value, jnp.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers [{wanted}]") from error
    fits = len(array.shape) == len(shape) and all(
        size > 0 if isinstance(want, str) else size == want
        for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must be [{wanted}], not {list(array.shape)}")
    return array
