"""The verb `build`: a source becomes a TFDS dataset of records.

A builder (data_builders/<name>/<name>_dataset_builder.py) is one function, `plan(config,
options)`, that says what is read, what is refused and why, and how a picture or a clip becomes
faces. Everything else is here and the same for all: clips worked on side by side, shards
without TensorFlow, on this machine or under Apache Beam, the ledger, the check that nothing was
lost.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from fer_jax import schema
from fer_jax.config import OneLineParser, default_data_dir
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media import clips, faces
from fer_jax.media.clips import Extraction, Found

BUILDERS = Path(__file__).parents[2] / "data_builders"
VERSION = "1.0.0"
NUM_THREADS = max(1, min(16, os.cpu_count() or 1))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a builder intends to write.

    Attributes:
      name: of the dataset.
      config: how it is split; the dataset is "name/config".
      rows: every picture or clip that is read: the fields of `schema.record` that its faces
        share, plus "split" and whatever `read` needs under keys that begin with "_".
      refused: inputs that are not read: (item, reason).
      options: what the dataset was made from; a rebuild from others is another dataset.
      read: a row to its faces. Raising InputError refuses the row. Picklable, for Beam. None
        where the rows are clips.
      extraction: how faces are taken out of clips; each row's "_job" then says which clip.
    """

    name: str
    config: str
    rows: list[dict[str, Any]]
    refused: list[tuple[str, str]]
    options: dict[str, Any]
    read: Callable[[dict[str, Any]], list[Found]] | None = None
    extraction: Extraction | None = None


class Outcome(NamedTuple):
    """What became of one row; all counts are sums over these.

    Attributes:
      row: its record_id.
      split: its split.
      num_inputs: pictures or wanted frames.
      records: of each record "record_id", "digest" and what the tables count.
      ledger: (item, reason) of the inputs that became no record.
    """

    row: str
    split: str
    num_inputs: int
    records: list[dict[str, Any]]
    ledger: list[tuple[str, str]]


def find_builder(name: str) -> Any:
    """The module of a builder.

    Raises:
      InputError: there is none of that name.
    """
    file = BUILDERS / name / f"{name}_dataset_builder.py"
    if not name.isidentifier() or not file.is_file():
        known = [path.name.removesuffix("_dataset_builder.py") for path in BUILDERS.glob("*/*.py")]
        raise InputError(f"no builder '{name}'{did_you_mean(name, set(known) - {'draw'})}")
    # By its full name, so that a builder can import its own neighbours.
    if str(BUILDERS.parent) not in sys.path:
        sys.path.append(str(BUILDERS.parent))
    return importlib.import_module(f"data_builders.{name}.{name}_dataset_builder")


