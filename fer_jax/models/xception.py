"""Xception (Chollet 2017) as in Keras: images to logits.

Training handles it as `graphdef` (the network without its arrays), `params` and `batch_stats`
(nested plain dicts), which `apply` joins.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.errors import InputError
from fer_jax.models.layers import Convolution, Pointwise, Separable, affine, max_pool3x3

MIN_STEM_SIZE = 35  # pixels a side after the first convolution, of Keras' smallest image, 71
LARGEST = {"width": 16, "num_middle_blocks": 256, "image_size": 4096}
ENTRY = ("entry1", "entry2", "entry3")
FLOWS = ("stem", "entry", "middle", "exit")  # in order; other layers are the head
LUMA = (0.299, 0.587, 0.114)  # Rec. 601
MIXED_BLOCKS = 2  # MixStyle follows the early blocks; later features are the content

Mix = Callable[[jax.Array, int], jax.Array]  # (activations, number of the block) to the mixed ones


class EntryBlock(nnx.Module):
    """Two separable convolutions and a max-pool, with a strided 1x1 shortcut."""

    def __init__(self, channels: int, middle: int, filters: int, *, first_relu: bool, **norm: Any):
        self.shortcut = Pointwise(channels, filters, stride=2, **norm)
        self.separable1 = Separable(channels, middle, relu=first_relu, **norm)
        self.separable2 = Separable(middle, filters, **norm)

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Maps [b, h, w, channels] to [b, h / 2, w / 2, filters]."""
        shortcut = self.shortcut(x, use_running_average)
        y = self.separable2(self.separable1(x, use_running_average), use_running_average)
        return max_pool3x3(affine(y)) + affine(shortcut)


