"""Records to batches: which image comes when, decoded by threads into whole batches.

The order is a pure function of (seed, epoch) and the iterator's state is one number, so a resumed
run gets exactly the batches that it still lacks.
"""

import dataclasses
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import jax
import numpy as np
from tqdm import tqdm

from fer_jax.data.records import Records, labelled_rows
from fer_jax.errors import InputError
from fer_jax.media.images import resized
from fer_jax.storage import replacing

NUM_THREADS = max(1, min(16, os.cpu_count() or 1))
PREFETCHED_BATCHES = 4
IMAGES_PER_THREAD = 64  # decoded at once by a thread of `decode_all`


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The training images of several datasets; a stratum is a dataset, or a class of one."""

    records: Sequence[Records]  # the training part of each dataset
    source: np.ndarray  # int64 [n], index into `records`
    row: np.ndarray  # int64 [n], row within that dataset
    targets: np.ndarray  # float32 [n, classes]
    strata: Sequence[np.ndarray]  # the image indices (int64) of each stratum
    shares: np.ndarray  # float64 [strata], of an epoch; sums to 1

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_shares(self) -> np.ndarray:
        """float64 [classes], how often each class is the target of a sampled image."""
        means = [self.targets[indices].mean(axis=0, dtype=np.float64) for indices in self.strata]
        return self.shares @ np.stack(means)

    def images(
        self, indices: np.ndarray, image_size: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Decodes n images to uint8 RGB [n, image_size, image_size, 3], or raises InputError."""
        if out is None:
            out = np.empty((len(indices), image_size, image_size, 3), np.uint8)
        for face, source, row in zip(out, self.source[indices], self.row[indices], strict=True):
            resized(self.records[source].image(row), image_size, out=face)
        return out

    def record_ids(self, indices: np.ndarray) -> list[str]:
        """Returns the record_id of each image."""
        pairs = zip(self.source[indices], self.row[indices], strict=True)
        return [str(self.records[source].columns["record_id"][row]) for source, row in pairs]


def mix(
    records: Sequence[Records],
    task: str,
    *,
    weights: Sequence[float],
    soft_labels: bool = False,
    balance_sources: bool = False,
    balance_classes: bool = False,
) -> Mixture:
    """Mixes the labelled images of several datasets.

    `weights` is how often each dataset is sampled; 0 means as often as it has images. With
    `soft_labels` targets are the annotators' votes where there are any; `balance_sources` samples
    every dataset equally often, whatever its size and weight, `balance_classes` all classes that a
    dataset has. Raises InputError if a dataset has no labelled image, or a target is not finite.
    """
    rows = [labelled_rows(part, task) for part in records]
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
    strata, shares, first = [], [], 0
    for part, chosen, weight in zip(records, rows, weights, strict=True):
        labels = part.labels(task)[chosen]
        indices = first + np.arange(len(chosen))
        first += len(chosen)
        share = 1.0 if balance_sources else weight or float(len(chosen))
        own = [indices[labels == label] for label in np.unique(labels)]
        own = own if balance_classes else [indices]
        strata.extend(own)
        shares.extend([share / len(own)] * len(own))
    return Mixture(
        records=records,
        source=np.repeat(np.arange(len(records)), [len(chosen) for chosen in rows]),
        row=np.concatenate(rows),
        targets=np.concatenate(targets),
        strata=strata,
        shares=np.asarray(shares) / np.sum(shares),
    )


