"""Features of records, from a trained network or from a file, and linear heads on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from fer_jax import storage
from fer_jax.data.records import Records, is_feature_file
from fer_jax.errors import InputError
from fer_jax.inference import network

HEAD = "head.safetensors"  # in a workdir
ID = "record_id"


class Features(NamedTuple):
    """Where features come from."""

    of: Callable[[Records], np.ndarray]  # float32 [n, d]
    fingerprint: str  # of the network or the file


class Head(NamedTuple):
    """A linear head: logits are features @ kernel + bias."""

    kernel: np.ndarray  # float32 [d, classes]
    bias: np.ndarray  # float32 [classes]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns float64 [n, classes] of features [n, d]."""
        return scipy.special.softmax(features.astype(np.float64) @ self.kernel + self.bias, axis=1)


def open_features(path: str) -> Features:
    """Opens `config.features`: a run, an export, or an array with the ids of its rows.

    The array is X.npy, or the only one in X.safetensors; X.csv has a column `record_id`, a row for
    each of the array's. Raises InputError if it cannot be read.
    """
    file = Path(path)
    if is_feature_file(file):
        return _of_file(file)
    trained = network.load(file)

    def of(records: Records) -> np.ndarray:
        images = (records.image(row) for row in range(len(records)))
        return trained.features(images).astype(np.float32)

    return Features(of, trained.fingerprint())


def _of_file(file: Path) -> Features:
    try:
        if file.suffix == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            (array,) = load_file(file).values()
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"config.features '{file}' is not one readable array: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(
            f"config.features '{file}' must be numbers [records, features], got {array.dtype} "
            f"{list(array.shape)}"
        )
    beside = file.with_suffix(".csv")
    ids = [row[ID] for row in storage.read_table(beside, (ID,), appended=False)]
    rows = {one: row for row, one in enumerate(ids)}
    if not len(rows) == len(ids) == len(array):
        raise InputError(
            f"'{beside}' must have one {ID} for each of the {len(array)} rows of '{file}', got "
            f"{len(ids)}, {len(rows)} of them different"
        )

    def of(records: Records) -> np.ndarray:
        wanted = records.columns[ID].tolist()
        if absent := [one for one in wanted if one not in rows]:
            raise InputError(
                f"'{file}' lacks {len(absent)} of {len(wanted)} records of {records.name} "
                f"{records.split}, such as '{absent[0]}'"
            )
        found = np.asarray(array[[rows[one] for one in wanted]], np.float32)
        if not np.isfinite(found).all():
            raise InputError(f"'{file}' has numbers that are not finite for {records.name}")
        return found

    return Features(of, storage.sha256(file))


def write_head(workdir: Path, head: Head, fingerprint: str, step: int) -> None:
    """Writes a head with the fingerprint of its features and the number of its L2 penalty."""
    about = {"features": fingerprint, "step": str(step)}
    with storage.replacing(workdir / HEAD) as temporary:
        save_file(
            {name: np.ascontiguousarray(a) for name, a in head._asdict().items()}, temporary, about
        )


def open_head(workdir: Path, path: str) -> tuple[Callable[[Records], np.ndarray], dict[str, Any]]:
    """Returns a head's predictor, records to probabilities, and its {"step", "checksum"}.

    `path` is `config.features`. Raises InputError if it has other features than the head was
    trained on.
    """
    file = workdir / HEAD
    try:
        with safe_open(file, "np") as opened:
            about = opened.metadata()
            head = Head(opened.get_tensor("kernel"), opened.get_tensor("bias"))
    except (OSError, SafetensorError) as error:
        raise InputError(f"'{workdir}' holds no trained head; run `fer-jax train` first") from error
    features = open_features(path)
    if features.fingerprint != about["features"]:
        raise InputError(f"'{path}' has changed since '{workdir}' was trained; train it again")
    origin = {"step": int(about["step"]), "checksum": storage.sha256(file)}
    return lambda records: head.probabilities(features.of(records)), origin
