"""StyleGAN2's synthesis and each part of its training, beside the same in PyTorch.

Both have the same random weights, and their outputs must agree before anything is timed.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.benchmark.benchmark import Row, compare, cpu_seconds, paired, skipped
from fer_jax.benchmark.peers import StyleGAN2, StyleGAN2Training, pytorch_device
from fer_jax.config import default_generator
from fer_jax.data.augment import normalize
from fer_jax.models import stylegan2
from fer_jax.sharding import make_mesh, replicated, to_devices
from fer_jax.training import gan, gan_step
from fer_jax.training.gan_step import Recipe
from fer_jax.weights import nvidia

MAX_DIFFERENCE = 1e-3  # of the largest value; float32 through 13 layers gives 1e-5


def _missing_peer() -> str:
    if find_spec("torch") is None:
        return "torch is not installed: pip install -e '.[bench]'"
    same_device = (jax.default_backend() == "cpu") == (pytorch_device() == "cpu")
    return "" if same_device else "PyTorch does not compute on the same device"


def _check_agreement(what: str, ours: Any, theirs: Any) -> None:
    ours, theirs = np.asarray(ours), theirs.detach().cpu().numpy()
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if difference > MAX_DIFFERENCE:
        raise RuntimeError(f"{what} of ours and PyTorch differ by {difference:.2g} of their size")


def measure_stylegan2(options: argparse.Namespace) -> Iterator[Row]:
    """Compares images per second (per CPU-second on a CPU) at every batch size, float32."""
    mapping = stylegan2.MappingConfig(
        z_dim=512, c_dim=0, w_dim=512, num_layers=8, embed_features=0, layer_features=512
    )
    config = stylegan2.GeneratorConfig(
        resolution=options.resolution, channel_base=options.channel_base, mapping=mapping
    )
    what = f"synthesis {config.resolution} px"
    if reason := _missing_peer():
        yield skipped(what, reason)
        return
    rng = np.random.default_rng(0)
    arrays = {
        name: nvidia.to_their_layout(name, rng.standard_normal(shape).astype(np.float32))
        for name, shape in stylegan2.shapes(config).items()
    }
    params, buffers = nvidia.to_trees(nvidia.checked(config, arrays))
    compiled = jax.jit(functools.partial(stylegan2.synthesize, config))
    synthesize = functools.partial(compiled, params["synthesis"], noise=buffers["noise"])
    peer = StyleGAN2(config, arrays)
    on_cpu = jax.default_backend() == "cpu"
    for batch in options.batches:
        ws = rng.standard_normal((batch, config.num_ws, mapping.w_dim)).astype(np.float32)
        ours = functools.partial(synthesize, ws=jnp.asarray(ws))
        theirs = functools.partial(peer.images, peer.tensor(ws))
        _check_agreement("images", ours(), theirs().permute(0, 2, 3, 1))
        yield compare(
            what,
            lambda ours=ours: jax.block_until_ready(ours()),
            theirs,
            peer_name="PyTorch eager",
            amount=batch,
            unit="images per CPU-second" if on_cpu else "images per second",
            repeats=options.repeats,
            clock=cpu_seconds if on_cpu else time.perf_counter,
            dtype="float32",
            batch=batch,
        )


def measure_stylegan2_train(options: argparse.Namespace) -> Iterator[Row]:
    """Compares each part of a step and a whole cycle of the lazy parts, float32.

    Augmentation is left out on both sides; a row of its own has what ours costs.
    """
    config = default_generator()
    config.batch_size = options.batch
    config.model.image_size = options.resolution
    config.model.channel_base, config.model.channel_max = options.channel_base, options.channel_max
    config.model.latent_dim = options.channel_max
    config.augment.groups = ()
    config.augment.target = 0.0
    recipe = dataclasses.replace(gan.recipe_of(config), mesh=make_mesh(jax.devices()[:1]))
    what = f"generator's training, {options.resolution} px"
    ours = _Training(recipe)
    if reason := _missing_peer():
        yield skipped(what, reason)
    else:
        parts = _peer_training(recipe, ours).parts
        yield from _measure_parts(what, recipe, ours.parts, parts, "PyTorch eager", options.repeats)
    augmented = _Training(dataclasses.replace(recipe, augment_groups=tuple(gan.ada.GROUPS)), p=0.5)
    *_, row = _measure_parts(
        f"{what}, augmented",
        recipe,
        augmented.parts,
        ours.parts,
        "ours without augmentation",
        options.repeats,
    )
    yield row


def _measure_parts(
    what: str,
    recipe: Recipe,
    ours: dict[str, Callable[[], Any]],
    theirs: dict[str, Callable[[], Any]],
    peer_name: str,
    repeats: int,
) -> list[Row]:
    lazy = {"r1": 1, "path": recipe.r1_interval // recipe.path_interval}
    frequencies = {name: lazy.get(name, recipe.r1_interval) for name in gan.PARTS}
    # Seconds by part, then by side: [repeat, part, 2]. The first time compiles.
    seconds = np.zeros((repeats + 1, len(frequencies), 2))
    for repeat in range(repeats + 1):
        for part, name in enumerate(frequencies):
            for side, run in enumerate((ours[name], theirs[name])):
                started = time.perf_counter()
                run()
                seconds[repeat, part, side] = time.perf_counter() - started
    shares = np.asarray(list(frequencies.values())) / recipe.r1_interval
    cycle = np.einsum("rps,p->rs", seconds, shares)
    rates = recipe.batch_size / np.concatenate([seconds, cycle[:, None]], axis=1)[1:]
    return [
        paired(
            f"{what}: {name}",
            [tuple(pair) for pair in rates[:, part].tolist()],
            peer_name=peer_name,
            unit="images per second",
            dtype="float32",
            batch=recipe.batch_size,
        )
        for part, name in enumerate((*frequencies, "cycle"))
    ]


class _Training:
    """The compiled parts of a step, each as a function without arguments."""

    def __init__(self, recipe: Recipe, p: float = 0.0):
        mesh = recipe.mesh
        assert mesh is not None
        init = functools.partial(gan_step.init_state, recipe=recipe)
        shapes = jax.eval_shape(init, jax.random.key(0))
        sharding = jax.tree.map(lambda _: replicated(mesh), shapes)
        state = jax.jit(init, out_shardings=sharding)(jax.random.key(0))
        self.state = dataclasses.replace(state, augment_p=state.augment_p + p)
        self.compiled = gan.jit_parts(recipe, sharding, mesh, flip=False)
        rng = np.random.default_rng(0)
        n, size = recipe.batch_size, recipe.generator.resolution
        images = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
        classes = np.eye(recipe.generator.mapping.c_dim, dtype=np.float32)
        targets = classes[rng.integers(0, len(classes), n)]
        self.batch = to_devices({"image": images, "target": targets}, mesh)
        self.key = jax.device_put(jax.random.key(1), replicated(mesh))
        self.parts = {name: functools.partial(self._run, name) for name in self.compiled}

    def _run(self, name: str) -> None:
        self.state, scalars = self.compiled[name](self.state, self.batch, self.key)
        jax.block_until_ready((self.state, scalars))


def _peer_training(recipe: Recipe, ours: _Training) -> StyleGAN2Training:
    """Returns the same training in PyTorch, after a check that both networks agree."""
    state, config = ours.state, recipe.generator
    real = np.array(normalize(ours.batch["image"])).transpose(0, 3, 1, 2)
    networks, path_batch = gan.networks_of(state, recipe), len(real) * gan_step.PATH_BATCH_SHARE
    targets = ours.batch["target"]
    peer = StyleGAN2Training(recipe, networks, real, targets, max(1, round(path_batch)))
    z = jax.random.normal(jax.random.key(2), (4, config.mapping.z_dim))
    c = jnp.asarray(np.asarray(targets[:4]))
    w = stylegan2.map_latents(config.mapping, state.generator["mapping"], z, c)
    ws = jnp.repeat(w[:, None], config.num_ws, axis=1)
    images = stylegan2.synthesize(config, state.generator["synthesis"], ws, state.noise)
    logits = stylegan2.discriminate(recipe.discriminator, state.discriminator, images, c)
    with peer.torch.no_grad():
        classes = peer.tensor(c)
        w = peer.map_latents(peer.arrays, config.mapping, peer.tensor(z), classes)
        theirs = peer.synthesize(w[:, None].repeat(1, config.num_ws, 1))
        _check_agreement("logits", logits, peer.discriminate(theirs, classes))
    _check_agreement("images", images, theirs.permute(0, 2, 3, 1))
    return peer