def epoch_order(mixture: Mixture, size: int, epoch: int, seed: int) -> np.ndarray:
    """Returns the image indices of one epoch in order, int64 [size]; a pure function.

    Each stratum is an endless sequence of its own permutations, so no image is repeated before all
    others of its stratum were used, across epochs too. Every epoch takes the stratum's share of it
    (rounded by largest remainders), and the whole is shuffled.
    """
    exact = mixture.shares * size
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1
    sampled = []
    for number, (indices, count) in enumerate(zip(mixture.strata, counts, strict=True)):
        start, stop = epoch * count, (epoch + 1) * count
        first = start // len(indices)
        permutations = [
            np.random.default_rng((seed, number, turn)).permutation(indices)
            for turn in range(first, -(-stop // len(indices)))
        ]
        if permutations:
            offset = start - first * len(indices)
            sampled.append(np.concatenate(permutations)[offset : offset + count])
    # Four numbers keep this random stream apart from the strata's, which have three.
    shuffle = np.random.default_rng((seed, epoch, 0, 1))
    return shuffle.permutation(np.concatenate(sampled))


def batch_indices(mixture: Mixture, step: int, *, batch_size: int, seed: int) -> np.ndarray:
    """Returns the image indices of `train_batches`' batch `step` (from 0), int64 [batch_size]."""
    steps = steps_per_epoch(mixture, batch_size)
    epoch, position = divmod(step, steps)
    order = epoch_order(mixture, steps * batch_size, epoch, seed)
    return order[position * batch_size :][:batch_size]


def steps_per_epoch(mixture: Mixture, batch_size: int) -> int:
    """Returns the number of whole batches in one epoch; InputError if there is none."""
    if len(mixture) < batch_size:
        raise InputError(
            f"config.batch_size {batch_size} is more than the {len(mixture)} training images"
        )
    return len(mixture) // batch_size


def shapes(mixture: Mixture, batch_size: int, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a training batch over all processes."""
    pixels = (batch_size, image_size, image_size, 3)
    targets = (batch_size, mixture.targets.shape[1])
    return {
        "image": jax.ShapeDtypeStruct(pixels, np.uint8),
        "target": jax.ShapeDtypeStruct(targets, mixture.targets.dtype),
        "domain": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }


def train_batches(
    mixture: Mixture,
    read: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int,
    num_steps: int,
    seed: int,
) -> grain.DatasetIterator:
    """Returns a Grain iterator of this process's part of the training batches.

    A batch is {"image": what `read` returns for the indices of b images, int64 [b], "target":
    float32 [b, classes], "domain": int32 [b]}; the domain is the index of the dataset that an image
    comes from. `batch_size` is over all processes; this one reads b = batch_size / processes of it.
    `get_state` and `set_state` resume it exactly.
    """
    steps = steps_per_epoch(mixture, batch_size)
    local = batch_size // jax.process_count()
    offset = jax.process_index() * local

    # Threads work on neighbouring steps, which are in one epoch or two.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return epoch_order(mixture, steps * batch_size, epoch, seed)

    def load(step: int) -> dict[str, np.ndarray]:
        epoch, position = divmod(int(step), steps)
        indices = order(epoch)[position * batch_size + offset :][:local]
        domain = mixture.source[indices].astype(np.int32)
        return {"image": read(indices), "target": mixture.targets[indices], "domain": domain}

    return iter(_in_threads(load, num_steps))


def evaluation_batches(
    records: Records, rows: np.ndarray, *, batch_size: int, image_size: int
) -> Iterator[np.ndarray]:
    """Yields this process's part of every row's image once, in order: uint8 [b, s, s, 3].

    `rows` are int64 [n]; `batch_size` is over all processes, of which this one decodes b =
    batch_size / processes. Black images fill up the last batch.
    """
    local = batch_size // jax.process_count()
    offset = jax.process_index() * local

    def load(step: int) -> np.ndarray:
        chosen = rows[step * batch_size + offset :][:local]
        images = np.zeros((local, image_size, image_size, 3), np.uint8)
        records.images(chosen, image_size, out=images[: len(chosen)])
        return images

    yield from _in_threads(load, -(-len(rows) // batch_size))


def _in_threads(load: Callable[[int], object], num_batches: int) -> grain.IterDataset:
    # One element is one batch: per-record elements and worker processes cost a third more.
    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
    return grain.MapDataset.range(num_batches).map(load).to_iter_dataset(options)


def decode_all(mixture: Mixture, image_size: int, indices: range, out: np.ndarray) -> None:
    """Decodes consecutive images into `out`, uint8 [len(indices), s, s, 3], with all cores.

    Indices past the end of the mixture are skipped. Raises InputError if a record cannot be
    decoded.
    """
    stop = min(indices.stop, len(mixture))
    starts = range(indices.start, stop, IMAGES_PER_THREAD)

    def decode(start: int) -> None:
        chosen = np.arange(start, min(start + IMAGES_PER_THREAD, stop))
        mixture.images(chosen, image_size, out[start - indices.start :][: len(chosen)])

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in tqdm(pool.map(decode, starts), "decoding", len(starts), disable=None):
            pass


def memory_map(
    mixture: Mixture, image_size: int, folder: Path, *, writes: bool, written: Callable[[], None]
) -> np.ndarray:
    """Decodes the images of a mixture once into a memory-mapped file: uint8 [n, s, s, 3].

    Compared with the records' JPEGs it takes ten times the room and a tenth of the time. The file
    is named by its content, so that data that were built again are decoded again; another mixture's
    file in `folder` is deleted. `writes` says whether this process writes it, one of those that
    share the folder; `written` is called by every process and returns once the file is complete.
    Raises InputError if the disk is full, or a record cannot be decoded.
    """
    file = folder / f"{_digest(mixture, image_size)}.npy"
    if writes and not file.is_file():
        shape = (len(mixture), image_size, image_size, 3)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.npy*"):
            old.unlink()
        size, free = int(np.prod(shape)), shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"config.input=memmap: the images take {size / 2**30:.1f} GiB and "
                f"{free / 2**30:.1f} GiB are free in '{folder}'; set config.input=stream"
            )
        with replacing(file) as temporary:
            images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            decode_all(mixture, image_size, range(len(mixture)), images)
            images.flush()
    written()
    return np.load(file, mmap_mode="r")


def _digest(mixture: Mixture, image_size: int) -> str:
    digest = hashlib.sha256(str(image_size).encode())
    for index, records in enumerate(mixture.records):
        rows = mixture.row[mixture.source == index]
        digest.update(records.columns["image_digest"][rows].tobytes())
    return digest.hexdigest()[:16]
