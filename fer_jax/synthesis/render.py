"""Seeds to pictures on the devices: w, truncation, edits, pixels."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fer_jax.errors import InputError
from fer_jax.models import stylegan2
from fer_jax.sharding import batch_sharding, replicated
from fer_jax.synthesis.generator import Generator, latents


@dataclasses.dataclass(frozen=True)
class Renderer:
    """A generator on its devices, and how seeds are turned into w.

    A seed's latent is numpy.random.RandomState(seed).randn(z_dim), as in the published tools:
    the picture of a seed depends on nothing else in its batch.

    Attributes:
      generator: its arrays on every device.
      mesh: the devices that share a batch.
      classes: int [choices], the network's class of each choice; None if it has no classes.
      centres: float32 [choices, w_dim], what truncation goes towards.
      edits: float32 [choices, w_dim], added to w afterwards.
      edited_layers: bool [num_ws], which layers see the edit.
      psi: of the truncation.
      cutoff: only so many of the first layers are truncated; None: all.
      noise: "const", "none", or "random" (by the seed).
    """

    generator: Generator
    mesh: Mesh
    classes: np.ndarray | None
    centres: np.ndarray
    edits: np.ndarray
    edited_layers: np.ndarray
    psi: float = 1.0
    cutoff: int | None = None
    noise: str = "const"

    def ws(self, seeds: Sequence[int], choices: Sequence[int]) -> jax.Array:
        """Faces in w, truncated and edited.

        Args:
          seeds: [n], n divisible by the devices.
          choices: [n], which centre, edit and class.

        Returns:
          float32 [n, num_ws, w_dim].
        """
        z = jax.device_put(latents(seeds, self.generator.z_dim), batch_sharding(self.mesh))
        chosen = np.asarray(choices)
        c = None if self.classes is None else self.classes[chosen]
        w = self.generator.map(z, c)[:, 0]
        centre, num_ws = self.centres[chosen], self.generator.num_ws
        ws = stylegan2.truncate(w, jnp.asarray(centre), num_ws, self.psi, self.cutoff)
        return ws + jnp.where(self.edited_layers[:, None], self.edits[chosen][:, None], 0)

    def floats(self, ws: jax.Array, seeds: Sequence[int]) -> jax.Array:
        """Pictures as the network gives them, float32 [n, s, s, 3], around [-1, 1]."""
        keys = None
        if self.noise == "random":
            numbers = jnp.asarray(np.asarray(seeds, np.uint32))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), numbers)
        return self.generator.synthesize(ws, self.noise, keys)

    def images(self, ws: jax.Array, seeds: Sequence[int]) -> jax.Array:
        """Pictures, uint8 RGB [n, s, s, 3]; still being computed when this returns."""
        return to_uint8(self.floats(ws, seeds))


def make_renderer(
    generator: Generator,
    mesh: Mesh,
    *,
    psi: float = 1.0,
    cutoff: int | None = None,
    noise: str = "const",
    num_choices: int = 1,
    classes: Sequence[int] | None = None,
    centres: np.ndarray | None = None,
    edits: np.ndarray | None = None,
    edited_layers: tuple[int, int] | None = None,
) -> Renderer:
    """Puts a generator onto devices.

    Args:
      generator: from `load_generator`.
      mesh: the devices.
      psi: of the truncation.
      cutoff: only so many of the first layers are truncated; None: all.
      noise: "const", "none" or "random".
      num_choices: how many ways to make a face there are.
      classes: of the network, one for each choice.
      centres: [choices, w_dim]; None: the network's mean w.
      edits: [choices, w_dim]; None: w stays as it is.
      edited_layers: first and last layer of the edits; None: all.

    Raises:
      InputError: truncation by a network that has no mean w, or layers that it lacks.
    """
    arrays = jax.device_put((dict(generator.params), dict(generator.buffers)), replicated(mesh))
    if centres is None:
        w_avg = generator.buffers.get("w_avg")
        if w_avg is None and psi != 1:
            raise InputError("the network has no mean w: --psi must be 1")
        centre = np.zeros(generator.w_dim, np.float32) if w_avg is None else np.asarray(w_avg)
        centres = np.tile(centre, (num_choices, 1))
    first, last = edited_layers or (0, generator.num_ws - 1)
    if not 0 <= first <= last < generator.num_ws:
        raise InputError(
            f"--direction_layers is FIRST-LAST within 0-{generator.num_ws - 1}, not {first}-{last}"
        )
    layers = np.arange(generator.num_ws)
    return Renderer(
        generator=dataclasses.replace(generator, params=arrays[0], buffers=arrays[1]),
        mesh=mesh,
        classes=None if classes is None else np.asarray(classes),
        centres=np.asarray(centres, np.float32),
        edits=np.zeros_like(centres) if edits is None else np.asarray(edits, np.float32),
        edited_layers=(layers >= first) & (layers <= last),
        psi=psi,
        cutoff=cutoff,
        noise=noise,
    )


@jax.jit
def to_uint8(images: jax.Array) -> jax.Array:
    """Pictures [..., 3] in [-1, 1] to uint8: the nearest of 256 levels, the rest clipped."""
    levels = jnp.floor((images + 1) * 127.5 + 0.5)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)
