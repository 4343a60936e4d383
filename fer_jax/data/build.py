"""The verb `build`: a source becomes a TFDS dataset of records.

A builder (data_builders/<name>/<name>_dataset_builder.py) is one function, `plan(config,
options)`, that says what is read, what is refused and why, and how a picture or a clip becomes
faces. Everything else is the same for all: the shards and the check that nothing was lost
(shards.py), what is written beside them (ledger.py), and here the place they take.
"""

import argparse
import collections
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import OneLineParser, default_data_dir
from fer_jax.data import ledger, shards
from fer_jax.data.plan import Plan, listing, reasons
from fer_jax.data.shards import NUM_THREADS, VERSION
from fer_jax.errors import InputError, did_you_mean

BUILDERS = Path(__file__).parents[2] / "data_builders"


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
    processes: int = NUM_THREADS,
) -> list[Path]:
    """Builds one config of a builder, or all of them.

    Args:
      builder_and_config: "demo", "demo/controlled", "face_folder/grouped".
      data_dir: receives name/config/version/.
      options: the builder's own flags, parsed; None where it has none.
      dry_run: print what would be built and write nothing.
      overwrite: build again what is there.
      processes: clips worked on at once.

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
        print(f"{label}: would read {len(plan.rows)} {kind}: {listing(counts)}")
        print(reasons(plan.refused))
        return final

    data_dir.mkdir(parents=True, exist_ok=True)
    clip_folder = data_dir.resolve() / ".clips" / plan.name
    if plan.extraction:
        shards.finish_clips(plan, plan.extraction, clip_folder, processes)
    make = functools.partial(shards.make_records, read=shards.reader(plan, clip_folder))
    with tempfile.TemporaryDirectory(prefix=".building_", dir=data_dir) as temporary:
        builder, outcomes = shards.prepare(plan, Path(temporary), make)
        made = Path(builder.data_dir)
        skipped = sorted(itertools.chain(plan.refused, *(one.ledger for one in outcomes)))
        shards.verify(plan, builder, outcomes)
        summary = ledger.summary(plan, outcomes, skipped) | {"plan": digest}
        ledger.write_csv(made / "ledger.csv", ("item", "reason"), skipped)
        ledger.write_measured(made / "quality.csv", outcomes)
        if plan.extraction:
            ledger.write_clips(made / "clips.csv", plan, plan.extraction, clip_folder)
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (made / "build.json").write_text(text, encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        made.rename(final)
    print(ledger.table(label, plan, outcomes, skipped))
    print(f"  -> {final}")
    return final


def _check(plan: Plan) -> None:
    if not plan.rows:
        raise InputError(
            f"{plan.name}: nothing to build, all {len(plan.refused)} inputs are refused"
            f"{reasons(plan.refused, one_line=True)}"
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
    named = next((word for word in argv if not word.startswith("-")), "")
    if named:
        module = find_builder(named.partition("/")[0])
        module.add_arguments(parser)
    options = parser.parse_args(argv)
    if options.processes < 1:
        raise InputError(f"--processes must be at least 1, not {options.processes}")
    build(
        options.builder,
        data_dir=options.data_dir,
        options=options,
        dry_run=options.dry_run,
        overwrite=options.overwrite,
        processes=options.processes,
    )
