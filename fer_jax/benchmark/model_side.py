"""One side of `benchmark model` in a process of its own, so that its peak memory is its own.

Reads words from stdin and answers each with a line of JSON on stdout: `run` does one step,
`rates` measures the machine, and the end of the input the peak memory.
"""

import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TextIO

import numpy as np

NUM_CLASSES = 7
# side: the package it needs
SIDES = {
    "ours": "jax",
    "ours, grouped convolution": "jax",
    "ours, shifted adds": "jax",
    "PyTorch eager": "torch",
    "PyTorch compiled": "torch",
    "Keras on JAX": "keras",
    "Keras on PyTorch": "keras",
}
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4
# The middle blocks' product at batch 8, and an array that no cache holds.
MATMUL_SHAPE = (1568, 728, 728)
COPIED_ELEMENTS = 2**26

Step = Callable[[], Any]


def missing(side: str) -> str:
    """The package that a side needs and that is not installed, or ""."""
    needed = [SIDES[side], *(["torch"] if side == "Keras on PyTorch" else [])]
    return next((name for name in needed if find_spec(name) is None), "")


def model_arguments(dtype: str, image_size: int, width: float) -> dict[str, Any]:
    """The published network's arguments for `xception.Xception`."""
    return {
        **{"num_classes": NUM_CLASSES, "width": width, "num_middle_blocks": 8, "head": "gap"},
        **{"image_size": image_size, "dropout": 0.5, "dtype": dtype},
        "batch_norm_momentum": 0.99,
    }


def _draw(batch: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, image_size, image_size, 3), dtype=np.uint8)
    return images, rng.integers(0, NUM_CLASSES, batch)


def _ours(
    mode: str, dtype: str, batch: int, image_size: int, width: float, depthwise: str = ""
) -> tuple[Step, int]:
    import jax

    from fer_jax.config import default_config
    from fer_jax.data.augment import normalize
    from fer_jax.models import separable, xception
    from fer_jax.models.normalization import affine, as_unnormalized
    from fer_jax.training.optimizer import make_optimizer, make_schedule
    from fer_jax.training.step import init_state, train_step

    def grouped(x: Any, kernel: Any, *, relu: bool = False) -> Any:
        inputs = affine(x) if isinstance(x, tuple) else x
        return separable.grouped_conv3x3(jax.nn.relu(inputs) if relu else inputs, kernel)

    def shifted(x: Any, kernel: Any, *, relu: bool = False) -> Any:
        inputs = x if isinstance(x, tuple) else as_unnormalized(x)
        return separable.shifted_conv3x3(inputs, kernel, relu)

    if depthwise:
        forms = {"grouped": grouped, "shifted": shifted}
        separable.depthwise_conv3x3 = forms[depthwise]
    model = model_arguments(dtype, image_size, width)
    optimizer = make_optimizer(
        make_schedule(learning_rate=LEARNING_RATE, num_steps=1, warmup_steps=0, name="constant"),
        **{"name": "adamw", "weight_decay": WEIGHT_DECAY, "momentum": 0.9},
        max_gradient_norm=0.0,
    )
    init = functools.partial(init_state, optimizer=optimizer, model=model, ema=False)
    state = jax.jit(init)(jax.random.key(0))
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    images, labels = _draw(batch, image_size)
    graphdef = xception.graphdef(**model)
    if mode == "inference":
        predict = jax.jit(lambda p, s, x: xception.apply(graphdef, p, s, normalize(x))[0])
        on_device = jax.device_put(images)
        params, batch_stats = state.params, state.batch_stats
        del state
        return lambda: predict(params, batch_stats, on_device).block_until_ready(), num_parameters
    step = jax.jit(
        functools.partial(
            train_step,
            graphdef=graphdef,
            optimizer=optimizer,
            class_weights=np.ones(NUM_CLASSES, np.float32),
            label_smoothing=0.0,
            augmentation={name: 0 for name in default_config().augment},
            accumulation_steps=1,
            ema_decay=0.0,
            frozen_statistics=False,
            dynamic_loss_scale=False,
        ),
        donate_argnums=0,
    )
    examples = {"image": images, "target": np.eye(NUM_CLASSES, dtype=np.float32)[labels]}
    batch_on_device, key = jax.device_put(examples), jax.random.key(1)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch_on_device, key)
        jax.block_until_ready((state, metrics))

    return run, num_parameters


def _pytorch(
    mode: str, dtype: str, batch: int, image_size: int, width: float, compiled: bool
) -> tuple[Step, int]:
    import torch  # pyright: ignore[reportMissingImports] (an optional peer)

    device = "cuda" if on_accelerator("PyTorch") else "cpu"
    network = pytorch_xception(width).to(device, memory_format=torch.channels_last)
    num_parameters = sum(x.numel() for x in network.parameters())
    forward = torch.compile(network) if compiled else network
    images, labels = (torch.from_numpy(x).to(device) for x in _draw(batch, image_size))
    autocast = functools.partial(
        torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16"
    )

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def normalized() -> Any:
        x = images.permute(0, 3, 1, 2)  # a view: already channels_last
        return x.float() / 127.5 - 1

    def predict() -> None:
        with torch.inference_mode(), autocast():
            forward(normalized())
        finish()

    if mode == "inference":
        network.eval()
        return predict, num_parameters
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def train() -> None:
        with autocast():
            logits = forward(normalized())
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        finish()

    return train, num_parameters


