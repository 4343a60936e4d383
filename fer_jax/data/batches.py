"""Records to batches: which record comes when, decoded by threads into whole batches.

The order is a pure function of (seed, epoch): an interrupted run continues with exactly the
batches it would have seen, and the iterator's state is one number.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import numpy as np

from fer_jax.data.records import Records, labelled_rows
from fer_jax.errors import InputError

NUM_THREADS = max(1, min(16, os.cpu_count() or 1))
PREFETCHED_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The training images of all sources, in one numbering 0..n-1.

    Attributes:
      records: one opened training split per source.
      source: int64 [n], index into `records`.
      row: int64 [n], row within that source.
      targets: float32 [n, classes].
      groups: numbers (int64 arrays) that are drawn from as one urn each.
      shares: float64 [groups], the part of an epoch that comes from each group; sums to 1.
    """

    records: Sequence[Records]
    source: np.ndarray
    row: np.ndarray
    targets: np.ndarray
    groups: Sequence[np.ndarray]
    shares: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_unlabelled(self) -> int:
        """Records of the sources that are left out because the task's label is unknown."""
        return sum(len(records) for records in self.records) - len(self)

    @property
    def class_shares(self) -> np.ndarray:
        """float64 [classes]: how often each class is the target, as the images are drawn."""
        means = [self.targets[members].mean(axis=0, dtype=np.float64) for members in self.groups]
        return self.shares @ np.stack(means)


def mix(
    records: Sequence[Records],
    task: str,
    *,
    weights: Sequence[float],
    soft_labels: bool = False,
    balance_sources: bool = False,
    balance_classes: bool = False,
) -> Mixture:
    """Numbers the labelled images of several sources and says how often each is drawn.

    Args:
      records: one training split per source.
      task: "emotion" or "interest"; images without that label are left out.
      weights: one per source; 0 means the source's number of images.
      soft_labels: targets are the annotators' votes where there are any.
      balance_sources: every source equally often, whatever its size and weight.
      balance_classes: within each source, every class that occurs equally often.

    Raises:
      InputError: a source without a labelled image, or a target that is not finite.
    """
    rows = [labelled_rows(part, task) for part in records]
    labels = [part.labels(task)[chosen] for part, chosen in zip(records, rows, strict=True)]
    targets = [
        part.targets(task, soft_labels)[chosen] for part, chosen in zip(records, rows, strict=True)
    ]
    for part, chosen, target in zip(records, rows, targets, strict=True):
        if not np.isfinite(target).all():
            row = chosen[np.flatnonzero(~np.isfinite(target).all(axis=1))[0]]
            raise InputError(
                f"record {part.columns['record_id'][row]} of {part.name} {part.split} has votes "
                "that are not finite; build the dataset again, or leave it out by config.exclusions"
            )
    groups, shares, first = [], [], 0
    for weight, source_labels in zip(weights, labels, strict=True):
        share = 1.0 if balance_sources else weight or float(len(source_labels))
        numbers = first + np.arange(len(source_labels))
        first += len(source_labels)
        urns = [numbers]
        if balance_classes:
            urns = [numbers[source_labels == label] for label in np.unique(source_labels)]
        groups.extend(urns)
        shares.extend([share / len(urns)] * len(urns))
    return Mixture(
        records=records,
        source=np.repeat(np.arange(len(records)), [len(part) for part in rows]),
        row=np.concatenate(rows),
        targets=np.concatenate(targets),
        groups=groups,
        shares=np.asarray(shares) / np.sum(shares),
    )


