"""The records to leave out of training and validation so that nothing leaks."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fer_jax.data.audit.findings import (
    LEAKS,
    PRIORITY,
    Finding,
    Pool,
    identity_findings,
    image_findings,
    rank,
)


def exclusions(everything: Pool, findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """The records to leave out so that nothing leaks: (dataset, record_id, reason).

    Of two sides the one nearer to the test gives nothing up; of folds, the later one. A seed
    under two labels goes as a whole, but for what is in a test.
    """
    left_out: dict[int, str] = {}
    for finding in findings:
        if finding.kind not in LEAKS:
            continue
        sides = [str(everything.side[row]) for row in finding.rows]
        stays = max(rank(side) for side in sides)
        for row, side in zip(finding.rows, sides, strict=True):
            if rank(side) < stays or (finding.kind == "seed_labels" and side != PRIORITY[-1]):
                left_out.setdefault(row, finding.kind)
    datasets, ids = everything.columns["dataset"], everything.columns["record_id"]
    return sorted({(str(datasets[row]), str(ids[row]), reason) for row, reason in left_out.items()})


def exclusions_to_fixed_point(
    everything: Pool, findings: Iterable[Finding]
) -> list[tuple[str, str, str]]:
    """`exclusions`, and those of the audit of what then remains, until nothing is added.

    What is usual among the pictures, by which their hashes are made, changes with every record
    that is left out: a pair at the very edge of likeness may be found only then.
    """
    left_out = exclusions(everything, findings)
    added = left_out
    while added:
        names = {(dataset.split("/")[0], record_id) for dataset, record_id, _ in added}
        everything = _without(everything, names)
        if not len(everything):
            break
        print(f"looking again without {len(left_out)} records")
        findings = identity_findings(everything) + image_findings(everything)[0]
        added = [row for row in exclusions(everything, findings) if row not in left_out]
        left_out = left_out + added
    return sorted(left_out)


def write_exclusions(
    file: Path, rows: Sequence[tuple[str, str, str]], before: Iterable[tuple[str, str]]
) -> int:
    """Writes what `config.exclusions` reads.

    Args:
      file: the CSV.
      rows: from `exclusions`.
      before: what was left out already, from `read_exclusions`.

    Returns:
      How many records it lists.
    """
    # A list that replaces another goes on leaving out what that one did.
    listed = [*rows, *((*pair, "excluded before") for pair in sorted(before))]
    with file.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([("dataset", "record_id", "reason"), *listed])
    return len(listed)


def _without(everything: Pool, names: set[tuple[str, str]]) -> Pool:
    """What remains when records are left out: (dataset without its config, record_id) pairs."""
    columns = everything.columns
    datasets = [dataset.split("/")[0] for dataset in columns["dataset"].tolist()]
    listed = [pair in names for pair in zip(datasets, columns["record_id"].tolist(), strict=True)]
    kept = np.flatnonzero((everything.side == PRIORITY[-1]) | ~np.asarray(listed))
    return Pool(
        records=everything.records,
        part=everything.part[kept],
        row=everything.row[kept],
        side=everything.side[kept],
        columns={name: values[kept] for name, values in columns.items()},
    )