def pytorch_xception(width: float) -> Any:
    """The same network as a PyTorch user would write it, NCHW.

    Its max-pool pads both sides, as PyTorch's does; Keras pads an even size at the end only.
    """
    from torch import nn  # pyright: ignore[reportMissingImports] (an optional peer)

    def norm(channels: int) -> Any:
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

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


def _keras(
    mode: str, dtype: str, batch: int, image_size: int, width: float, backend: str
) -> tuple[Step, int]:
    os.environ["KERAS_BACKEND"] = backend
    import keras

    if width != 1:
        raise ValueError("Keras has Xception at full width only")
    if dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    network: Any = keras.applications.Xception  # its hints forbid None, its text asks for it
    model = network(
        weights=None,
        input_shape=(image_size, image_size, 3),
        classes=NUM_CLASSES,
        classifier_activation=None,
    )
    num_parameters = sum(int(np.prod(x.shape)) for x in model.trainable_weights)
    images, labels = _draw(batch, image_size)
    images = images.astype(np.float32) / 127.5 - 1
    if mode == "inference":
        return lambda: model.predict_on_batch(images), num_parameters
    model.compile(
        optimizer=keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda: model.train_on_batch(images, labels), num_parameters


def make(
    side: str, mode: str, dtype: str, batch: int, image_size: int, width: float
) -> tuple[Step, int]:
    """A side's step, ready to run, and its number of trainable parameters.

    Args:
      side: one of SIDES.
      mode: "train" (forward, backward, AdamW) or "inference".
      dtype: "float32" or "bfloat16".
      batch: images a step.
      image_size: pixels a side.
      width: multiplies every channel count.
    """
    build = {
        "ours": _ours,
        "ours, grouped convolution": functools.partial(_ours, depthwise="grouped"),
        "ours, shifted adds": functools.partial(_ours, depthwise="shifted"),
        "PyTorch eager": functools.partial(_pytorch, compiled=False),
        "PyTorch compiled": functools.partial(_pytorch, compiled=True),
        "Keras on JAX": functools.partial(_keras, backend="jax"),
        "Keras on PyTorch": functools.partial(_keras, backend="torch"),
    }[side]
    return build(mode, dtype, batch, image_size, width)


def on_accelerator(side: str) -> bool:
    """Whether a side computes on a GPU or TPU, as its library finds one."""
    if SIDES.get(side, "torch") == "torch" or side == "Keras on PyTorch":
        import torch  # pyright: ignore[reportMissingImports] (an optional peer)

        return torch.cuda.is_available()
    import jax

    return jax.default_backend() != "cpu"


def peak_mb(side: str) -> float:
    """The most memory that a side has used: of its GPU where it has one, else of its process."""
    if not on_accelerator(side):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if "PyTorch" in side:
        import torch  # pyright: ignore[reportMissingImports] (an optional peer)

        return torch.cuda.max_memory_allocated() / 2**20
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20


def measure_rates(dtype: str, repeats: int = 5) -> dict[str, float]:
    """What this machine reaches through JAX: the fastest of some runs.

    Returns:
      {"flop_per_second": of a middle block's matrix product, "bytes_per_second": read and
      written by adding 1 to 256 MiB of float32}.
    """
    import jax
    import jax.numpy as jnp

    rows, inner, columns = MATMUL_SHAPE
    # A GPU is kept busy by larger products, and by many in a row: a single one is over before
    # the next has been asked for.
    accelerator = jax.default_backend() != "cpu"
    rows, in_a_row = (rows * 32, 20) if accelerator else (rows, 1)
    a, b = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    matmul = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    add, long = jax.jit(lambda x: x + 1), jnp.ones(COPIED_ELEMENTS, jnp.float32)

    def fastest(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            jax.block_until_ready([run() for _ in range(in_a_row)][-1])
            times.append((time.perf_counter() - started) / in_a_row)
        return min(times[1:])

    return {
        "flop_per_second": 2 * rows * inner * columns / fastest(lambda: matmul(a, b)),
        "bytes_per_second": 2 * long.nbytes / fastest(lambda: add(long)),
    }


def serve(spec: dict[str, Any], words: TextIO, answers: TextIO) -> None:
    """Builds a side and obeys.

    Args:
      spec: keyword arguments of `make`.
      words: `run` or `rates`, one a line.
      answers: receives a line of JSON when the first step is done, and for each word.
    """

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    started = time.perf_counter()
    run, num_parameters = make(**spec)
    run()
    first_step_s = time.perf_counter() - started
    accelerator = on_accelerator(spec["side"])
    answer(first_step_s=first_step_s, num_parameters=num_parameters, accelerator=accelerator)
    rates: dict[str, float] = {}
    for word in words:
        if word.strip() == "rates":
            rates = measure_rates(spec["dtype"])
        else:
            run()
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_seconds = used.ru_utime + used.ru_stime
        answer(cpu_seconds=cpu_seconds, peak_mb=peak_mb(spec["side"]), **rates)


if __name__ == "__main__":
    # Libraries may print: answers keep the real stdout for themselves.
    with os.fdopen(os.dup(1), "w") as stdout:
        os.dup2(2, 1)
        serve(json.loads(sys.argv[1]), sys.stdin, stdout)
