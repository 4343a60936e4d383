"""Predictions that another program or people made: tables of record_id and probabilities."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import results, storage
from fer_jax.config import Config, default_config, read_config, to_json
from fer_jax.data.records import Records, labelled_rows, open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import evaluate, predictions, run_scores
from fer_jax.schema import TASKS

MAX_BYTES = 2**30  # of a table
ROUNDED = 0.01  # how far probabilities may be from a sum of 1; they are divided by it
ID = "record_id"


def score(
    workdir: Path, file: Path, dataset: str, split: str, data_dir: Path, *, task: str = "emotion"
) -> Path:
    """Scores a table as `evaluate` scores a run; returns the path of results.json.

    The table is a CSV with `record_id` and a column per class, "p_anger" or "anger". It must have
    each labelled record of the set once; rows of other records are counted and left out. Several
    sets go into one workdir, a table after the other. What its maker was trained on is unknown, and
    the results say so. Raises InputError for a table or a workdir that cannot be used.
    """
    records = open_records(dataset, split, data_dir)
    rows = labelled_rows(records, task)
    probabilities, unused = read(file, records.columns[ID][rows].tolist(), TASKS[task])
    config = _open(workdir, file, task)
    name = predictions.file_name(dataset, split)
    table = predictions.from_records(records, rows, task, probabilities)
    (workdir / results.FILE).unlink(missing_ok=True)
    predictions.write(workdir / "predictions" / name, table, TASKS[task])
    about = predictions.read_test_sets(workdir)
    about[name] = evaluate.describe_set(records, config.task, None, data_dir)
    leaks = run_scores.read_leaks(workdir)
    unknown = [f"what the maker of {file.name} was trained on"]
    leaks[name] = {"counts": {}, "seen": [], "unknown": unknown, "near_duplicates": None}
    for place, content in ((predictions.TEST_SETS, about), (run_scores.LEAKS_FILE, leaks)):
        storage.write_atomically(workdir / place, json.dumps(content, indent=1) + "\n")
    _log(workdir, records, data_dir)
    results.write(workdir, run_scores.score_run(workdir))
    left_out = f"; {unused} rows of other records left out" if unused else ""
    print(f"{file}: {len(rows)} images of {dataset} {split}{left_out}")
    return workdir / results.FILE


def read(file: Path, ids: list[str], classes: tuple[str, ...]) -> tuple[np.ndarray, int]:
    """Returns the probabilities of records, float64 [n, classes], and the number of other rows.

    Raises InputError if a column, a record or a probability is missing or makes no sense.
    """
    if not file.is_file():
        raise InputError(f"--predictions '{file}' is not a file")
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"--predictions '{file}' is over {MAX_BYTES >> 30} GiB")
    rows = storage.read_table(file, (ID,), appended=False)
    if not rows:
        raise InputError(f"{file} has no rows")
    column = {name.strip().lower().removeprefix("p_"): name for name in rows[0]}
    if missing := [name for name in classes if name not in column]:
        raise InputError(f"{file} has no column {', '.join(missing)}: one for each class, or p_...")
    found: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows, 2):
        if row[ID] in found:
            raise InputError(f"{file}, line {number}: {row[ID]} is there twice")
        try:
            chances = np.array([float(row[column[name]]) for name in classes])
        except ValueError as error:
            raise InputError(f"{file}, line {number}: {error}") from error
        if not (np.isfinite(chances).all() and (chances >= 0).all()):
            raise InputError(f"{file}, line {number}: probabilities must be from 0 to 1")
        if not abs(chances.sum() - 1) <= ROUNDED:
            raise InputError(f"{file}, line {number}: probabilities sum to {chances.sum():.4g}")
        found[row[ID]] = chances / chances.sum()
    if absent := [one for one in ids if one not in found]:
        raise InputError(
            f"{file} lacks {len(absent)} of {len(ids)} labelled records, such as '{absent[0]}'"
        )
    return np.stack([found[one] for one in ids]), len(found) - len(set(ids))


def _open(workdir: Path, file: Path, task: str) -> Config:
    """Returns the config of a workdir for such tables, which it writes at first."""
    if (workdir / "config.json").is_file():
        config = read_config(workdir)
        if config.sources:
            raise InputError(f"'{workdir}' holds a run of this project; choose another workdir")
        if config.task != task:
            raise InputError(f"'{workdir}' has predictions of {config.task}; choose another")
        return config
    config = default_config()
    config.task, config.sources, config.test_sets = task, (), ()
    (workdir / "predictions").mkdir(parents=True, exist_ok=True)
    storage.write_atomically(workdir / "config.json", to_json(config))
    return config


def _log(workdir: Path, records: Records, data_dir: Path) -> None:
    origin: dict[str, Any] = {"step": None, "checksum": None}
    evaluate.log_test_access(workdir, records, origin | {"fingerprint": None})
