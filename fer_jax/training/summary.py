"""What a run is told to be, in the lines printed before its first step."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from fer_jax.config import Config
from fer_jax.data.audit.findings import leaks_in_words
from fer_jax.data.batches import Mixture
from fer_jax.data.experiment import Experiment
from fer_jax.data.records import Records
from fer_jax.training.validation import Part

# The network's parts in the order of the way through it; what is none of them is the head.
BLOCKS = ("stem", "entry", "middle", "exit")


@dataclasses.dataclass(frozen=True)
class BlockRow:
    """One line of the table of parameters."""

    block: str
    layers: int
    arrays: int
    parameters: int
    share: str


def parameters(params: dict[str, Any]) -> str:
    """The parameters of each block of the network as a table, with their total.

    Args:
      params: nested dicts of arrays; the top level's names begin with a block's.
    """
    total = parameter_overview.count_parameters(params)
    layers: dict[str, dict[str, Any]] = {block: {} for block in (*BLOCKS, "head")}
    for name, layer in params.items():
        block = re.sub(r"\d+$", "", name)
        layers[block if block in BLOCKS else "head"][name] = layer
    rows = []
    for block, inside in layers.items():
        count = int(parameter_overview.count_parameters(inside))
        arrays = len(jax.tree.leaves(inside))
        if arrays:
            rows.append(BlockRow(block, len(inside), arrays, count, f"{count / total:.1%}"))
    size = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(params))
    table = parameter_overview.make_table(rows)
    return f"{table}\n{total:,} parameters, {size / 2**20:.1f} MiB"


def data(
    config: Config,
    mixture: Mixture,
    parts: Sequence[Part],
    num_devices: int,
    num_steps: int,
) -> str:
    """How many images of which datasets are trained and validated on, in how many steps."""
    lines = [
        _counted(records, int(np.sum(mixture.source == index)), "to train on")
        for index, records in enumerate(mixture.records)
    ]
    lines += [_counted(part.records, len(part.rows), "to validate") for part in parts]
    device = jax.devices()[0].device_kind
    first = (
        f"{config.task}: {len(mixture)} images; {num_steps} steps of {config.batch_size} on "
        f"{num_devices} {device} device(s)"
    )
    return "\n".join([first, *lines])


def audited(experiment: Experiment, leaks: dict[str, int]) -> str:
    """What was left out, not looked at, or leaks although it was seen; usually nothing."""
    lines = [
        f"  {name}: {count} records left out by config.exclusions"
        for name, count in experiment.left_out.items()
    ]
    for records in (*experiment.train, *experiment.validation):
        if records.skipped:
            lines.append(
                f"  {records.name} {records.split}: {len(records.skipped)} damaged records "
                f"skipped (environment.json lists them), such as {records.skipped[0]}"
            )
    if experiment.absent:
        lines.append(f"  not built here, and not audited: {', '.join(experiment.absent)}")
    if leaks:
        lines.append(f"  LEAKS, as config.allow_leaks allows: {leaks_in_words(leaks)}")
    return "".join(line + "\n" for line in lines)


def _counted(records: Records, labelled: int, purpose: str) -> str:
    left_out = len(records) - labelled
    unlabelled = f" ({left_out} without a label left out)" if left_out else ""
    return f"  {records.name} {records.split}: {labelled} images {purpose}{unlabelled}"
