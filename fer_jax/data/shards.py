"""A plan's rows to array_record shards; nothing is lost."""

import collections
import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import file_adapters
from tqdm import tqdm

from fer_jax import schema
from fer_jax.data.plan import Outcome, Plan, reasons, splits
from fer_jax.errors import InputError
from fer_jax.media import clips
from fer_jax.media.clips import Extraction, Found

VERSION = "1.0.0"
NUM_THREADS = max(1, min(16, os.cpu_count() or 1))


def finish_clips(plan: Plan, extraction: Extraction, folder: Path, processes: int) -> None:
    """Faces of every clip into folder, in `processes` processes; what is there is not redone."""
    jobs = [row["_job"] for row in plan.rows]
    with tqdm(total=len(jobs), desc=plan.name, unit="clip", disable=None) as progress:
        for _ in clips.extract(jobs, extraction, folder, processes=processes):
            progress.update()


def reader(plan: Plan, clip_folder: Path) -> Callable[[dict[str, Any]], list[Found]]:
    """What turns one of the plan's rows into faces."""
    if plan.extraction is not None:
        return functools.partial(_read_clip, extraction=plan.extraction, folder=clip_folder)
    if plan.read is None:
        raise ValueError("a plan without clips needs `read`")
    return plan.read


def _read_clip(row: dict[str, Any], extraction: Extraction, folder: Path) -> list[Found]:
    return clips.read_clip(clips.finish_clip(row["_job"], extraction, folder)).found


def make_records(
    row: dict[str, Any], read: Callable[[dict[str, Any]], list[Found]]
) -> tuple[Outcome, list[tuple[str, dict[str, Any]]]]:
    """Reads a row: what became of it, and its records by their ids."""
    name, split = row["record_id"], row["split"]
    shared = {
        key: value
        for key, value in row.items()
        if key not in ("split", "record_id") and not key.startswith("_")
    }
    try:
        everything = read(row)
    except InputError as error:
        return Outcome(name, split, 1, [], [(name, str(error))]), []
    records, counted, ledger = [], [], []
    for found in everything:
        if not found.faces:
            ledger.append((found.item, found.reason))
        for fields in found.faces:
            number = fields.get("_number")
            record_id = found.item if number is None else f"{found.item}_{number}"
            known = {key: value for key, value in fields.items() if not key.startswith("_")}
            record = schema.record(record_id=record_id, **(shared | known))
            labels = {task: record[task] for task in schema.TASKS}
            digest = hashlib.sha256(json.dumps([record_id, labels]).encode() + record["image"])
            counted.append(
                {"record_id": record_id, "digest": digest.hexdigest()}
                | labels
                | {"subject_id": record["subject_id"], "measured": fields.get("_measured")}
            )
            records.append((record_id, record))
    return Outcome(name, split, len(everything), counted, ledger), records


def prepare(
    plan: Plan, directory: Path, make: Callable[[dict[str, Any]], Any]
) -> tuple[Any, list[Outcome]]:
    """Writes the shards on this machine."""
    outcomes: list[Outcome] = []

    def generate(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for outcome, records in _in_threads(make, rows):
            progress.update()
            outcomes.append(outcome)
            yield from records

    with tqdm(
        total=len(plan.rows),
        desc=f"{plan.name}/{plan.config}",
        unit="clip" if plan.extraction else "image",
        disable=None,
    ) as progress:
        builder = _tfds_builder(
            plan,
            directory,
            lambda self, dl_manager: {s: generate(rows) for s, rows in splits(plan).items()},
        )
        try:
            _download_and_prepare(builder)
        except AssertionError:
            _refuse_empty(plan, outcomes)
            raise
    return builder, outcomes


def _tfds_builder(plan: Plan, directory: Path, split_generators: Callable[..., Any]) -> Any:
    """A TFDS builder of this plan; TFDS takes a dataset's name from its class."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = plan.name
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=plan.config)]

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"Face records of {plan.name}, split by the protocol {plan.config}.",
                features=schema.features(),
            )

        _split_generators = split_generators

        def _generate_examples(self) -> Any:
            raise NotImplementedError("every split has its own generator")

    return Builder(data_dir=str(directory), config=plan.config)


class _Uncompressed(file_adapters.ArrayRecordFileAdapter):
    """TFDS compresses each record: 2.5 % off a JPEG, and half the time it takes to read it."""

    @classmethod
    def write_examples(cls, path: Any, iterator: Iterable[tuple[Any, bytes]]) -> None:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, record in iterator:
            writer.write(record)
        writer.close()


@contextlib.contextmanager
def _uncompressed() -> Iterator[None]:
    """TFDS writes without compression: its own writer of these files has no options."""
    adapters, kind = file_adapters.ADAPTER_FOR_FORMAT, file_adapters.FileFormat.ARRAY_RECORD
    own = adapters[kind]
    adapters[kind] = _Uncompressed
    try:
        yield
    finally:
        adapters[kind] = own


def _download_and_prepare(builder: Any) -> None:
    # What TFDS prints, our own lines say better.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()), _uncompressed():
        builder.download_and_prepare(file_format="array_record")


def _in_threads(
    function: Callable[[Any], Any], rows: Iterable[Any], look_ahead: int = 4 * NUM_THREADS
) -> Iterator[Any]:
    """Maps in order with a bounded number of rows in flight; decoding releases the GIL."""
    remaining = iter(rows)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        pending = collections.deque(
            pool.submit(function, row) for row in itertools.islice(remaining, look_ahead)
        )
        while pending:
            yield pending.popleft().result()
            for following in itertools.islice(remaining, 1):
                pending.append(pool.submit(function, following))


def verify(plan: Plan, builder: Any, outcomes: list[Outcome]) -> None:
    """Nothing was lost: every row has its outcome, and the shards hold each record."""
    planned = collections.Counter(row["record_id"] for row in plan.rows)
    came = collections.Counter(outcome.row for outcome in outcomes)
    if planned != came:
        lost = sum((planned - came).values())
        twice = sum((came - planned).values())
        raise RuntimeError(f"of {len(plan.rows)} rows {lost} were lost and {twice} came twice")
    _refuse_empty(plan, outcomes)
    ids = collections.Counter(r["record_id"] for outcome in outcomes for r in outcome.records)
    if len(ids) < ids.total():
        raise RuntimeError(f"the record {ids.most_common(1)[0][0]} came twice")
    for split in splits(plan):
        count = sum(len(outcome.records) for outcome in outcomes if outcome.split == split)
        found = len(builder.as_data_source(split))
        if found != count:
            raise RuntimeError(f"{split}: {count} records made, {found} in the shards")


def _refuse_empty(plan: Plan, outcomes: list[Outcome]) -> None:
    """Refuses a split whose rows, all of them read, gave no record."""
    for split, rows in splits(plan).items():
        of_split = [outcome for outcome in outcomes if outcome.split == split]
        if len(of_split) == len(rows) and not any(outcome.records for outcome in of_split):
            skipped = [entry for outcome in of_split for entry in outcome.ledger]
            raise InputError(
                f"{plan.name}: the split '{split}' would be empty{reasons(skipped, one_line=True)}"
            )
