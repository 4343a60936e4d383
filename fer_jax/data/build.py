"""The verb `build`: a source becomes a TFDS dataset of records.

A builder (data_builders/<name>/<name>_dataset_builder.py) is one function, `plan(config,
options)`, that says which records there will be, what is refused and why, and how one face is
read. Everything else is here and the same for all: shards without TensorFlow, the ledger, the
check that nothing was lost.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from fer_jax import schema
from fer_jax.config import OneLineParser, default_data_dir
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media.images import encode_jpeg

BUILDERS = Path(__file__).parents[2] / "data_builders"
VERSION = "1.0.0"
NUM_THREADS = max(1, min(16, os.cpu_count() or 1))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a builder intends to write.

    Attributes:
      name: of the dataset.
      config: how it is split; the dataset is "name/config".
      rows: every planned record: fields of `schema.record` but the image, plus "split" and
        whatever `read` needs under keys that begin with "_".
      refused: inputs that become no record: (item, reason).
      read: a row to the fields it adds: "image", uint8 RGB [s, s, 3], and others if known.
        Raising InputError refuses the row.
      options: what the dataset was made from; a rebuild from others is another dataset.
    """

    name: str
    config: str
    rows: list[dict[str, Any]]
    refused: list[tuple[str, str]]
    read: Callable[[dict[str, Any]], dict[str, Any]]
    options: dict[str, Any]


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


