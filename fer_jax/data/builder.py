"""The base class of the TFDS builders in data_builders/: from labelled inputs to shards of records.

A builder lists its inputs with their labels and splits (`list_inputs`) and says how an image or a
clip becomes faces (`_generate_examples`). What all builders share is here: the record's features,
decoding in threads, clips in processes, the check that nothing was lost, and the ledger.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from fer_jax import schema
from fer_jax.data import ledger, splits
from fer_jax.errors import InputError
from fer_jax.media import clips
from fer_jax.media.extraction import Extraction, Found, from_arguments

NUM_THREADS = max(1, min(16, os.cpu_count() or 1))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a builder reads.

    Attributes:
      rows: every image or clip: the fields of `schema.record` that its faces share, "split", and
        under keys that begin with "_" what reading it needs ("_job" of a clip).
      skipped: inputs that are not read: (item, reason).
      settings: what the dataset is made from; with other settings it is another dataset.
    """

    rows: list[dict[str, Any]]
    skipped: list[tuple[str, str]]
    settings: dict[str, Any]

    def by_split(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each split."""
        found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        for row in self.rows:
            found[row["split"]].append(row)
        return dict(sorted(found.items()))


class Outcome(NamedTuple):
    """What became of one row; all counts are sums over these.

    Attributes:
      row: its record_id.
      split: its split.
      num_inputs: images or frames.
      records: of each record "record_id", "digest" and what the tables count.
      skipped: (item, reason) of the inputs that gave no record.
    """

    row: str
    split: str
    num_inputs: int
    records: list[dict[str, Any]]
    skipped: list[tuple[str, str]]


def protocols(*names: str) -> list[tfds.core.BuilderConfig]:
    """The configs of a builder whose datasets can be split by these protocols."""
    return [
        tfds.core.BuilderConfig(name=name, description=splits.PROTOCOLS[name]) for name in names
    ]


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of face records.

    Attributes:
      SOURCE: what `--source` names; "" if the builder reads no files.
      UNIT: what a row of the inputs is, "image" or "clip".
    """

    SOURCE = ""
    UNIT = "image"

    def __init__(
        self,
        *,
        options: argparse.Namespace | None = None,
        clip_folder: Path | None = None,
        file_format: Any = "array_record",
        **rest: Any,
    ) -> None:
        """Takes what a TFDS builder takes, and options.

        Args:
          options: the parsed flags of `add_arguments`; None: their defaults, and `--manual_dir` of
            `tfds build` is the source.
          clip_folder: keeps the faces of finished clips; None: .clips in the data folder.
          file_format: as in TFDS.
          **rest: data_dir, config and version, as in TFDS.
        """
        if options is None:
            parser = argparse.ArgumentParser()
            self.add_arguments(parser)
            options = parser.parse_args([])
        self.options = options
        if options.name is not None:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
                raise InputError(
                    f"--name '{options.name}' must be lower case letters, digits and _"
                )
            setattr(self, "name", options.name)  # noqa: B010 (TFDS declares it for classes only)
        self._outcomes: list[Outcome] = []
        super().__init__(file_format=file_format, **rest)
        clip_folder = clip_folder or Path(self._data_dir_root) / ".clips"
        self._clip_folder = clip_folder.resolve() / self.name

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the options that all builders have; a builder adds its own."""
        reads = "folder or file to read" if cls is RecordBuilder else "not used by this builder"
        parser.add_argument("--source", type=Path, help=cls.SOURCE or reads)
        parser.add_argument("--name", help="name of the dataset; default: the builder's name")
        parser.add_argument("--license", default="", help="license of the dataset")
        parser.add_argument("--citation", default="", help="how to cite the dataset, as BibTeX")
        parser.add_argument("--homepage", default="", help="URL of the dataset's page")
        parser.add_argument(
            "--processes", type=int, default=NUM_THREADS, help="clips processed at once"
        )

    @property
    def protocol(self) -> str:
        """The name of the config."""
        assert self.builder_config is not None  # every builder has configs
        return self.builder_config.name

    def record_info(
        self, description: str, *, license: str = "", citation: str = ""
    ) -> tfds.core.DatasetInfo:
        """The DatasetInfo of records; the options replace the license and citation."""
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=schema.features(),
            homepage=self.options.homepage or None,
            license=self.options.license or license or None,
            citation=self.options.citation or citation or None,
        )

    def list_inputs(self) -> Inputs:
        """Lists what is read, with labels and splits; decodes nothing.

        Raises:
          InputError: the source or an option cannot be used.
        """
        raise NotImplementedError

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The result of `list_inputs`.

        Raises:
          InputError: also if there is no source, nothing to build, or an id occurs twice.
        """
        if self.SOURCE and self.options.source is None:
            raise InputError(f"builder '{type(self).name}' needs --source: {self.SOURCE}")
        if not self.SOURCE and self.options.source is not None:
            raise InputError(f"builder '{type(self).name}' reads no files; leave out --source")
        inputs = self.list_inputs()
        if not inputs.rows:
            raise InputError(
                f"{self.name}: nothing to build, all {len(inputs.skipped)} inputs were skipped"
                f"{ledger.reasons_in_line(inputs.skipped)}"
            )
        ids = collections.Counter(row["record_id"] for row in inputs.rows)
        twice = [name for name, count in ids.items() if count > 1]
        if twice:
            raise InputError(f"{self.name}: {len(twice)} ids occur twice, such as '{twice[0]}'")
        return inputs

    @functools.cached_property
    def extraction(self) -> Extraction:
        """How faces are taken out of images and clips."""
        return from_arguments(self.options)

    def splits_of_inputs(self) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        """The generator of each split, for `_split_generators`."""
        return {
            split: self._generate_examples(rows) for split, rows in self.inputs.by_split().items()
        }

    def examples(
        self, rows: Sequence[dict[str, Any]], find_faces: Callable[[dict[str, Any]], list[Found]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (record_id, record) of rows in order, and notes what became of each row.

        Args:
          rows: of one split.
          find_faces: a row to its faces; called by threads. An InputError skips the row.
        """
        label = f"{self.name}/{self.protocol} {rows[0]['split']}"
        with tqdm(total=len(rows), desc=label, unit=self.UNIT, disable=None) as progress:
            for outcome, records in _in_threads(
                functools.partial(make_records, find_faces=find_faces), rows
            ):
                progress.update()
                self._outcomes.append(outcome)
                yield from records

    def faces_in_clip(self, row: dict[str, Any]) -> list[Found]:
        """The faces of a clip, from its finished file if there is one."""
        job, extraction = row["_job"], self.extraction
        return clips.read_clip(clips.finish_clip(job, extraction, self._clip_folder)).found

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        if self.SOURCE and self.options.source is None:
            self.options.source = Path(dl_manager.manual_dir)
        self._outcomes = []
        if self.UNIT == "clip":
            self._finish_clips()
        try:
            super()._download_and_prepare(dl_manager, download_config)
        except AssertionError:  # TFDS refuses a split without records, but cannot say why it is one
            self._refuse_empty()
            raise
        if download_config.max_examples_per_split is None:
            self._verify()
            self._write_ledger(Path(self.data_path))

    def _finish_clips(self) -> None:
        jobs = [row["_job"] for row in self.inputs.rows]
        with tqdm(total=len(jobs), desc=self.name, unit="clip", disable=None) as progress:
            for _ in clips.extract(
                jobs, self.extraction, self._clip_folder, processes=self.options.processes
            ):
                progress.update()

    def _verify(self) -> None:
        """Nothing was lost: every row has its outcome, and the shards hold each record."""
        listed = collections.Counter(row["record_id"] for row in self.inputs.rows)
        came = collections.Counter(outcome.row for outcome in self._outcomes)
        if listed != came:
            lost, twice = (listed - came).total(), (came - listed).total()
            raise RuntimeError(f"of {listed.total()} rows {lost} were lost and {twice} came twice")
        self._refuse_empty()
        ids = collections.Counter(r["record_id"] for one in self._outcomes for r in one.records)
        if len(ids) < ids.total():
            raise RuntimeError(f"the record {ids.most_common(1)[0][0]} came twice")
        for split in self.inputs.by_split():
            count = sum(len(one.records) for one in self._outcomes if one.split == split)
            found = self.info.splits[split].num_examples
            if found != count:
                raise RuntimeError(f"{split}: {count} records made, {found} in the shards")

    def _refuse_empty(self) -> None:
        """Refuses a split whose rows, all of them read, gave no record."""
        for split, rows in self.inputs.by_split().items():
            of_split = [outcome for outcome in self._outcomes if outcome.split == split]
            if len(of_split) == len(rows) and not any(outcome.records for outcome in of_split):
                skipped = [entry for outcome in of_split for entry in outcome.skipped]
                raise InputError(
                    f"{self.name}: the split '{split}' would be empty"
                    f"{ledger.reasons_in_line(skipped)}"
                )

    def _write_ledger(self, folder: Path) -> None:
        inputs, outcomes = self.inputs, self._outcomes
        skipped = sorted(itertools.chain(inputs.skipped, *(one.skipped for one in outcomes)))
        ledger.write_skipped(folder, skipped)
        ledger.write_quality(folder, outcomes)
        if self.UNIT == "clip":
            ledger.write_clips(folder, inputs.rows, self.extraction, self._clip_folder)
        ledger.write_summary(folder, inputs, outcomes, skipped)

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _UncompressedWriter(self.info.file_format or tfds.core.FileFormat.ARRAY_RECORD)


class _UncompressedWriter(tfds.core.ExampleWriter):
    """Compression takes 2.5 % off a JPEG and doubles the time to read it, so there is none."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        if self.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            return super().write(path, examples)
        with contextlib.closing(
            ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        ) as writer:
            for _, record in examples:
                writer.write(record)


def make_records(
    row: dict[str, Any], find_faces: Callable[[dict[str, Any]], list[Found]]
) -> tuple[Outcome, list[tuple[str, dict[str, Any]]]]:
    """Reads a row: what became of it, and its records by their ids."""
    name, split = row["record_id"], row["split"]
    shared = _public(row, "split", "record_id")
    try:
        everything = find_faces(row)
    except InputError as error:
        return Outcome(name, split, 1, [], [(name, str(error))]), []
    records, counted, skipped = [], [], []
    for found in everything:
        if not found.faces:
            skipped.append((found.item, found.reason))
        for fields in found.faces:
            number = fields.get("_number")
            record_id = found.item if number is None else f"{found.item}_{number}"
            record = schema.record(record_id=record_id, **(shared | _public(fields)))
            labels = {task: record[task] for task in schema.TASKS}
            digest = hashlib.sha256(json.dumps([record_id, labels]).encode() + record["image"])
            counted.append(
                {"record_id": record_id, "digest": digest.hexdigest()}
                | labels
                | {"subject_id": record["subject_id"], "measured": fields.get("_measured")}
            )
            records.append((record_id, record))
    return Outcome(name, split, len(everything), counted, skipped), records


def _public(fields: dict[str, Any], *but: str) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k not in but and not k.startswith("_")}


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


def files_in(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Lists the files with one of these (lower-case) endings anywhere in a folder.

    Links are followed within the folder, to files.

    Returns:
      (paths inside the folder, sorted; (item, reason) of what is not read).
    """
    files, skipped = [], []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        linked = path.is_symlink()
        linked_folder = linked and path.is_dir()
        if not linked_folder and path.suffix.lower() not in suffixes:
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            item = os.fsencode(name).decode(errors="backslashreplace")
            skipped.append((item, "its name is not UTF-8"))
            continue
        if linked_folder:
            skipped.append((name, "a link to a folder"))
        elif linked and not path.exists():
            skipped.append((name, "a broken link"))
        elif linked and not path.resolve().is_relative_to(folder.resolve()):
            skipped.append((name, "a link out of the folder"))
        elif path.is_file():
            files.append(name)
    return sorted(files), sorted(skipped)
