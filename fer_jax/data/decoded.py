"""The training images decoded once and kept, for a run that sees each of them many times.

Beside records' JPEGs they take ten times the room and a tenth of the time.
"""

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fer_jax.data.batches import NUM_THREADS, Mixture, decode
from fer_jax.errors import InputError
from fer_jax.storage import replacing

IMAGES_AT_ONCE = 64


def decode_all(mixture: Mixture, image_size: int, numbers: range, out: np.ndarray) -> None:
    """Decodes consecutive images of a mixture with all cores.

    Args:
      mixture: from `mix`.
      image_size: s, pixels a side.
      numbers: which of its images; those beyond its end are left as they are.
      out: uint8 [len(numbers), s, s, 3], receives them.

    Raises:
      InputError: a record that cannot be read or decoded.
    """
    stop = min(numbers.stop, len(mixture))
    firsts = range(numbers.start, stop, IMAGES_AT_ONCE)

    def part(first: int) -> None:
        chosen = np.arange(first, min(first + IMAGES_AT_ONCE, stop))
        begin = first - numbers.start
        decode(mixture, chosen, image_size, out=out[begin : begin + len(chosen)])

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in tqdm(pool.map(part, firsts), "decoding", len(firsts), disable=None):
            pass


def memory_map(
    mixture: Mixture, image_size: int, folder: Path, *, writes: bool, written: Callable[[], None]
) -> np.ndarray:
    """The images of a mixture as a file that is read in place.

    The file's name is made from what is in it, so that data built anew are decoded anew.

    Args:
      mixture: from `mix`.
      image_size: s, pixels a side.
      folder: holds the file and nothing else; what another mixture left there is deleted.
      writes: whether this process writes it; of several that share the folder, one does.
      written: called when it is there, by the processes that wait for it too.

    Returns:
      uint8 [n, s, s, 3], read-only.

    Raises:
      InputError: no room on the disk, or a record that cannot be read or decoded.
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
