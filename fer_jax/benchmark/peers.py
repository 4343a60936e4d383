"""The same networks as users of PyTorch and Keras write them; nothing here imports JAX."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import cv2
import numpy as np

from fer_jax.benchmark.processes import NUM_CLASSES, random_batch

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4


def pytorch_device() -> str:
    """Returns "cuda" where PyTorch sees a GPU, else "cpu"."""
    return "cuda" if import_module("torch").cuda.is_available() else "cpu"


def pytorch_step(
    kind: str, *, mode: str, dtype: str, batch: int, image_size: int, width: float
) -> tuple[Callable[[], Any], int]:
    """Returns a step of Xception in PyTorch, "eager" or "compiled", and its parameters' number."""
    torch = import_module("torch")
    device = pytorch_device()
    network = pytorch_xception(width).to(device, memory_format=torch.channels_last)
    num_parameters = sum(x.numel() for x in network.parameters())
    forward = torch.compile(network) if kind == "compiled" else network
    images, labels = (torch.from_numpy(x).to(device) for x in random_batch(batch, image_size))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def logits() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return forward(images.permute(0, 3, 1, 2).float() / 127.5 - 1)

    def step() -> None:
        if mode == "inference":
            with torch.inference_mode():
                logits()
        else:
            loss = torch.nn.functional.cross_entropy(logits().float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    network.train(mode == "train")
    return step, num_parameters


def pytorch_xception(width: float) -> Any:
    """Returns Xception in PyTorch, NCHW.

    Its max-pool pads both sides, as PyTorch's does; Keras pads an even size at the end only.
    """
    nn = import_module("torch.nn")
    norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)

    def convolution(channels: int, filters: int, stride: int) -> list[Any]:
        layer = nn.Conv2d(channels, filters, 3, stride=stride, bias=False)
        return [layer, norm(filters), nn.ReLU()]

    def separable(channels: int, filters: int) -> list[Any]:
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        return [depthwise, nn.Conv2d(channels, filters, 1, bias=False), norm(filters)]

    class Block(nn.Module):
        def __init__(self, shortcut: Any, layers: list[Any]):
            super().__init__()
            self.shortcut = shortcut
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return self.shortcut(x) + self.layers(x)

    def entry(channels: int, middle: int, filters: int, first_relu: bool = True) -> Any:
        shortcut = nn.Conv2d(channels, filters, 1, stride=2, bias=False)
        layers: list[Any] = [nn.ReLU()] if first_relu else []
        layers += [*separable(channels, middle), nn.ReLU(), *separable(middle, filters)]
        layers.append(nn.MaxPool2d(3, 2, padding=1))
        return Block(nn.Sequential(shortcut, norm(filters)), layers)

    def middle(channels: int) -> Any:
        layers = [layer for _ in range(3) for layer in (nn.ReLU(), *separable(channels, channels))]
        return Block(nn.Identity(), layers)

    c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
        max(8, round(c * width / 8) * 8) for c in (32, 64, 128, 256, 728, 1024, 1536, 2048)
    )
    return nn.Sequential(
        *convolution(3, c32, 2),
        *convolution(c32, c64, 1),
        *(entry(c64, c128, c128, False), entry(c128, c256, c256), entry(c256, c728, c728)),
        *(middle(c728) for _ in range(8)),
        entry(c728, c728, c1024),
        *(*separable(c1024, c1536), nn.ReLU(), *separable(c1536, c2048), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(c2048, NUM_CLASSES)),
    )


