"""The training of a generator: each part of a step and the whole, beside plain PyTorch.

The peer is the same step as a PyTorch user would write it from the papers: the weights of every
sample as one grouped convolution, automatic derivatives, Adam. Both start from the same weights,
and nothing is timed before their images and answers agree. Augmentation is left out on both
sides; what ours costs is a row of its own.
"""

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.benchmark.benchmark import Row, paired, single, skipped
from fer_jax.benchmark.model_side import measure_rates, peak_mb
from fer_jax.benchmark.stylegan2 import MAX_DISAGREEMENT, Peer
from fer_jax.config import default_generator
from fer_jax.data.augment import normalize
from fer_jax.models import stylegan2
from fer_jax.sharding import make_mesh, replicated, to_devices
from fer_jax.training import gan, gan_step
from fer_jax.training.gan_step import Recipe

BAR = "at least 1.2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--resolution", type=int, default=64, help="pixels a side")
    parser.add_argument("--channel_base", type=int, default=4096, help="channels x resolution")
    parser.add_argument("--channel_max", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)


def run(options: argparse.Namespace) -> list[Row]:
    """Images per second of each part and of a whole cycle of lazy parts, float32."""
    what = f"generator's training, {options.resolution} px"
    config = default_generator()
    config.batch_size = options.batch
    config.model.image_size = options.resolution
    config.model.channel_base, config.model.channel_max = options.channel_base, options.channel_max
    config.model.latent_dim = options.channel_max
    config.augment.groups = ()
    config.augment.target = 0.0
    recipe = dataclasses.replace(gan.recipe_of(config), mesh=make_mesh(jax.devices()[:1]))
    ours = _Ours(recipe)
    rows = []
    try:
        torch = import_module("torch")
    except ImportError:
        rows.append(skipped(what, "PyTorch is not installed: pip install -e '.[bench]'"))
        theirs = None
    else:
        theirs = _Theirs(torch, recipe, ours)
    if theirs is not None:
        rows += _rows(what, recipe, ours, theirs, "PyTorch eager", options.repeats, BAR)
    augmented = _Ours(dataclasses.replace(recipe, augment_groups=tuple(gan.ada.GROUPS)), p=0.5)
    without = "ours without augmentation"
    rows += _rows(f"{what}, augmented", recipe, augmented, ours, without, options.repeats)[-1:]
    due = _due(recipe)
    flop = sum(ours.flop[name] * often for name, often in due.items())
    flop /= recipe.r1_interval * recipe.batch_size
    rate = measure_rates("float32")["flop_per_second"]
    rows.append(single("operations of a cycle, for one image", flop / 1e9, "GFLOP"))
    rows.append(single("this machine's products of matrices", rate / 1e9, "GFLOP/s"))
    rows.append(single("share of that, a cycle", rows[-3]["peer"] * flop / rate, "of 1"))
    rows.append(single("peak memory of all sides together", peak_mb("ours"), "MB"))
    return rows


def _rows(
    what: str,
    recipe: Recipe,
    ours: "_Ours",
    peer: "_Ours | _Theirs",
    peer_name: str,
    repeats: int,
    bar: str = "",
) -> list[Row]:
    """A row of each part, and of a cycle: the parts' times as often as they are due in it."""
    due = _due(recipe)
    seconds: list[tuple[dict[str, float], dict[str, float]]] = []
    for repeat in range(repeats + 1):
        found: tuple[dict[str, float], dict[str, float]] = ({}, {})
        for name in due:
            for side, parts in zip(found, (ours.parts, peer.parts), strict=True):
                started = time.perf_counter()
                parts[name]()
                side[name] = time.perf_counter() - started
        # The first time compiles.
        if repeat:
            seconds.append(found)
    for pair in seconds:
        for side in pair:
            side["cycle"] = (
                sum(side[name] * often for name, often in due.items()) / recipe.r1_interval
            )
    return [
        paired(
            f"{what}: {name}",
            [
                (recipe.batch_size / own[name], recipe.batch_size / other[name])
                for own, other in seconds
            ],
            peer_name=peer_name,
            unit="images per second" + (f" ({bar})" if bar and name == "cycle" else ""),
            dtype="float32",
            batch=recipe.batch_size,
        )
        for name in (*due, "cycle")
    ]