def files_in(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The files with one of these endings anywhere in a folder.

    Args:
      folder: where.
      suffixes: in lower case.

    Returns:
      (their paths inside the folder, sorted; those that are not read: (item, reason)). Links
      are followed within the folder, to files.
    """
    files, refused = [], []
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
            refused.append((item, "its name is not UTF-8"))
            continue
        if linked_folder:
            refused.append((name, "a link to a folder"))
        elif linked and not path.exists():
            refused.append((name, "a link to nothing"))
        elif linked and not path.resolve().is_relative_to(folder.resolve()):
            refused.append((name, "a link out of the folder"))
        elif path.is_file():
            files.append(name)
    return sorted(files), sorted(refused)


def build(
    builder_and_config: str,
    *,
    data_dir: Path,
    options: argparse.Namespace | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    processes: int = NUM_THREADS,
    beam_options: Sequence[str] | None = None,
) -> list[Path]:
    """Builds one config of a builder, or all of them.

    Args:
      builder_and_config: "demo", "demo/controlled", "face_folder/grouped".
      data_dir: receives name/config/version/.
      options: the builder's own flags, parsed; None where it has none.
      dry_run: print what would be built and write nothing.
      overwrite: build again what is there.
      processes: clips worked on at once.
      beam_options: words of Beam's PipelineOptions; None builds without Beam.

    Returns:
      The folders of the datasets.

    Raises:
      InputError: no such builder or config, or anything a builder refuses.
    """
    name, _, config = builder_and_config.partition("/")
    module = find_builder(name)
    if config and config not in module.CONFIGS:
        hint = did_you_mean(config, module.CONFIGS)
        raise InputError(f"builder '{name}' has no config '{config}'{hint}")
    if not config and len(module.CONFIGS) > 1 and not module.BUILD_ALL:
        listed = ", ".join(f"{name}/{known}" for known in module.CONFIGS)
        raise InputError(f"say how to split: {listed}")
    directories = []
    for chosen in [config] if config else module.CONFIGS:
        plan = module.plan(chosen, options or argparse.Namespace())
        directories.append(
            write(
                plan,
                data_dir,
                dry_run=dry_run,
                overwrite=overwrite,
                processes=processes,
                beam_options=beam_options,
            )
        )
    return directories


def write(
    plan: Plan,
    data_dir: Path,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
    processes: int = NUM_THREADS,
    beam_options: Sequence[str] | None = None,
) -> Path:
    """Writes a plan's records as array_record shards, with ledger.csv and build.json beside.

    The dataset is made in a folder of its own and takes its place only when complete: a
    stopped or failed build leaves nothing that looks like a dataset. The faces of finished
    clips stay in data_dir/.clips: a build that is started again, or split in another way, does
    not decode them again.

    Raises:
      InputError: nothing to write, an id that occurs twice, or another dataset in the place.
    """
    _check(plan)
    label = f"{plan.name}/{plan.config}"
    final = data_dir / plan.name / plan.config / VERSION
    digest = _plan_digest(plan)
    if final.exists() and not dry_run and not overwrite:
        _check_same(final, plan, digest)
        print(f"{label} is already built in {final}")
        return final
    if dry_run:
        counts = collections.Counter(row["split"] for row in plan.rows)
        kind = "clips" if plan.extraction else "images"
        print(f"{label}: would read {len(plan.rows)} {kind}: {_listing(counts)}")
        print(_reasons(plan.refused))
        return final

    data_dir.mkdir(parents=True, exist_ok=True)
    clip_folder = data_dir.resolve() / ".clips" / plan.name
    if plan.extraction and beam_options is None:
        _finish_clips(plan, plan.extraction, clip_folder, processes)
    make = functools.partial(_make, read=_reader(plan, clip_folder))
    with tempfile.TemporaryDirectory(prefix=".building_", dir=data_dir) as temporary:
        if beam_options is None:
            builder, outcomes = _prepare(plan, Path(temporary), make)
        else:
            builder, outcomes = _prepare_with_beam(plan, Path(temporary), make, beam_options)
        made = Path(builder.data_dir)
        ledger = sorted(itertools.chain(plan.refused, *(one.ledger for one in outcomes)))
        _verify(plan, builder, outcomes)
        summary = _summary(plan, outcomes, ledger) | {"plan": digest}
        _write_csv(made / "ledger.csv", ("item", "reason"), ledger)
        _write_measured(made / "quality.csv", outcomes)
        if plan.extraction:
            _write_clips(made / "clips.csv", plan, plan.extraction, clip_folder)
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (made / "build.json").write_text(text, encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        made.rename(final)
    print(_table(label, plan, outcomes, ledger))
    print(f"  -> {final}")
    return final


def _check(plan: Plan) -> None:
    if not plan.rows:
        raise InputError(
            f"{plan.name}: nothing to build, all {len(plan.refused)} inputs are refused"
            f"{_reasons(plan.refused, one_line=True)}"
        )
    ids = collections.Counter(row["record_id"] for row in plan.rows)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise InputError(f"{plan.name}: {len(twice)} ids occur twice, such as '{twice[0]}'")


def _check_same(final: Path, plan: Plan, digest: str) -> None:
    """What is in the place must come from the same options and the same inputs."""
    file = final / "build.json"
    if not file.is_file():
        raise InputError(f"{final} holds a dataset that was not built here; move it away")
    before = json.loads(file.read_text())
    differing = [
        f"{key} (was {before['options'].get(key)}, now {plan.options.get(key)})"
        for key in sorted(before["options"].keys() | plan.options.keys())
        if before["options"].get(key) != plan.options.get(key)
    ]
    if not differing and before["plan"] != digest:
        differing = ["the files, labels or splits of the source"]
    if differing:
        raise InputError(
            f"{final} was built with another {'; '.join(differing)}; use --overwrite or another "
            "name"
        )


def _plan_digest(plan: Plan) -> str:
    known = []
    for row in plan.rows:
        told = {k: v for k, v in row.items() if not k.startswith("_")}
        if "_job" in row:
            # Not when it was changed: copies of the same source are the same.
            told["bytes"] = os.stat(row["_job"].path).st_size
        known.append(json.dumps(told, default=np.ndarray.tolist))
    return hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()


def _finish_clips(plan: Plan, extraction: Extraction, folder: Path, processes: int) -> None:
    jobs = [row["_job"] for row in plan.rows]
    with tqdm(total=len(jobs), desc=plan.name, unit="clip", disable=None) as progress:
        for _ in clips.extract(jobs, extraction, folder, processes=processes):
            progress.update()


def _reader(plan: Plan, clip_folder: Path) -> Callable[[dict[str, Any]], list[Found]]:
    if plan.extraction is not None:
        return functools.partial(_read_clip, extraction=plan.extraction, folder=clip_folder)
    if plan.read is None:
        raise ValueError("a plan without clips needs `read`")
    return plan.read


def _read_clip(row: dict[str, Any], extraction: Extraction, folder: Path) -> list[Found]:
    return clips.read_clip(clips.finish_clip(row["_job"], extraction, folder)).found


def _make(
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


def _splits(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    splits: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in plan.rows:
        splits[row["split"]].append(row)
    return dict(sorted(splits.items()))


def _prepare(
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
            lambda self, dl_manager: {s: generate(rows) for s, rows in _splits(plan).items()},
        )
        try:
            _download_and_prepare(builder)
        except AssertionError:
            _refuse_empty(plan, outcomes)
            raise
    return builder, outcomes


def _prepare_with_beam(
    plan: Plan, directory: Path, make: Callable[[dict[str, Any]], Any], words: Sequence[str]
) -> tuple[Any, list[Outcome]]:
    """Writes the shards in a Beam pipeline, which also writes down what became of each row."""
    try:
        import apache_beam as beam
        from apache_beam.io import WriteToText
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(
            "Apache Beam is not installed; pip install -e '.[beam]', or build without "
            "--beam_pipeline_options"
        ) from error

    def split_generators(self: Any, dl_manager: Any, pipeline: Any) -> dict[str, Any]:
        del self, dl_manager
        generators = {}
        for split, rows in _splits(plan).items():
            made = (
                pipeline
                | f"{split} rows" >> beam.Create(rows)
                | f"{split} spread" >> beam.Reshuffle()
                | f"{split} faces" >> beam.Map(make)
            )
            _ = (
                made
                | f"{split} outcomes" >> beam.Map(_outcome_line)
                | f"{split} write outcomes" >> WriteToText(str(directory / "outcomes" / split))
            )
            generators[split] = made | f"{split} records" >> beam.FlatMap(_records_of)
        return generators

    builder = _tfds_builder(plan, directory, split_generators)
    options = PipelineOptions([f"--{word.removeprefix('--')}" for word in words])
    try:
        _download_and_prepare(builder, beam_options=options)
    except ValueError as error:
        # What became of the rows is not written yet.
        empty = re.search(r"examples is 0 for split (\w+)", str(error))
        if empty is None:
            raise
        raise InputError(
            f"{plan.name}: the split '{empty[1]}' would be empty; without "
            "--beam_pipeline_options this says why"
        ) from error
    lines = [
        line
        for file in sorted((directory / "outcomes").glob("*"))
        for line in file.read_text().splitlines()
    ]
    return builder, [_outcome(line) for line in lines]


def _outcome_line(made: tuple[Outcome, Any]) -> str:
    return json.dumps(made[0])


def _outcome(line: str) -> Outcome:
    outcome = Outcome(*json.loads(line))
    return outcome._replace(ledger=[(item, reason) for item, reason in outcome.ledger])


def _records_of(made: tuple[Any, list[tuple[str, dict[str, Any]]]]) -> list[Any]:
    return made[1]


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


def _download_and_prepare(builder: Any, **beam: Any) -> None:
    # What TFDS prints, our own lines say better.
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(**beam)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(file_format="array_record", download_config=config)


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


def _verify(plan: Plan, builder: Any, outcomes: list[Outcome]) -> None:
    """Nothing was lost: every row has its outcome, and the shards hold each record.

    The counts do not depend on who ran the build: a runner that loses elements is noticed.
    """
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
    for split in _splits(plan):
        count = sum(len(outcome.records) for outcome in outcomes if outcome.split == split)
        found = len(builder.as_data_source(split))
        if found != count:
            raise RuntimeError(f"{split}: {count} records made, {found} in the shards")


def _refuse_empty(plan: Plan, outcomes: list[Outcome]) -> None:
    """Refuses a split whose rows, all of them read, gave no record."""
    for split, rows in _splits(plan).items():
        of_split = [outcome for outcome in outcomes if outcome.split == split]
        if len(of_split) == len(rows) and not any(outcome.records for outcome in of_split):
            reasons = [entry for outcome in of_split for entry in outcome.ledger]
            raise InputError(
                f"{plan.name}: the split '{split}' would be empty{_reasons(reasons, one_line=True)}"
            )


def _summary(plan: Plan, outcomes: list[Outcome], ledger: list[tuple[str, str]]) -> dict[str, Any]:
    by_split = _records_by_split(outcomes)
    records = [record for of_split in by_split.values() for record in of_split]
    inputs = len(plan.refused) + sum(outcome.num_inputs for outcome in outcomes)
    digests = sorted((record["record_id"], record["digest"]) for record in records)
    return {
        "inputs": inputs,
        "inputs_with_faces": inputs - len(ledger),
        "records": len(records),
        "skipped": dict(collections.Counter(reason for _, reason in ledger)),
        "splits": {split: len(of_split) for split, of_split in by_split.items()},
        "classes": {
            split: {task: _class_counts(of_split, task) for task in schema.TASKS}
            for split, of_split in by_split.items()
        },
        "subjects": len({record["subject_id"] for record in records} - {""}),
        "options": plan.options,
        "fingerprint": hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
    }


def _records_by_split(outcomes: list[Outcome]) -> dict[str, list[dict[str, Any]]]:
    by_split: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for outcome in outcomes:
        by_split[outcome.split] += outcome.records
    return dict(sorted(by_split.items()))


def _write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([header, *rows])


def _write_measured(file: Path, outcomes: list[Outcome]) -> None:
    measured = [r for outcome in outcomes for r in outcome.records if r["measured"]]
    if measured:
        names = list(measured[0]["measured"])
        rows = [
            [record["record_id"], *(f"{record['measured'][name]:.1f}" for name in names)]
            for record in sorted(measured, key=lambda record: record["record_id"])
        ]
        _write_csv(file, ("record_id", *names), rows)


def _write_clips(file: Path, plan: Plan, extraction: Extraction, folder: Path) -> None:
    """A line per clip: what it claims to hold, what it held, and what was made of it."""
    rows = []
    for row in plan.rows:
        clip = clips.read_clip(clips.finished_file(row["_job"], extraction, folder))
        with_faces = sum(bool(found.faces) for found in clip.found)
        rows.append([row["record_id"], row["_job"].path, *clip[1:], len(clip.found), with_faces])
    header = ("clip", "file", *clips.Clip._fields[1:], "frames_wanted", "frames_with_faces")
    _write_csv(file, header, rows)


def _class_counts(rows: list[dict[str, Any]], task: str) -> dict[str, int]:
    indices = collections.Counter(row.get(task, schema.UNKNOWN) for row in rows)
    counts = {name: indices[i] for i, name in enumerate(schema.TASKS[task]) if indices[i]}
    return counts | ({"unknown": indices[schema.UNKNOWN]} if indices[schema.UNKNOWN] else {})


def _table(label: str, plan: Plan, outcomes: list[Outcome], ledger: list[tuple[str, str]]) -> str:
    by_split = _records_by_split(outcomes)
    num_records = sum(map(len, by_split.values()))
    lines = [f"{label}: {num_records} records"]
    if plan.extraction:
        frames = sum(outcome.num_inputs for outcome in outcomes)
        lines[0] += f" from {frames} frames of {len(plan.rows)} clips"
    for split, records in by_split.items():
        subjects = len({record["subject_id"] for record in records} - {""})
        people = f"{subjects} subjects" if subjects else "no subjects named"
        lines.append(f"  {split}: {len(records)} images, {people}")
        for task in schema.TASKS:
            counts = _class_counts(records, task)
            if set(counts) != {"unknown"}:
                lines.append(f"    {task}: {_listing(counts)}")
    measured = [r["measured"] for records in by_split.values() for r in records if r["measured"]]
    if measured:
        limits = {"contrast": faces.PUBLISHED_CONTRAST, "sharpness": faces.PUBLISHED_SHARPNESS}
        below = {
            f"{name} below {limit:g}": sum(one[name] < limit for one in measured)
            for name, limit in limits.items()
        }
        lines.append(f"  of the records the published gates would refuse: {_listing(below)}")
    return "\n".join([*lines, _reasons(ledger)])


def _listing(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _reasons(refused: list[tuple[str, str]], *, one_line: bool = False) -> str:
    counts = collections.Counter(reason for _, reason in refused)
    if one_line:
        return f" ({_listing(counts)})" if counts else ""
    lines = [f"    {count} x {reason}" for reason, count in counts.most_common()]
    return "\n".join([f"  skipped: {len(refused)}", *lines])


def main(argv: list[str]) -> None:
    """The verb `build`."""
    parser = OneLineParser(
        prog="fer-jax build",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("builder", metavar="NAME[/CONFIG]")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    parser.add_argument("--dry_run", action="store_true", help="say what would be built")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    parser.add_argument("--processes", type=int, default=NUM_THREADS, help="for clips")
    parser.add_argument(
        "--beam_pipeline_options",
        help="build under Apache Beam with these options, separated by commas: runner=...,...",
    )
    named = next((word for word in argv if not word.startswith("-")), "")
    if named:
        module = find_builder(named.partition("/")[0])
        module.add_arguments(parser)
    options = parser.parse_args(argv)
    if options.processes < 1:
        raise InputError(f"--processes must be at least 1, not {options.processes}")
    beam = options.beam_pipeline_options
    build(
        options.builder,
        data_dir=options.data_dir,
        options=options,
        dry_run=options.dry_run,
        overwrite=options.overwrite,
        processes=options.processes,
        beam_options=None if beam is None else [word for word in beam.split(",") if word],
    )
