"""Builds a TFDS dataset of face records.

NAME is a builder (data_builders/NAME), CONFIG how its records are split.
"""

import argparse
import collections
import contextlib
import importlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import tensorflow_datasets as tfds

from fer_jax.config import OneLineParser, default_data_dir
from fer_jax.data import ledger, splits
from fer_jax.data.builder import RecordBuilder
from fer_jax.errors import InputError, did_you_mean
from fer_jax.storage import differences

BUILDERS = Path(__file__).parents[2] / "data_builders"


def find_builder(name: str) -> type[RecordBuilder]:
    """The class of a builder.

    Raises:
      InputError: there is none of that name.
    """
    if name not in builder_names():
        raise InputError(f"unknown builder '{name}'{did_you_mean(name, builder_names())}")
    # By its full name, so that a builder can import its own neighbours.
    if str(BUILDERS.parent) not in sys.path:
        sys.path.append(str(BUILDERS.parent))
    return importlib.import_module(f"data_builders.{name}.{name}_dataset_builder").Builder


def builder_names() -> list[str]:
    """The names of all builders."""
    suffix = "_dataset_builder.py"
    return sorted(path.name.removesuffix(suffix) for path in BUILDERS.glob(f"*/*{suffix}"))


def build(
    builder_and_config: str,
    *,
    data_dir: Path,
    options: argparse.Namespace | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Builds one config of a builder, or the configs of one whose configs are no protocols.

    Args:
      builder_and_config: "demo", "demo/controlled", "face_folder/grouped".
      data_dir: receives name/config/version/.
      options: the builder's flags, parsed; None: their defaults.
      dry_run: print what would be built and write nothing.
      overwrite: replace a dataset that is there.

    Returns:
      The folders of the datasets.

    Raises:
      InputError: no such builder or config, or anything a builder refuses.
    """
    name, _, config = builder_and_config.partition("/")
    builder = find_builder(name)
    configs = [known.name for known in builder.BUILDER_CONFIGS]
    if config and config not in configs:
        raise InputError(
            f"builder '{name}' has no config '{config}'{did_you_mean(config, configs)}"
        )
    if not config and set(configs) <= set(splits.PROTOCOLS):
        listed = ", ".join(f"{name}/{known}" for known in configs)
        raise InputError(f"name the protocol of the split: {listed}")
    return [
        write(builder, one, data_dir, options=options, dry_run=dry_run, overwrite=overwrite)
        for one in ([config] if config else configs)
    ]


def write(
    builder_class: type[RecordBuilder],
    config: str,
    data_dir: Path,
    *,
    options: argparse.Namespace | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Path:
    """Builds one config: array_record shards with ledger.csv and build.json beside them.

    The dataset is made in a temporary folder and renamed when it is complete. The faces of
    finished clips stay in data_dir/.clips: a build that is started again, or split in another way,
    does not decode them again.

    Returns:
      The folder of the dataset.

    Raises:
      InputError: nothing to build, an id that occurs twice, or another dataset is there.
    """
    temporary = data_dir / f".building_{os.getpid()}"
    builder = builder_class(
        data_dir=temporary, config=config, options=options, clip_folder=data_dir / ".clips"
    )
    inputs, label = builder.inputs, f"{builder.name}/{config}"
    final = data_dir / builder.name / config / str(builder.version)
    if dry_run:
        counts = collections.Counter(row["split"] for row in inputs.rows)
        listed = ledger.counts_in_line(counts)
        print(f"{label}: would read {len(inputs.rows)} {builder.UNIT}s: {listed}")
        print(ledger.reasons(collections.Counter(reason for _, reason in inputs.skipped)))
        return final
    if final.exists() and not overwrite:
        _check_same(final, builder)
        print(f"{label} is already built in {final}")
        return final
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what TFDS prints repeats our lines
            builder.download_and_prepare()
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        Path(builder.data_path).rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    summary = json.loads((final / ledger.SUMMARY).read_text(encoding="utf-8"))
    print(ledger.table(label, summary, len(inputs.rows) if builder.UNIT == "clip" else 0))
    print(f"  -> {final}")
    return final


def _check_same(final: Path, builder: RecordBuilder) -> None:
    """Refuses a dataset that was built from other options or inputs."""
    file = final / ledger.SUMMARY
    if not file.is_file():
        raise InputError(f"{final} holds a dataset that was not built here; move it away")
    before = json.loads(file.read_text(encoding="utf-8"))
    differing = differences(before["options"], builder.inputs.settings)
    if not differing and before["inputs_digest"] != ledger.inputs_digest(builder.inputs):
        differing = ["the files, labels or splits of the source"]
    if differing:
        raise InputError(
            f"{final} was built with another {'; '.join(differing)}; use --overwrite or another "
            "--name"
        )


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are some, and the list of builders as it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def main(argv: list[str]) -> None:
    """The verb `build`."""
    named = next((word for word in argv if not word.startswith("-")), "").partition("/")[0]
    description = (__doc__ or "").rstrip()
    if not named:
        lines = []
        for name in builder_names():
            builder = find_builder(name)
            configs = ", ".join(config.name for config in builder.BUILDER_CONFIGS)
            lines.append(f"  {name:<14} {configs}: {(builder.__doc__ or '').splitlines()[0]}")
        description += (
            "\n\nbuilders, with their configs:\n" + "\n".join(lines) + "\n\n"
            "`fer-jax build NAME --help` adds the options of one builder to those of all."
        )
    parser = OneLineParser(prog="fer-jax build", description=description, formatter_class=_Help)
    parser.add_argument("builder", metavar="NAME[/CONFIG]")
    (find_builder(named) if named else RecordBuilder).add_arguments(parser)
    parser.add_argument(
        "--data_dir", type=Path, default=default_data_dir(), help="receives the dataset"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be built")
    parser.add_argument("--overwrite", action="store_true", help="replace an older build")
    options = parser.parse_args(argv)
    if options.processes < 1:
        raise InputError(f"--processes must be at least 1, got {options.processes}")
    build(
        options.builder,
        data_dir=options.data_dir,
        options=options,
        dry_run=options.dry_run,
        overwrite=options.overwrite,
    )