def keras_step(
    backend: str, *, mode: str, dtype: str, batch: int, image_size: int, width: float
) -> tuple[Callable[[], Any], int]:
    """Returns a step of Keras's own Xception on a backend, and its parameters' number."""
    os.environ["KERAS_BACKEND"] = backend
    keras: Any = import_module("keras")
    if width != 1:
        raise ValueError("Keras has Xception at full width only")
    if dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = keras.applications.Xception(
        weights=None,
        input_shape=(image_size, image_size, 3),
        classes=NUM_CLASSES,
        classifier_activation=None,
    )
    num_parameters = sum(int(np.prod(x.shape)) for x in model.trainable_weights)
    images, labels = random_batch(batch, image_size)
    images = images.astype(np.float32) / 127.5 - 1
    if mode == "inference":
        return lambda: model.predict_on_batch(images), num_parameters
    model.compile(
        optimizer=keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda: model.train_on_batch(images, labels), num_parameters


def data_loader(jpegs: list[bytes], amount: int, *, batch_size: int, workers: int) -> Any:
    """Returns a PyTorch DataLoader that decodes so many images, in processes that stay."""
    return import_module("torch.utils.data").DataLoader(
        JpegDataset(jpegs, amount),
        batch_size=batch_size,
        num_workers=workers,
        # Workers that are forked from a process with threads may hang.
        multiprocessing_context="spawn",
        persistent_workers=True,
    )


class JpegDataset:
    """Images by number, decoded when they are read."""

    def __init__(self, jpegs: list[bytes], amount: int) -> None:
        self.jpegs, self.amount = jpegs, amount

    def __len__(self) -> int:
        return self.amount

    def __getitem__(self, number: int) -> Any:
        data = np.frombuffer(self.jpegs[number % len(self.jpegs)], np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


class StyleGAN2:
    """StyleGAN2's networks in PyTorch, NCHW, from their configs and arrays by NVIDIA's names.

    The modulated weights of each sample run as one grouped convolution, as the paper describes.
    """

    def __init__(
        self,
        generator: Any,
        arrays: Mapping[str, Any],
        discriminator: Any = None,
        discriminator_arrays: Mapping[str, Any] | None = None,
    ):
        self.torch = import_module("torch")
        self.functional = self.torch.nn.functional
        self.device = pytorch_device()
        self.config, self.discriminator = generator, discriminator
        self.arrays, self.discriminator_arrays = (
            {name: self.tensor(array) for name, array in (given or {}).items()}
            for given in (arrays, discriminator_arrays)
        )
        taps = self.tensor(generator.resample_filter)
        self.taps = self.torch.outer(taps, taps) / taps.sum() ** 2

    def tensor(self, array: Any) -> Any:
        """Copies an array to the device, as float32."""
        array = np.array(array, np.float32, order="C")
        return self.torch.tensor(array, device=self.device)

    def wait(self) -> None:
        """Waits until the device has computed everything."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def images(self, ws: Any) -> Any:
        """Computes [n, img_channels, resolution, resolution] from [n, num_ws, w_dim], and waits."""
        with self.torch.inference_mode():
            images = self.synthesize(ws)
        self.wait()
        return images

    def synthesize(self, ws: Any, *, random_noise: bool = False) -> Any:
        """Computes images with derivatives, with the network's noise or random noise."""
        x = self.arrays["synthesis.b4.const"].repeat(len(ws), 1, 1, 1)
        images = None
        for index, (size, name) in enumerate(self.config.convolutions):
            layer = f"synthesis.b{size}.{name}"
            x = self._modulated(x, layer, ws[:, index], up=name == "conv0")
            noise = self.arrays[f"{layer}.noise_const"]
            if random_noise:
                noise = self.torch.randn(len(ws), 1, size, size, device=self.device)
            x = x + noise * self.arrays[f"{layer}.noise_strength"]
            x = self._activated(x + self.arrays[f"{layer}.bias"][:, None, None])
            if name == "conv1":
                layer = f"synthesis.b{size}.torgb"
                y = self._modulated(x, layer, ws[:, index + 1], demodulated=False)
                y = y + self.arrays[f"{layer}.bias"][:, None, None]
                images = y if images is None else self._upsampled(images) + y
        return images

    def map_latents(self, arrays: Mapping[str, Any], config: Any, z: Any, c: Any) -> Any:
        """Computes w [n, w_dim] from latents z, or None, and one-hot classes c."""
        parts = [_normalized(z)] if z is not None else []
        if config.c_dim:
            parts.append(_normalized(self._dense(arrays, "mapping.embed", c)))
        x = self.torch.cat(parts, 1)
        for layer in range(config.num_layers):
            dense = self._dense(arrays, f"mapping.fc{layer}", x, config.lr_multiplier)
            x = self._activated(dense)
        return x

    def discriminate(self, x: Any, c: Any) -> Any:
        """Computes logits [n, 1] of images of classes c."""
        config, half = self.discriminator, math.sqrt(0.5)
        x = self._convolved(f"b{config.resolution}.fromrgb", x)
        for size in reversed(config.resolutions[1:]):
            skip = self.discriminator_arrays[f"b{size}.skip.weight"]
            short = self._filtered(x, (1, 1, 1, 1))[:, :, ::2, ::2]
            short = self.functional.conv2d(short, skip * (half / math.sqrt(skip.shape[1])))
            x = self._filtered(self._convolved(f"b{size}.conv0", x), (2, 2, 2, 2))
            x = self._convolved(f"b{size}.conv1", x, stride=2, gain=half) + short
        n, channels, height, width = x.shape
        group = min(config.mbstd_group_size or n, n)
        y = x.reshape(group, n // group, channels, height, width)
        deviation = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))
        deviation = deviation.repeat(group)[:, None, None, None].expand(n, 1, height, width)
        x = self._convolved("b4.conv", self.torch.cat([x, deviation], 1))
        x = self._activated(self._dense(self.discriminator_arrays, "b4.fc", x.flatten(1)))
        x = self._dense(self.discriminator_arrays, "b4.out", x)
        mapped = self.map_latents(self.discriminator_arrays, config.mapping, None, c)
        return (x * mapped).sum(1, keepdim=True) / math.sqrt(mapped.shape[1])

    def _activated(self, x: Any) -> Any:
        return self.functional.leaky_relu(x, 0.2) * math.sqrt(2)

    def _dense(self, arrays: Mapping[str, Any], name: str, x: Any, rate: float = 1.0) -> Any:
        weight = arrays[f"{name}.weight"]
        gain = rate / math.sqrt(weight.shape[1])
        return self.functional.linear(x, weight * gain, arrays[f"{name}.bias"] * rate)

    def _convolved(self, name: str, x: Any, *, stride: int = 1, gain: float = 1.0) -> Any:
        weight = self.discriminator_arrays[f"{name}.weight"]
        weight = weight / math.sqrt(math.prod(weight.shape[1:]))
        padding = weight.shape[-1] // 2 if stride == 1 else 0
        x = self.functional.conv2d(
            x, weight, self.discriminator_arrays[f"{name}.bias"], stride, padding
        )
        return self._activated(x) * gain

    def _modulated(
        self, x: Any, layer: str, w: Any, *, up: bool = False, demodulated: bool = True
    ) -> Any:
        style = self._dense(self.arrays, f"{layer}.affine", w)
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
            x = self.functional.conv_transpose2d(x, weight, stride=2, groups=n)
            return self._filtered(x.reshape(n, filters, *x.shape[2:]), (1, 1, 1, 1), gain=4)
        weight = weight.reshape(n * filters, channels, taps, taps)
        x = self.functional.conv2d(x, weight, padding=taps // 2, groups=n)
        return x.reshape(n, filters, height, width)

    def _upsampled(self, x: Any) -> Any:
        n, channels, height, width = x.shape
        zeros = self.torch.zeros(n, channels, height, 2, width, 2, device=self.device)
        zeros[:, :, :, 0, :, 0] = x
        x = zeros.reshape(n, channels, 2 * height, 2 * width)
        return self._filtered(x, (2, 1, 2, 1), gain=4)

    def _filtered(self, x: Any, edges: tuple[int, int, int, int], gain: int = 1) -> Any:
        channels = x.shape[1]
        taps = (gain * self.taps).repeat(channels, 1, 1, 1)
        return self.functional.conv2d(self.functional.pad(x, edges), taps, groups=channels)


def _normalized(x: Any) -> Any:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class StyleGAN2Training(StyleGAN2):
    """The parts of a training step, from the papers: logistic loss, R1, path length, Adam.

    Every step has the same real images, float32 [n, channels, s, s] in -1 ... 1, and their one-hot
    classes [n, k]; a path length step has `path_batch` images.
    """

    def __init__(
        self, recipe: Any, networks: Any, images: np.ndarray, classes: Any, path_batch: int
    ):
        generator, discriminator = (networks[name].arrays for name in ("G", "D"))
        super().__init__(recipe.generator, generator, recipe.discriminator, discriminator)
        torch, self.recipe, self.path_batch = self.torch, recipe, path_batch
        self.learned = [
            [x for name, x in arrays.items() if not name.endswith(("noise_const", "w_avg"))]
            for arrays in (self.arrays, self.discriminator_arrays)
        ]
        for parameters in self.learned:
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.average = [x.detach().clone() for x in self.learned[0]]
        self.optimizers = [
            torch.optim.Adam(x, recipe.learning_rate, betas=(0.0, 0.99), eps=1e-8, fused=True)
            for x in self.learned
        ]
        self.path_mean = torch.zeros((), device=self.device)
        self.real, self.classes = self.tensor(images), self.tensor(classes)
        self.parts = {
            "discriminator": self._train_discriminator,
            "r1": self._regularize_r1,
            "generator": self._train_generator,
            "path": self._regularize_path,
        }

    def _generated(self, n: int) -> tuple[Any, Any]:
        torch, config = self.torch, self.config
        latents = torch.randn(2, n, config.mapping.z_dim, device=self.device)
        first, second = (
            self.map_latents(self.arrays, config.mapping, z, self.classes[:n]) for z in latents
        )
        crossing = torch.randint(1, config.num_ws, (n, 1, 1), device=self.device)
        mixes = torch.rand(n, 1, 1, device=self.device) < self.recipe.style_mixing
        layer = torch.arange(config.num_ws, device=self.device)[None, :, None]
        ws = torch.where(~mixes | (layer < crossing), first[:, None], second[:, None])
        return ws, self.synthesize(ws, random_noise=True)

    def _update(self, network: int, loss: Any) -> None:
        learned = self.learned[network]
        gradients = self.torch.autograd.grad(loss, learned, allow_unused=True)
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient
        self.optimizers[network].step()
        self.wait()

    def _train_discriminator(self) -> None:
        with self.torch.no_grad():
            _, images = self._generated(len(self.real))
        softplus = self.functional.softplus
        real, fake = (self.discriminate(x, self.classes) for x in (self.real, images))
        self._update(1, (softplus(-real) + softplus(fake)).mean())

    def _regularize_r1(self) -> None:
        images = self.real.detach().requires_grad_(True)
        logits = self.discriminate(images, self.classes)
        (gradient,) = self.torch.autograd.grad(logits.sum(), images, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean()
        self._update(1, penalty * (self.recipe.r1_gamma / 2 * self.recipe.r1_interval))

    def _train_generator(self) -> None:
        _, images = self._generated(len(self.real))
        logits = self.discriminate(images, self.classes)
        self._update(0, self.functional.softplus(-logits).mean())
        with self.torch.no_grad():
            self.torch._foreach_lerp_(self.average, self.learned[0], 0.001)

    def _regularize_path(self) -> None:
        torch = self.torch
        ws, images = self._generated(self.path_batch)
        direction = torch.randn_like(images) / images.shape[-1]
        (gradient,) = torch.autograd.grad((images * direction).sum(), ws, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        mean = self.path_mean.lerp(lengths.mean(), 0.01)
        self.path_mean = mean.detach()
        penalty = (lengths - mean).square().mean()
        self._update(0, penalty * (self.recipe.path_weight * self.recipe.path_interval))