def epoch_order(mixture: Mixture, size: int, epoch: int, seed: int) -> np.ndarray:
    """Which image comes when in one epoch: int64 [size], a pure function of its arguments.

    Each group is an endless sequence of its own permutations, so no image comes a second time
    before all others of its group came once, across epochs too. Every epoch takes the group's
    share from it (largest remainders make the counts whole), and the whole is shuffled.
    """
    exact = mixture.shares * size
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1
    drawn = []
    for group, (members, count) in enumerate(zip(mixture.groups, counts, strict=True)):
        start, stop = epoch * count, (epoch + 1) * count
        first_turn = start // len(members)
        turns = [
            np.random.default_rng((seed, group, turn)).permutation(members)
            for turn in range(first_turn, -(-stop // len(members)))
        ]
        if turns:
            offset = start - first_turn * len(members)
            drawn.append(np.concatenate(turns)[offset : offset + count])
    # Four words keep this stream apart from the groups', which have three.
    shuffle = np.random.default_rng((seed, epoch, 0, 1))
    return shuffle.permutation(np.concatenate(drawn))


def drawn(mixture: Mixture, step: int, *, batch_size: int, seed: int) -> np.ndarray:
    """Which images a training batch holds, over all processes: int64 [batch_size].

    Args:
      mixture: from `mix`.
      step: of the batch, from 0.
      batch_size: as for `train_batches`.
      seed: as for `train_batches`.
    """
    steps = steps_per_epoch(mixture, batch_size)
    epoch, position = divmod(step, steps)
    order = epoch_order(mixture, steps * batch_size, epoch, seed)
    return order[position * batch_size :][:batch_size]


def steps_per_epoch(mixture: Mixture, batch_size: int) -> int:
    """Whole batches in one epoch.

    Raises:
      InputError: the images do not fill a single batch.
    """
    if len(mixture) < batch_size:
        raise InputError(
            f"config.batch_size {batch_size} is more than the {len(mixture)} training images"
        )
    return len(mixture) // batch_size


def shapes(mixture: Mixture, batch_size: int, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a whole training batch will be, over all processes."""
    pixels = (batch_size, image_size, image_size, 3)
    targets = (batch_size, mixture.targets.shape[1])
    return {
        "image": jax.ShapeDtypeStruct(pixels, np.uint8),
        "target": jax.ShapeDtypeStruct(targets, mixture.targets.dtype),
        "domain": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }


def decode(
    mixture: Mixture, numbers: np.ndarray, image_size: int, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Decodes images of a mixture into one buffer.

    Args:
      mixture: from `mix`.
      numbers: int64 [b], which of its images.
      image_size: s, pixels a side.
      out: uint8 [b, s, s, 3], the buffer, if there is one.

    Returns:
      uint8 [b, s, s, 3].

    Raises:
      InputError: a record that cannot be read or decoded.
    """
    images = np.empty((len(numbers), image_size, image_size, 3), np.uint8) if out is None else out
    for index, records in enumerate(mixture.records):
        slots = np.flatnonzero(mixture.source[numbers] == index)
        records.decode_into((images[slot] for slot in slots), mixture.row[numbers[slots]])
    return images


def train_batches(
    mixture: Mixture,
    read: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int,
    num_steps: int,
    seed: int,
    process: int = 0,
    num_processes: int = 1,
) -> grain.DatasetIterator:
    """The training batches.

    {"image": what `read` returns, "target": float32 [b, classes], "domain": int32 [b]}, the
    domain being the index of the source that an image comes from.

    Args:
      mixture: from `mix`.
      read: the numbers of b images of the mixture, int64 [b], to the images, such as `decode`.
      batch_size: over all processes; this one reads b = batch_size / num_processes of it.
      num_steps: how many batches there are in all.
      seed: of the order.
      process: index of this process.
      num_processes: how many share the batch.

    Returns:
      A Grain iterator; `get_state` and `set_state` continue it exactly.
    """
    steps = steps_per_epoch(mixture, batch_size)
    local = batch_size // num_processes

    # Threads work on neighbouring steps, which lie in one epoch or two.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return epoch_order(mixture, steps * batch_size, epoch, seed)

    def load(step: int) -> dict[str, np.ndarray]:
        epoch, position = divmod(int(step), steps)
        first = position * batch_size + process * local
        chosen = order(epoch)[first : first + local]
        domain = mixture.source[chosen].astype(np.int32)
        return {"image": read(chosen), "target": mixture.targets[chosen], "domain": domain}

    # One element is one batch: per-record elements and worker processes cost a third more.
    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
    return iter(grain.MapDataset.range(num_steps).map(load).to_iter_dataset(options))


def evaluation_batches(
    records: Records,
    rows: np.ndarray,
    *,
    batch_size: int,
    image_size: int,
    process: int = 0,
    num_processes: int = 1,
) -> Iterator[np.ndarray]:
    """Every row exactly once, in order; the last batch is filled up with black images.

    Args:
      records: the split to be scored.
      rows: int64 [n], which of its records.
      batch_size: over all processes; this one decodes b = batch_size / num_processes of it.
      image_size: s, pixels a side.
      process: index of this process.
      num_processes: how many share each batch.

    Yields:
      uint8 [b, s, s, 3].
    """
    local = batch_size // num_processes

    def load(step: int) -> np.ndarray:
        first = step * batch_size + process * local
        chosen = rows[first : first + local]
        images = np.zeros((local, image_size, image_size, 3), np.uint8)
        records.decode_into(images[: len(chosen)], chosen)
        return images

    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
    num_batches = -(-len(rows) // batch_size)
    yield from grain.MapDataset.range(num_batches).map(load).to_iter_dataset(options)