class MiddleBlock(nnx.Module):
    """Three separable convolutions with an identity shortcut."""

    def __init__(self, channels: int, **norm: Any):
        self.separable1 = Separable(channels, channels, **norm)
        self.separable2 = Separable(channels, channels, **norm)
        self.separable3 = Separable(channels, channels, **norm)

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Maps [b, h, w, channels] to the same shape."""
        y = self.separable2(self.separable1(x, use_running_average), use_running_average)
        return x + affine(self.separable3(y, use_running_average))


class Xception(nnx.Module):
    """The network; its arguments are the config fields `model.*`, described in fer_jax/fields.py.

    Channel counts are multiplied by `width` and rounded to multiples of 8. The head "gap" is global
    average pooling, dropout and a dense layer; "mlp" flattens and has two dense layers of 512, each
    with dropout, before it; only it depends on `image_size`. Parameters, statistics and logits are
    float32 (with the dtype "float64", for tests, everything is float64). On CPU `remat` saves no
    memory, because XLA merges the two computations. InputError for a value that is not allowed.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        width: float = 1.0,
        num_middle_blocks: int = 8,
        head: str = "gap",
        image_size: int = 224,
        stem_stride: int = 2,
        grayscale: bool = False,
        dropout: float = 0.5,
        dtype: str = "float32",
        batch_norm_momentum: float = 0.99,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if stem_stride not in (1, 2):
            raise InputError(f"model.stem_stride is 1 or 2, not {stem_stride}")
        smallest = (MIN_STEM_SIZE - 1) * stem_stride + 3
        if image_size < smallest:
            raise InputError(
                f"model.image_size must be at least {smallest} where model.stem_stride is "
                f"{stem_stride}, not {image_size}"
            )
        if not width > 0:
            raise InputError(f"model.width must be above 0, not {width}")
        # A changed config.json must not fill the memory before anything is compared.
        sizes = {"width": width, "num_middle_blocks": num_middle_blocks, "image_size": image_size}
        for name, largest in LARGEST.items():
            if sizes[name] > largest:
                raise InputError(f"model.{name} must be at most {largest}, not {sizes[name]}")
        if num_middle_blocks < 0:
            raise InputError(f"model.num_middle_blocks must be at least 0, not {num_middle_blocks}")

        def channels(published: int) -> int:
            return max(8, round(published * width / 8) * 8)

        self.dtype = jnp.dtype(dtype)
        self.head = head
        self.grayscale = grayscale
        self.num_middle_blocks = num_middle_blocks
        self.dropout = nnx.Dropout(dropout)
        self.remat = remat
        norm = {"momentum": batch_norm_momentum, "rngs": rngs}
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = map(
            channels, (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        self.stem1 = Convolution(3, c32, stride=stem_stride, **norm)
        self.stem2 = Convolution(c32, c64, stride=1, **norm)
        self.entry1 = EntryBlock(c64, c128, c128, first_relu=False, **norm)
        self.entry2 = EntryBlock(c128, c256, c256, first_relu=True, **norm)
        self.entry3 = EntryBlock(c256, c728, c728, first_relu=True, **norm)
        # Attributes, not a list: a list's integer keys do not survive a checkpoint.
        for number in range(1, num_middle_blocks + 1):
            setattr(self, f"middle{number}", MiddleBlock(c728, **norm))
        self.exit1 = EntryBlock(c728, c728, c1024, first_relu=True, **norm)
        self.exit2 = Separable(c1024, c1536, relu=False, **norm)
        self.exit3 = Separable(c1536, c2048, **norm)

        def dense(inputs: int, outputs: int) -> nnx.Linear:
            initializer = nnx.initializers.glorot_uniform()
            # The head computes in float32 (or float64): it costs nothing and decides the loss.
            exact = jnp.promote_types(self.dtype, jnp.float32)
            return nnx.Linear(inputs, outputs, kernel_init=initializer, dtype=exact, rngs=rngs)

        if head == "gap":
            self.logits = dense(c2048, num_classes)
        else:
            pixels = output_size(image_size, stem_stride) ** 2
            self.hidden1 = dense(c2048 * pixels, 512)
            self.hidden2 = dense(512, 512)
            self.logits = dense(512, num_classes)

    def features(
        self,
        images: jax.Array,
        *,
        use_running_average: bool = True,
        frozen_stem: bool = False,
        mix: Mix | None = None,
    ) -> jax.Array:
        """Computes the last activations before pooling of images [batch, size, size, 3] in [-1, 1].

        BatchNorm uses its running statistics, or else the batch's and updates the running ones;
        that of a `frozen_stem` always uses the running ones.
        `mix` mixes styles after the first two entry blocks (`methods.mixstyle`).

        Returns [batch, h, h, 2048 * width], h from `output_size`, in the computing dtype.
        """
        running = use_running_average
        if self.grayscale:
            images = jnp.broadcast_to(grey(images), images.shape)
        fixed = running or frozen_stem
        x = self.stem2(self.stem1(images.astype(self.dtype), fixed), fixed)
        middle = [f"middle{number}" for number in range(1, self.num_middle_blocks + 1)]
        for number, name in enumerate((*ENTRY, *middle, "exit1"), 1):
            block = getattr(self, name)
            x = _rematerialized(block, x, running) if self.remat else block(x, running)
            if mix is not None and number <= MIXED_BLOCKS:
                x = mix(x, number)
        return nnx.relu(affine(self.exit3(self.exit2(x, running), running)))

    def pooled_and_logits(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        frozen_statistics: bool = False,
        frozen_stem: bool = False,
        dropout_key: jax.Array | None = None,
        mix: Mix | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the features averaged over each image, and the logits.

        With `train` dropout is on, for which it needs a random key, styles are mixed as in
        `features`, and BatchNorm uses the batch's statistics unless they, or the stem, are frozen.

        Returns (float32 [batch, 2048 * width], float32 [batch, num_classes]).
        """
        x = self.features(
            images,
            use_running_average=not train or frozen_statistics,
            frozen_stem=frozen_stem,
            mix=mix if train else None,
        )
        if train and self.dropout.rate and dropout_key is None:
            raise ValueError("training with dropout needs a dropout_key")
        return self.from_features(x, dropout_key if train else None)

    def from_features(
        self, x: jax.Array, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Computes `pooled_and_logits` from `features`; without a key there is no dropout."""
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        keys = [None, None]
        if dropout_key is not None and self.dropout.rate:
            keys = list(jax.random.split(dropout_key))

        def drop(x: jax.Array, key: jax.Array | None) -> jax.Array:
            return self.dropout(x, deterministic=key is None, rngs=key)

        pooled = x.mean(axis=(1, 2))
        if self.head == "gap":
            return pooled, self.logits(drop(pooled, keys[0]))
        x = x.reshape(len(x), -1)
        x = drop(nnx.relu(self.hidden1(x)), keys[0])
        x = drop(nnx.relu(self.hidden2(x)), keys[1])
        return pooled, self.logits(x)


def grey(images: jax.Array) -> jax.Array:
    """Returns the luma of RGB images: [..., 3] to [..., 1], in their dtype and scale."""
    return jnp.sum(images * jnp.asarray(LUMA, images.dtype), axis=-1, keepdims=True)


def _rematerialized(block: Any, x: jax.Array, running: bool) -> jax.Array:
    graphdef, state = nnx.split(block)

    @jax.checkpoint
    def run(state: Any, x: jax.Array) -> Any:
        inner = nnx.merge(graphdef, state)
        y = inner(x, running)
        return y, nnx.state(inner, nnx.BatchStat)

    y, batch_stats = run(state, x)
    nnx.update(block, batch_stats)
    return y


def layers_by_block(names: Iterable[str]) -> list[list[str]]:
    """Groups the layers' names by block: the stem, every block of the flows in order, the head."""
    blocks: dict[tuple[int, int], list[str]] = {}
    for name in names:
        flow = name.rstrip("0123456789")
        number = int(name.removeprefix(flow)) if flow in FLOWS[1:] else 0
        place = FLOWS.index(flow) if flow in FLOWS else len(FLOWS)
        blocks.setdefault((place, number), []).append(name)
    return [blocks[place] for place in sorted(blocks)]


def stem_sizes(image_size: int, stem_stride: int = 2) -> tuple[int, int]:
    """Returns the pixels a side after each of the stem's convolutions, which are not padded."""
    first = (image_size - 3) // stem_stride + 1
    return first, first - 2


def output_size(image_size: int, stem_stride: int = 2) -> int:
    """Returns the pixels a side of `features` for images of `image_size` pixels a side."""
    _, size = stem_sizes(image_size, stem_stride)
    for _ in range(4):
        size = -(-size // 2)
    return size


def init(key: jax.Array, **model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Initializes (params, batch_stats), nested plain dicts of float32, of `Xception(**model)`."""
    _, params, batch_stats = nnx.split(
        Xception(**model, rngs=nnx.Rngs(params=key)), nnx.Param, nnx.BatchStat
    )
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def graphdef(**model: Any) -> Any:
    """Returns `Xception(**model)` without its arrays, for `apply`; computes nothing."""
    abstract = nnx.eval_shape(lambda: Xception(**model, rngs=nnx.Rngs(params=0)))
    return nnx.split(abstract, nnx.Param, nnx.BatchStat)[0]


def apply(
    graphdef: Any,
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    images: jax.Array,
    **how: Any,
) -> tuple[jax.Array, dict[str, Any]]:
    """Returns (logits float32 [batch, classes], batch_stats); `how` is for `pooled_and_logits`."""
    _, logits, batch_stats = apply_pooled(graphdef, params, batch_stats, images, **how)
    return logits, batch_stats


def apply_pooled(
    graphdef: Any,
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    images: jax.Array,
    **how: Any,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Does the same as `apply`, with the features, float32 [batch, c], before the logits."""
    network = nnx.merge(graphdef, params, batch_stats)
    pooled, logits = network.pooled_and_logits(images, **how)
    return pooled, logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
