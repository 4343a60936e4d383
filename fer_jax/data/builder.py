"""The base class of the TFDS builders in data_builders/: from labelled inputs to shards of records.

A builder lists its inputs with their labels and splits (`list_inputs`) and turns an image or a clip
into faces (`_generate_examples`). This class adds the record's features, decoding in threads, clips
in processes, the check that nothing was lost, and the ledger.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from fer_jax import schema
from fer_jax.data import blocks, ledger, splits
from fer_jax.errors import InputError
from fer_jax.media import clips, cluster
from fer_jax.media.extraction import Extraction, Found, from_arguments
from fer_jax.storage import write_table

NUM_THREADS = max(1, min(16, os.cpu_count() or 1))
SYSTEM_FILES = re.compile(
    r"(^|/)((\._[^/]*|~\$[^/]*|\.DS_Store|\.localized|ehthumbs\.db|thumbs\.db|desktop\.ini)$"
    r"|(__MACOSX|\.Spotlight-V100|\.Trashes|\.fseventsd|\$RECYCLE\.BIN|@eaDir)/)",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a builder reads."""

    # Every image or clip: the fields of `schema.record` that its faces share, "split", and under
    # keys that begin with "_" what reading it needs ("_job" of a clip).
    rows: list[dict[str, Any]]
    skipped: list[tuple[str, str]]  # (item, reason) of inputs that are not read
    settings: dict[str, Any]  # what the dataset is made from; with others it is another dataset
    # Number of files that are no inputs, by what they are.
    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    # (item, reason) of what is in the ledger but is no input, such as rows of a table.
    remarks: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def by_split(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the rows of each split."""
        found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        for row in self.rows:
            found[row["split"]].append(row)
        return dict(sorted(found.items()))


class Outcome(NamedTuple):
    """The result of one row; all counts are sums over these."""

    row: str  # its record_id
    split: str
    num_inputs: int  # images or frames
    records: list[dict[str, Any]]  # "record_id", "digest" and the columns that tables count
    skipped: list[tuple[str, str]]  # (item, reason) of the inputs that gave no record


def protocols(*names: str) -> list[tfds.core.BuilderConfig]:
    """Returns one config per protocol by which a builder's datasets can be split."""
    return [
        tfds.core.BuilderConfig(name=name, description=splits.PROTOCOLS[name]) for name in names
    ]


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of face records."""

    SOURCE = ""  # what `--source` names; "" if the builder reads no files
    UNIT = "image"  # or "clip": a row of the inputs

    def __init__(
        self,
        *,
        options: argparse.Namespace | None = None,
        clip_folder: Path | None = None,
        file_format: Any = "array_record",
        **rest: Any,
    ) -> None:
        """Takes the arguments of a TFDS builder, and two more.

        `options` are the parsed ones of `add_arguments`; None: their defaults, and `--manual_dir`
        of `tfds build` is the source. `clip_folder` is for the faces of finished clips; None:
        .clips in the data folder.
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
        # The blocks that a cluster has finished, and the place in it, by a picture's record_id.
        self._blocks: dict[str, tuple[Path, int]] = {}
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
        if cls.SOURCE or cls is RecordBuilder:
            parser.add_argument("--dask", default="", metavar="ADDRESS", help=cluster.HELP)

    @property
    def protocol(self) -> str:
        """The name of the config."""
        assert self.builder_config is not None  # every builder has configs
        return self.builder_config.name

    def record_info(
        self, description: str, *, license: str = "", citation: str = ""
    ) -> tfds.core.DatasetInfo:
        """Returns the DatasetInfo of records; the options replace the license and citation."""
        info = tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=schema.features(),
            homepage=self.options.homepage or None,
            license=self.options.license or license or None,
            citation=self.options.citation or citation or None,
        )
        # TFDS would look for a published dataset of this name, and leave a temporary folder.
        setattr(info, "initialize_from_bucket", lambda: None)  # noqa: B010 (a method)
        return info

    def list_inputs(self) -> Inputs:
        """Lists the inputs with labels and splits, without decoding them, or raises InputError."""
        raise NotImplementedError

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The result of `list_inputs`.

        Raises InputError also without a source or inputs, for an empty part, or an id that occurs
        twice.
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
        self._check_parts(inputs)
        ids = collections.Counter(row["record_id"] for row in inputs.rows)
        twice = [name for name, count in ids.items() if count > 1]
        if twice:
            raise InputError(f"{self.name}: {len(twice)} ids occur twice, such as '{twice[0]}'")
        return inputs

    def _check_parts(self, inputs: Inputs) -> None:
        """Refuses an empty part; the cause may be the inputs that were skipped."""
        if self.protocol == "grouped":
            parts, cause = splits.PARTS, splits.TOO_FEW
        elif self.protocol == "content":
            text = self.options.content_parts
            parts, cause = tuple(splits.content_parts(text)), f"no input is of its content ({text})"
        else:
            return
        if inputs.skipped:
            reasons = ledger.reasons_in_line(inputs.skipped)
            cause += f"; {len(inputs.skipped)} inputs were skipped{reasons}"
        splits.check_parts((row["split"] for row in inputs.rows), parts, cause)

    @functools.cached_property
    def extraction(self) -> Extraction:
        """How faces are taken out of images and clips."""
        return from_arguments(self.options)

    def splits_of_inputs(self) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        """Returns the generator of each split, for `_split_generators`."""
        return {
            split: self._generate_examples(rows) for split, rows in self.inputs.by_split().items()
        }

    def examples(
        self,
        rows: Sequence[dict[str, Any]],
        find_faces: Callable[[dict[str, Any]], list[Found]] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (record_id, record) of one split's rows in order, and keeps each row's outcome.

        `find_faces` returns a row's faces; None: the method of this name, or what a cluster has
        found. Threads call it, and its InputError skips the row.
        """
        find_faces = find_faces or (self._found_in_block if self._blocks else self.find_faces)
        label = f"{self.name}/{self.protocol} {rows[0]['split']}"
        with tqdm(total=len(rows), desc=label, unit=self.UNIT, disable=None) as progress:
            for outcome, records in _in_threads(
                functools.partial(make_records, find_faces=find_faces), rows
            ):
                progress.update()
                self._outcomes.append(outcome)
                yield from records

    def find_faces(self, row: dict[str, Any]) -> list[Found]:
        """Returns the faces of a row: of a clip, whose finished file is read if there is one."""
        job, extraction = row["_job"], self.extraction
        return clips.read_clip(clips.finish_clip(job, extraction, self._clip_folder)).found

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        if self.SOURCE and self.options.source is None:
            self.options.source = Path(dl_manager.manual_dir)
        self._outcomes = []
        if self.UNIT == "clip":
            self._finish_clips()
        elif self.SOURCE and self.options.dask:
            self._finish_blocks()
        try:
            super()._download_and_prepare(dl_manager, download_config)
        except AssertionError:  # TFDS refuses an empty split, but does not know the reason
            self._refuse_empty()
            raise
        if download_config.max_examples_per_split is None:
            self._verify()
            self._write_ledger(Path(self.data_path))
        # Other splits have other blocks.
        for file in {file for file, _ in self._blocks.values()}:
            file.unlink(missing_ok=True)

    def _finish_clips(self) -> None:
        jobs = [row["_job"] for row in self.inputs.rows]
        to = (self.extraction, self._clip_folder)
        if self.options.dask:
            tasks = (cluster.clip_task(job, *to) for job in jobs)
            self._finish_on_cluster(tasks, len(jobs), "clip")
            return
        with tqdm(total=len(jobs), desc=self.name, unit="clip", disable=None) as progress:
            for _ in clips.extract(jobs, *to, processes=self.options.processes):
                progress.update()

    def _finish_blocks(self) -> None:
        about, todo = (type(self).name, self.protocol, self.options), []
        for rows in self.inputs.by_split().values():
            of_split = list(blocks.tasks(*about, rows, self._clip_folder))
            for number, row in enumerate(rows):
                block, position = divmod(number, blocks.PICTURES)
                self._blocks[row["record_id"]] = (of_split[block].file, position)
            todo += of_split
        self._finish_on_cluster(todo, len(todo), f"block of {blocks.PICTURES}")

    def _finish_on_cluster(self, tasks: Iterable[cluster.Task], count: int, unit: str) -> None:
        with (
            cluster.connect(self.options.dask) as client,
            tqdm(total=count, desc=self.name, unit=unit, disable=None) as progress,
        ):
            for _ in cluster.finish_all(tasks, self._clip_folder, client):
                progress.update()

    def _found_in_block(self, row: dict[str, Any]) -> list[Found]:
        file, position = self._blocks[row["record_id"]]
        found = _read_block(file)[position]
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _verify(self) -> None:
        """Checks that nothing was lost: each row has one outcome, each record is in the shards."""
        listed = collections.Counter(row["record_id"] for row in self.inputs.rows)
        came = collections.Counter(outcome.row for outcome in self._outcomes)
        if listed != came:
            lost, twice = (listed - came).total(), (came - listed).total()
            raise RuntimeError(
                f"of {listed.total()} rows {lost} are missing and {twice} are duplicated"
            )
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
        listed = [*skipped, *sorted(inputs.remarks)]
        rows = ({"item": item, "reason": reason} for item, reason in listed)
        write_table(folder / "ledger.csv", ("item", "reason"), rows)
        ledger.write_quality(folder, outcomes)
        if self.UNIT == "clip":
            ledger.write_clips(folder, inputs.rows, self.extraction, self._clip_folder)
        ledger.write_summary(folder, inputs, outcomes, skipped)

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _UncompressedWriter(self.info.file_format or tfds.core.FileFormat.ARRAY_RECORD)


class _UncompressedWriter(tfds.core.ExampleWriter):
    """Writes shards without compression, which saves 2.5 % of a JPEG and doubles its read time."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        if self.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            return super().write(path, examples)
        with contextlib.closing(
            ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        ) as writer:
            for _, record in examples:
                writer.write(record)


_read_block = functools.lru_cache(maxsize=4)(blocks.read)


def make_records(
    row: dict[str, Any], find_faces: Callable[[dict[str, Any]], list[Found]]
) -> tuple[Outcome, list[tuple[str, dict[str, Any]]]]:
    """Reads a row; returns its outcome and (record_id, record) pairs."""
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


class Listing(NamedTuple):
    """The files of a folder: paths inside it, sorted."""

    files: list[str]  # those that can be read
    skipped: list[tuple[str, str]]  # (item, reason) of those that cannot
    ignored: list[str]  # those that systems leave behind, such as .DS_Store


def files_in(folder: Path) -> Listing:
    """Lists all files below a folder; follows links to files within it."""
    files, skipped, ignored = [], [], []
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for path in (Path(place, name) for name in names + links):
            name = path.relative_to(folder).as_posix()
            try:
                name.encode()
            except UnicodeEncodeError:
                item = os.fsencode(name).decode(errors="backslashreplace")
                skipped.append((item, "its name is not UTF-8"))
                continue
            if is_system_file(name):
                ignored.append(name)
            elif reason := _why_unread(path, folder):
                skipped.append((name, reason))
            else:
                files.append(name)
    for error in unreadable:
        name = Path(error.filename).relative_to(folder).as_posix()
        skipped.append((name, f"a folder that cannot be read: {error.strerror}"))
    return Listing(sorted(files), sorted(skipped), sorted(ignored))


def not_listed(
    folder: Path, listed: Collection[str], table: str
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The other files of a folder whose table lists its files: `skipped` and `ignored`.

    What lies directly in the folder was written with the table.
    """
    listing = files_in(folder)
    listed = {PurePosixPath(name).as_posix() for name in listed}
    others = [name for name in listing.files if name not in listed]
    skipped = [entry for entry in listing.skipped if entry[0] not in listed]
    skipped += [(name, f"not in {table}") for name in others if "/" in name]
    beside = sum("/" not in name for name in others)
    return skipped, {f"written beside {table}": beside, "a system file": len(listing.ignored)}


def _why_unread(path: Path, folder: Path) -> str:
    if path.is_dir():
        return "a link to a folder"
    if path.is_symlink() and not path.exists():
        return "a broken link"
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        return "a link out of the folder"
    return "" if path.is_file() else "not a regular file"


def is_system_file(name: str) -> bool:
    """Whether macOS, Windows or Office leaves files of this path beside others."""
    return SYSTEM_FILES.search(name) is not None


def outline(files: Sequence[str]) -> str:
    """Names some of the folders and files of a source, for an error."""
    folders = sorted({parent for file in files if (parent := file.rpartition("/")[0])})
    listed = [
        f"{kind} {', '.join(map(repr, names[:4]))}"
        + f" and {len(names) - 4} more" * (len(names) > 4)
        for kind, names in (("folders", folders), ("files", sorted(files)))
        if names
    ]
    return "it has the " + " and the ".join(listed) if listed else "it is empty"