def build(
    builder_and_config: str,
    *,
    data_dir: Path,
    options: argparse.Namespace | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Builds one config of a builder, or all of them.

    Args:
      builder_and_config: "demo", "demo/controlled", "face_folder/grouped".
      data_dir: receives name/config/version/.
      options: the builder's own flags, parsed; None where it has none.
      dry_run: print what would be built and write nothing.
      overwrite: build again what is there.

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
        directories.append(write(plan, data_dir, dry_run=dry_run, overwrite=overwrite))
    return directories


def write(plan: Plan, data_dir: Path, *, dry_run: bool = False, overwrite: bool = False) -> Path:
    """Writes a plan's records as array_record shards, with ledger.csv and build.json beside.

    The dataset is made in a folder of its own and takes its place only when complete: a
    stopped or failed build leaves nothing that looks like a dataset.

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
        print(f"{label}: would read {len(plan.rows)} images: {_listing(counts)}")
        print(_reasons(plan.refused))
        return final

    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building_", dir=data_dir) as temporary:
        ledger = list(plan.refused)
        digests: dict[str, bytes] = {}
        written: list[dict[str, Any]] = []
        with tqdm(total=len(plan.rows), desc=label, unit="image", disable=None) as progress:
            builder = _tfds_builder(plan, Path(temporary), ledger, digests, written, progress)
            # TFDS says what the line above and the table below say better.
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format="array_record")
        made = Path(builder.data_dir)
        summary = _summary(plan, written, ledger, digests)
        _verify(plan, builder, written, ledger)
        with (made / "ledger.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("item", "reason"), *sorted(ledger)])
        (made / "build.json").write_text(
            json.dumps(summary | {"plan": digest}, indent=2, ensure_ascii=False) + "\n"
        )
        if final.exists():
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        made.rename(final)
    print(_table(label, written, ledger))
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
        differing = ["the images, labels or splits of the source"]
    if differing:
        raise InputError(
            f"{final} was built with another {'; '.join(differing)}; use --overwrite or another "
            "name"
        )


def _plan_digest(plan: Plan) -> str:
    known = sorted(
        json.dumps([row["record_id"], row["split"], row.get("emotion"), row.get("interest")])
        for row in plan.rows
    )
    return hashlib.sha256("\n".join(known).encode()).hexdigest()


def _tfds_builder(
    plan: Plan,
    directory: Path,
    ledger: list[tuple[str, str]],
    digests: dict[str, bytes],
    written: list[dict[str, Any]],
    progress: Any,
) -> Any:
    """A TFDS builder of this plan; TFDS takes a dataset's name from its class."""

    def generate(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for row, result in _in_threads(lambda row: _make_record(plan, row), rows):
            progress.update()
            if isinstance(result, InputError):
                ledger.append((row["record_id"], str(result)))
                continue
            record, digest = result
            digests[row["record_id"]] = digest
            written.append(row)
            yield row["record_id"], record

    splits: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in plan.rows:
        splits[row["split"]].append(row)

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

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager  # nothing is downloaded
            return {split: generate(splits[split]) for split in sorted(splits)}

        def _generate_examples(self) -> Any:
            raise NotImplementedError("every split has its own generator")

    return Builder(data_dir=str(directory), config=plan.config)


def _in_threads(
    function: Callable[[Any], Any], rows: Iterable[Any], look_ahead: int = 4 * NUM_THREADS
) -> Iterator[tuple[Any, Any]]:
    """Maps in order with a bounded number of rows in flight; decoding releases the GIL."""
    remaining = iter(rows)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        pending = collections.deque(
            (row, pool.submit(function, row)) for row in itertools.islice(remaining, look_ahead)
        )
        while pending:
            row, future = pending.popleft()
            yield row, future.result()
            for following in itertools.islice(remaining, 1):
                pending.append((following, pool.submit(function, following)))


def _make_record(plan: Plan, row: dict[str, Any]) -> tuple[dict[str, Any], bytes] | InputError:
    try:
        fields = plan.read(row)
    except InputError as error:
        return error
    image = fields.pop("image")
    known = {k: v for k, v in row.items() if k != "split" and not k.startswith("_")}
    record = schema.record(image=encode_jpeg(image), **(known | fields))
    digest = hashlib.sha256(repr((image.shape, record["record_id"])).encode())
    digest.update(repr([record[task] for task in schema.TASKS]).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return record, digest.digest()


def _verify(
    plan: Plan, builder: Any, written: list[dict[str, Any]], ledger: list[tuple[str, str]]
) -> None:
    """Nothing was lost: inputs = records + ledger rows, and the shards hold each record."""
    inputs = len(plan.rows) + len(plan.refused)
    if inputs != len(written) + len(ledger):
        raise RuntimeError(f"{inputs} inputs, {len(written)} records, {len(ledger)} ledger rows")
    planned = collections.Counter(row["split"] for row in written)
    for split in {row["split"] for row in plan.rows}:
        if not planned[split]:
            raise InputError(f"{plan.name}: no image of the split '{split}' could be read")
        found = len(builder.as_data_source(split))
        if found != planned[split]:
            raise RuntimeError(f"{split}: {planned[split]} records made, {found} in the shards")


def _summary(
    plan: Plan,
    written: list[dict[str, Any]],
    ledger: list[tuple[str, str]],
    digests: dict[str, bytes],
) -> dict[str, Any]:
    splits = sorted({row["split"] for row in written})
    counts = {
        split: {
            task: _class_counts([row for row in written if row["split"] == split], task)
            for task in schema.TASKS
        }
        for split in splits
    }
    fingerprint = hashlib.sha256(b"".join(digests[name] for name in sorted(digests)))
    return {
        "inputs": len(plan.rows) + len(plan.refused),
        "records": len(written),
        "skipped": dict(collections.Counter(reason for _, reason in ledger)),
        "splits": dict(collections.Counter(row["split"] for row in written)),
        "classes": counts,
        "subjects": len({row["subject_id"] for row in written if row.get("subject_id")}),
        "options": plan.options,
        "fingerprint": fingerprint.hexdigest(),
    }


def _class_counts(rows: list[dict[str, Any]], task: str) -> dict[str, int]:
    indices = collections.Counter(row.get(task, schema.UNKNOWN) for row in rows)
    counts = {name: indices[i] for i, name in enumerate(schema.TASKS[task]) if indices[i]}
    return counts | ({"unknown": indices[schema.UNKNOWN]} if indices[schema.UNKNOWN] else {})


def _table(label: str, written: list[dict[str, Any]], ledger: list[tuple[str, str]]) -> str:
    lines = [f"{label}: {len(written)} records"]
    for split in sorted({row["split"] for row in written}):
        rows = [row for row in written if row["split"] == split]
        subjects = len({row["subject_id"] for row in rows if row.get("subject_id")})
        people = f"{subjects} subjects" if subjects else "no subjects named"
        lines.append(f"  {split}: {len(rows)} images, {people}")
        for task in schema.TASKS:
            counts = _class_counts(rows, task)
            if set(counts) != {"unknown"}:
                lines.append(f"    {task}: {_listing(counts)}")
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
    named = next((word for word in argv if not word.startswith("-")), "")
    if named:
        module = find_builder(named.partition("/")[0])
        module.add_arguments(parser)
    options = parser.parse_args(argv)
    build(
        options.builder,
        data_dir=options.data_dir,
        options=options,
        dry_run=options.dry_run,
        overwrite=options.overwrite,
    )
