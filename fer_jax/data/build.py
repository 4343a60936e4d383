"""Build a TFDS dataset of face records.

NAME is a builder (data_builders/NAME), CONFIG one of its configs, mostly how records are split.
"""

import argparse
import collections
import contextlib
import importlib
import io
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fer_jax import storage
from fer_jax.config import OneLineParser, default_data_dir, output_path
from fer_jax.data import ledger, provenance, splits
from fer_jax.data.builder import RecordBuilder
from fer_jax.data.records import read_summary
from fer_jax.errors import InputError, did_you_mean

BUILDERS = Path(__file__).parents[2] / "data_builders"


def find_builder(name: str) -> type[RecordBuilder]:
    """Returns the class of a builder; InputError if there is none of that name."""
    if name not in builder_names():
        raise InputError(f"unknown builder '{name}'{did_you_mean(name, builder_names())}")
    # As a package, so that a builder can import other modules of its folder.
    if str(BUILDERS.parent) not in sys.path:
        sys.path.append(str(BUILDERS.parent))
    return importlib.import_module(f"data_builders.{name}.{name}_dataset_builder").Builder


def builder_names() -> list[str]:
    """Returns the names of all builders."""
    suffix = "_dataset_builder.py"
    return sorted(path.name.removesuffix(suffix) for path in BUILDERS.glob(f"*/*{suffix}"))


def build(builder_and_config: str, *, data_dir: Path, **flags: Any) -> list[Path]:
    """Builds one config of a builder, or all of them if they are not split protocols.

    `builder_and_config` is "demo", "demo/controlled", "face_folder/grouped"; `flags` are those of
    `build_config`. Returns the folders of the datasets. Raises InputError if there is no such
    builder or config, or `build_config` refuses it.
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
        build_config(builder, one, data_dir, **flags) for one in ([config] if config else configs)
    ]


def build_config(
    builder_class: type[RecordBuilder],
    config: str,
    data_dir: Path,
    *,
    options: argparse.Namespace | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Path:
    """Builds one config: array_record shards with ledger.csv and build.json beside them.

    The dataset is written to a temporary folder and renamed to data_dir/name/config/version when it
    is complete. The faces of finished clips stay in data_dir/.clips, so that a build that is
    repeated, or uses another split, does not decode them again. Without `options` they have their
    defaults. `dry_run` prints what would be built and writes nothing. Raises InputError if
    `data_dir` is a file, there is nothing to build, an id occurs twice, or another dataset is there
    and not to `overwrite`.
    """
    if data_dir.exists() and not data_dir.is_dir():
        raise InputError(f"--data_dir '{data_dir}' is a file; name a folder")
    temporary = data_dir / f".building_{storage.process_name()}"
    builder = builder_class(
        data_dir=temporary, config=config, options=options, clip_folder=data_dir / ".clips"
    )
    inputs, label = builder.inputs, f"{builder.name}/{config}"
    final = data_dir / builder.name / config / str(builder.version)
    if dry_run:
        counts = collections.Counter(row["split"] for row in inputs.rows)
        listed = ledger.counts_in_line(counts)
        print(f"{label}: would read {len(inputs.rows)} {builder.UNIT}s: {listed}")
        not_read, not_used = map(ledger.count_reasons, (inputs.skipped, inputs.remarks))
        print(ledger.reasons(builder.UNIT, not_read, {}, not_used, inputs.ignored))
        return final
    if final.exists() and not overwrite:
        _check_same(final, builder)
        print(f"{label} is already built in {final}")
        return final
    tfds.disable_progress_bar()
    storage.remove_unfinished([*data_dir.glob(".building_*"), *data_dir.glob(".clips/*/.*.tmp*")])
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS's messages repeat ours
            builder.download_and_prepare()
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        Path(builder.data_path).rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    num_clips = len(inputs.rows) if builder.UNIT == "clip" else 0
    summary = read_summary(final)
    made_by = summary["options"].get("made_by", {})
    for role, name in (("generator", "network"), ("teacher", "teacher")):
        if made_by.get(name):
            provenance.register(data_dir, made_by[name], summary["options"][role])
    print(ledger.table(label, summary, num_clips))
    print(f"  -> {final}")
    return final


def _check_same(final: Path, builder: RecordBuilder) -> None:
    """Refuses an existing dataset that was built from other options or inputs."""
    before = read_summary(final)
    if not before:
        raise InputError(f"'{final}' has a dataset of another program; move it away")
    differing = storage.differences(_flat(before["options"]), _flat(builder.inputs.settings))
    if differing:
        reason = f"with other options: {'; '.join(differing)}"
    elif before["inputs_digest"] != ledger.inputs_digest(builder.inputs):
        reason = "from other files, labels or splits"
    else:
        return
    raise InputError(f"{final} was built {reason}; use --overwrite or another --name")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested settings, so that only the one that differs is named."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        prefix = "" if name == "faces" else f"{name}."
        members = value.items() if isinstance(value, dict) else None
        flat |= {name: value} if members is None else {prefix + key: one for key, one in members}
    return flat


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that are not empty, and keeps the line breaks of the list of builders."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def _list_builders() -> str:
    lines = ["\nbuilders, with their configs:"]
    for name in builder_names():
        builder = find_builder(name)
        configs = ", ".join(config.name for config in builder.BUILDER_CONFIGS)
        lines.append(f"  {name:<14} {configs}: {(builder.__doc__ or '').splitlines()[0]}")
    lines.append("\n`fer-jax build NAME --help` adds the options of one builder to those of all.")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Runs the verb `build`."""
    named = next((word for word in argv if not word.startswith("-")), "").partition("/")[0]
    parser = OneLineParser(
        prog="fer-jax build",
        description=(__doc__ or "") + ("" if named else _list_builders()),
        formatter=_Help,
    )
    parser.add_argument("builder", metavar="NAME[/CONFIG]")
    (find_builder(named) if named else RecordBuilder).add_arguments(parser)
    parser.add_argument(
        "--data_dir", type=output_path, default=str(default_data_dir()), help="receives the dataset"
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
