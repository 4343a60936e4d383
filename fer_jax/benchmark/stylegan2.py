"""StyleGAN2's synthesis, beside the paper's formulas written plainly in PyTorch.

The peer makes the weights of every sample and runs them as one grouped convolution, as the paper
describes and most code does. Both have the same random weights, and nothing is timed before
their images agree.
"""

import argparse
import functools
import math
import time
from importlib import import_module
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.benchmark.benchmark import Row, compare, cpu_seconds, skipped
from fer_jax.models import stylegan2
from fer_jax.weights import nvidia

BATCHES = (1, 4, 16)
MAX_DISAGREEMENT = 1e-3  # of the images' size; float32 through 13 layers gives 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--resolution", type=int, default=256, help="pixels a side")
    parser.add_argument("--channel_base", type=int, default=16384, help="channels x resolution")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)


def run(options: argparse.Namespace) -> list[Row]:
    """Images per second (per CPU-second on a CPU) at every batch size, float32."""
    mapping = stylegan2.MappingConfig(
        z_dim=512, c_dim=0, w_dim=512, num_layers=8, embed_features=0, layer_features=512
    )
    config = stylegan2.GeneratorConfig(
        resolution=options.resolution, channel_base=options.channel_base, mapping=mapping
    )
    what = f"synthesis {config.resolution} px"
    try:
        torch = import_module("torch")
    except ImportError:
        return [skipped(what, "PyTorch is not installed")]
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        return [skipped(what, "PyTorch does not see the accelerator")]
    rng = np.random.default_rng(0)
    arrays = {
        name: nvidia.to_their_layout(name, rng.standard_normal(shape).astype(np.float32))
        for name, shape in stylegan2.shapes(config).items()
    }
    params, buffers = nvidia.to_trees(nvidia.checked(config, arrays))
    synthesize = jax.jit(functools.partial(stylegan2.synthesize, config))
    ours = functools.partial(synthesize, params["synthesis"], noise=buffers["noise"])
    peer = Peer(torch, config, arrays, "cpu" if on_cpu else "cuda")
    rows = []
    for batch in options.batches:
        ws = rng.standard_normal((batch, config.num_ws, mapping.w_dim)).astype(np.float32)
        on_device, theirs = jnp.asarray(ws), torch.asarray(ws, device=peer.device)
        images = np.asarray(ours(ws=on_device))
        expected = peer(theirs).permute(0, 2, 3, 1).cpu().numpy()
        error = np.abs(images - expected).max() / np.abs(expected).max()
        if error > MAX_DISAGREEMENT:
            raise RuntimeError(f"ours and PyTorch's images differ by {error:.2g} of their size")
        rows.append(
            compare(
                what,
                lambda ws=on_device: jax.block_until_ready(ours(ws=ws)),
                lambda ws=theirs: peer(ws),
                peer_name="PyTorch eager",
                amount=batch,
                unit="images per CPU-second" if on_cpu else "images per second",
                repeats=options.repeats,
                clock=cpu_seconds if on_cpu else time.perf_counter,
                dtype="float32",
                batch=batch,
            )
        )
    return rows


class Peer:
    """A skip generator in PyTorch, NCHW, with the networks' own noise."""

    def __init__(
        self,
        torch: ModuleType,
        config: stylegan2.GeneratorConfig,
        arrays: dict[str, np.ndarray],
        device: str,
    ):
        self.torch = torch
        self.config = config
        self.device = device
        self.arrays = {
            name: torch.tensor(np.asarray(array, order="C"), device=device)
            for name, array in arrays.items()
        }
        taps = torch.tensor(config.resample_filter, device=device)
        # The gain of 4 makes up for the zeros in between.
        self.taps = 4 * torch.outer(taps, taps) / taps.sum() ** 2

    def __call__(self, ws: Any) -> Any:
        """[n, num_ws, w_dim] to [n, img_channels, resolution, resolution]."""
        with self.torch.inference_mode():
            images = self.synthesize(ws)
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return images

    def synthesize(self, ws: Any, *, random_noise: bool = False) -> Any:
        """The same, with derivatives; each sample with noise of its own where that is asked for."""
        x = self.arrays["synthesis.b4.const"].repeat(len(ws), 1, 1, 1)
        images = None
        for index, (size, name) in enumerate(self.config.convolutions):
            layer = f"synthesis.b{size}.{name}"
            x = self._convolve(x, layer, ws[:, index], up=name == "conv0")
            noise = self.arrays[f"{layer}.noise_const"]
            if random_noise:
                noise = self.torch.randn(len(ws), 1, size, size, device=self.device)
            noise = noise * self.arrays[f"{layer}.noise_strength"]
            x = x + noise + self.arrays[f"{layer}.bias"][:, None, None]
            x = self.torch.nn.functional.leaky_relu(x, 0.2) * math.sqrt(2)
            if name == "conv1":
                layer = f"synthesis.b{size}.torgb"
                y = self._convolve(x, layer, ws[:, index + 1], demodulated=False)
                y = y + self.arrays[f"{layer}.bias"][:, None, None]
                images = y if images is None else self._doubled(images) + y
        return images

    def _convolve(
        self, x: Any, layer: str, w: Any, *, up: bool = False, demodulated: bool = True
    ) -> Any:
        functional = self.torch.nn.functional
        affine = self.arrays[f"{layer}.affine.weight"]
        style = functional.linear(
            w, affine / math.sqrt(affine.shape[1]), self.arrays[f"{layer}.affine.bias"]
        )
        n, channels, height, width = x.shape
        weight = self.arrays[f"{layer}.weight"] * style[:, None, :, None, None]
        if demodulated:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        else:
            weight = weight / math.sqrt(channels)
        filters, taps = weight.shape[1], weight.shape[3]
        x = x.reshape(1, n * channels, height, width)
        if up:
            weight = weight.transpose(1, 2).reshape(n * channels, filters, taps, taps)
            x = functional.conv_transpose2d(x, weight, stride=2, groups=n)
            return self._filtered(x.reshape(n, filters, *x.shape[2:]), (1, 1, 1, 1))
        weight = weight.reshape(n * filters, channels, taps, taps)
        x = functional.conv2d(x, weight, padding=taps // 2, groups=n)
        return x.reshape(n, filters, height, width)

    def _doubled(self, x: Any) -> Any:
        n, channels, height, width = x.shape
        between = self.torch.zeros(n, channels, height, 2, width, 2, device=self.device)
        between[:, :, :, 0, :, 0] = x
        return self._filtered(between.reshape(n, channels, 2 * height, 2 * width), (2, 1, 2, 1))

    def _filtered(self, x: Any, edges: tuple[int, int, int, int]) -> Any:
        functional = self.torch.nn.functional
        channels = x.shape[1]
        taps = self.taps.repeat(channels, 1, 1, 1)
        return functional.conv2d(functional.pad(x, edges), taps, groups=channels)