def _due(recipe: Recipe) -> dict[str, int]:
    """How often each part runs between two of the laziest."""
    steps = recipe.r1_interval
    lazily = {"r1": 1, "path": steps // recipe.path_interval}
    return {name: lazily.get(name, steps) for name in gan.Parts._fields}


def _flop(lowered: Any) -> float:
    """A program's operations; a GPU's are known only when it is compiled, which is done anyway."""
    return (lowered.cost_analysis() or lowered.compile().cost_analysis())["flops"]


class _Ours:
    """The compiled parts, each as something to call."""

    def __init__(self, recipe: Recipe, p: float = 0.0):
        self.recipe = recipe
        mesh = recipe.mesh
        assert mesh is not None  # `run` gives it
        init = functools.partial(gan_step.init_state, recipe=recipe)
        everywhere = jax.tree.map(
            lambda _: replicated(mesh), jax.eval_shape(init, jax.random.key(0))
        )
        state = jax.jit(init, out_shardings=everywhere)(jax.random.key(0))
        self.state = dataclasses.replace(state, augment_p=state.augment_p + p)
        compiled = gan.compiled_parts(recipe, everywhere, mesh, flip=False)
        rng = np.random.default_rng(0)
        n, side = recipe.batch_size, recipe.generator.resolution
        images = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        classes = np.eye(recipe.generator.mapping.c_dim, dtype=np.float32)
        targets = classes[rng.integers(0, len(classes), n)]
        self.batch = to_devices({"image": images, "target": targets}, mesh)
        self.key = jax.device_put(jax.random.key(1), replicated(mesh))

        def part(step: gan.Step) -> Callable[[], None]:
            def once() -> None:
                self.state, scalars = step(self.state, self.batch, self.key)
                jax.block_until_ready((self.state, scalars))

            return once

        self.parts = {name: part(step) for name, step in compiled._asdict().items()}
        self.flop = {
            name: _flop(step.lower(self.state, self.batch, self.key))
            for name, step in compiled._asdict().items()
        }


class _Theirs:
    """The same parts in PyTorch, NCHW, with the same weights at the start."""

    def __init__(self, torch: ModuleType, recipe: Recipe, ours: _Ours):
        self.torch, self.recipe = torch, recipe
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        networks = gan.networks_of(ours.state, recipe)
        self.generator = Peer(torch, recipe.generator, networks["G"].arrays, self.device)
        self.arrays = self.generator.arrays
        self.judge = {
            name: torch.tensor(np.array(array), device=self.device)
            for name, array in networks["D"].arrays.items()
        }
        learned = [
            [x for name, x in arrays.items() if not name.endswith(("noise_const", "w_avg"))]
            for arrays in (self.arrays, self.judge)
        ]
        for parameters in learned:
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.learned = learned
        self.average = [x.detach().clone() for x in learned[0]]
        self.optimizers = [
            torch.optim.Adam(x, recipe.learning_rate, betas=(0.0, 0.99), eps=1e-8, fused=True)
            for x in learned
        ]
        self.path_mean = torch.zeros((), device=self.device)
        images = np.array(normalize(ours.batch["image"])).transpose(0, 3, 1, 2)
        self.images = torch.tensor(images, device=self.device)
        self.classes = torch.tensor(np.array(ours.batch["target"]), device=self.device)
        self._check(ours)
        self.parts = {
            "discriminator": self._discriminator,
            "r1": self._r1,
            "generator": self._generator,
            "path": self._path,
        }

    def _check(self, ours: _Ours) -> None:
        """Refuses to compare other networks."""
        recipe, state = self.recipe, ours.state
        z = np.random.default_rng(2).standard_normal((4, recipe.generator.mapping.z_dim))
        z, c = jnp.asarray(z, jnp.float32), jnp.asarray(np.asarray(ours.batch["target"][:4]))
        w = stylegan2.map_latents(recipe.generator.mapping, state.generator["mapping"], z, c)
        ws = jnp.repeat(w[:, None], recipe.generator.num_ws, axis=1)
        made = stylegan2.synthesize(recipe.generator, state.generator["synthesis"], ws, state.noise)
        answers = stylegan2.discriminate(recipe.discriminator, state.discriminator, made, c)
        torch = self.torch
        with torch.no_grad():
            given = [torch.tensor(np.array(x), device=self.device) for x in (z, c)]
            their_w = self._mapped(self.arrays, recipe.generator.mapping, *given)
            their_ws = their_w[:, None].repeat(1, recipe.generator.num_ws, 1)
            images = self.generator.synthesize(their_ws)
            said = self._judged(images, given[1])
        for name, a, b in (
            ("images", made, images.permute(0, 2, 3, 1)),
            ("answers", answers, said),
        ):
            a, b = np.asarray(a), b.cpu().numpy()
            error = np.abs(a - b).max() / np.abs(a).max()
            if error > MAX_DISAGREEMENT:
                raise RuntimeError(f"ours and PyTorch's {name} differ by {error:.2g} of their size")

    def _mapped(self, arrays: dict[str, Any], config: Any, z: Any, c: Any) -> Any:
        torch = self.torch

        def normalized(x: Any) -> Any:
            return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()

        parts = [normalized(z)] if z is not None else []
        if config.c_dim:
            embedded = self._dense(arrays, "mapping.embed", c)
            parts.append(normalized(embedded))
        x = torch.cat(parts, 1)
        for layer in range(config.num_layers):
            x = self._dense(arrays, f"mapping.fc{layer}", x, config.lr_multiplier)
            x = torch.nn.functional.leaky_relu(x, 0.2) * math.sqrt(2)
        return x

    def _dense(self, arrays: dict[str, Any], name: str, x: Any, rate: float = 1.0) -> Any:
        weight = arrays[f"{name}.weight"]
        gain = rate / math.sqrt(weight.shape[1])
        return self.torch.nn.functional.linear(x, weight * gain, arrays[f"{name}.bias"] * rate)

    def _judged(self, x: Any, c: Any) -> Any:
        functional, arrays = self.torch.nn.functional, self.judge
        config = self.recipe.discriminator

        def convolved(name: str, x: Any, *, stride: int = 1, gain: float = 1.0) -> Any:
            weight = arrays[f"{name}.weight"]
            weight = weight / math.sqrt(math.prod(weight.shape[1:]))
            padding = weight.shape[-1] // 2 if stride == 1 else 0
            x = functional.conv2d(x, weight, arrays[f"{name}.bias"], stride, padding)
            return functional.leaky_relu(x, 0.2) * (math.sqrt(2) * gain)

        half = math.sqrt(0.5)
        x = convolved(f"b{config.resolution}.fromrgb", x)
        for size in reversed(config.resolutions[1:]):
            skip = arrays[f"b{size}.skip.weight"]
            short = self._filtered(x, (1, 1, 1, 1))[:, :, ::2, ::2]
            short = functional.conv2d(short, skip * (half / math.sqrt(skip.shape[1])))
            x = convolved(f"b{size}.conv0", x)
            x = self._filtered(x, (2, 2, 2, 2))
            x = convolved(f"b{size}.conv1", x, stride=2, gain=half) + short
        n, channels, height, width = x.shape
        group = min(config.mbstd_group_size or n, n)
        y = x.reshape(group, n // group, channels, height, width)
        deviation = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))
        deviation = deviation.repeat(group)[:, None, None, None].expand(n, 1, height, width)
        x = convolved("b4.conv", self.torch.cat([x, deviation], 1))
        x = self._dense(arrays, "b4.fc", x.flatten(1))
        x = self._dense(arrays, "b4.out", functional.leaky_relu(x, 0.2) * math.sqrt(2))
        mapped = self._mapped(arrays, config.mapping, None, c)
        return (x * mapped).sum(1, keepdim=True) / math.sqrt(mapped.shape[1])

    def _filtered(self, x: Any, edges: tuple[int, int, int, int]) -> Any:
        functional = self.torch.nn.functional
        taps = (self.generator.taps / 4).repeat(x.shape[1], 1, 1, 1)
        return functional.conv2d(functional.pad(x, edges), taps, groups=x.shape[1])

    def _made(self, n: int) -> tuple[Any, Any]:
        torch, config = self.torch, self.recipe.generator
        c = self.classes[:n]
        first, second = (
            self._mapped(
                self.arrays,
                config.mapping,
                torch.randn(n, config.mapping.z_dim, device=self.device),
                c,
            )
            for _ in range(2)
        )
        crossing = torch.randint(1, config.num_ws, (n, 1, 1), device=self.device)
        mixes = torch.rand(n, 1, 1, device=self.device) < self.recipe.style_mixing
        layer = torch.arange(config.num_ws, device=self.device)[None, :, None]
        is_first = ~mixes | (layer < crossing)
        ws = torch.where(is_first, first[:, None], second[:, None])
        return ws, self.generator.synthesize(ws, random_noise=True)

    def _stepped(self, which: int, loss: Any) -> None:
        optimizer = self.optimizers[which]
        optimizer.zero_grad(set_to_none=True)
        gradients = self.torch.autograd.grad(loss, self.learned[which], allow_unused=True)
        for parameter, gradient in zip(self.learned[which], gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def _discriminator(self) -> None:
        softplus = self.torch.nn.functional.softplus
        with self.torch.no_grad():
            _, made = self._made(len(self.images))
        real, fake = self._judged(self.images, self.classes), self._judged(made, self.classes)
        self._stepped(1, (softplus(-real) + softplus(fake)).mean())

    def _r1(self) -> None:
        images = self.images.detach().requires_grad_(True)
        answers = self._judged(images, self.classes)
        (gradient,) = self.torch.autograd.grad(answers.sum(), images, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean()
        self._stepped(1, penalty * (self.recipe.r1_gamma / 2 * self.recipe.r1_interval))

    def _generator(self) -> None:
        _, made = self._made(len(self.images))
        answers = self._judged(made, self.classes)
        self._stepped(0, self.torch.nn.functional.softplus(-answers).mean())
        with self.torch.no_grad():
            self.torch._foreach_lerp_(self.average, self.learned[0], 0.001)

    def _path(self) -> None:
        torch = self.torch
        n = max(1, round(len(self.images) * gan_step.PATH_BATCH_SHARE))
        ws, made = self._made(n)
        direction = torch.randn_like(made) / made.shape[-1]
        (gradient,) = torch.autograd.grad((made * direction).sum(), ws, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        mean = self.path_mean.lerp(lengths.mean(), 0.01)
        self.path_mean = mean.detach()
        penalty = (lengths - mean).square().mean()
        self._stepped(0, penalty * (self.recipe.path_weight * self.recipe.path_interval))
