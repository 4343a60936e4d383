"""Lists the records to leave out of training and validation so that nothing leaks."""

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
from fer_jax.storage import write_table


def exclusions(pool: Pool, findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """Returns (dataset, record_id, reason) of the records to leave out so that nothing leaks.

    Of two splits the one closer to the test data keeps its records; of folds, the later one. Of a
    seed with two labels only test records stay.
    """
    excluded: dict[int, str] = {}
    for finding in findings:
        if finding.kind not in LEAKS:
            continue
        splits = [str(pool.split[row]) for row in finding.rows]
        kept = max(rank(split) for split in splits)
        for row, split in zip(finding.rows, splits, strict=True):
            if rank(split) < kept or (finding.kind == "seed_labels" and split != PRIORITY[-1]):
                excluded.setdefault(row, finding.kind)
    datasets, ids = pool.columns["dataset"], pool.columns["record_id"]
    return sorted({(str(datasets[row]), str(ids[row]), reason) for row, reason in excluded.items()})


def exclusions_to_fixed_point(
    pool: Pool, findings: Iterable[Finding]
) -> list[tuple[str, str, str]]:
    """Repeats the audit without the excluded records until it excludes no more.

    The thresholds of the image hashes are medians over all images, so a pair just below the
    required similarity may be found only after other records are left out.
    """
    excluded = added = exclusions(pool, findings)
    while added:
        names = {(dataset.split("/")[0], record_id) for dataset, record_id, _ in added}
        pool = _without(pool, names)
        if not len(pool):
            break
        print(f"repeating the audit without {len(excluded)} records")
        findings = identity_findings(pool) + image_findings(pool)[0]
        added = [row for row in exclusions(pool, findings) if row not in excluded]
        excluded = excluded + added
    return sorted(excluded)


def write_exclusions(
    file: Path, rows: Sequence[tuple[str, str, str]], before: Iterable[tuple[str, str]]
) -> int:
    """Writes the CSV for `config.exclusions`; returns the number of records it lists.

    Records that were excluded `before` the audit (from `read_exclusions`) are listed, too, so that
    the new file can replace the old one.
    """
    columns = ("dataset", "record_id", "reason")
    listed = [*rows, *((*pair, "excluded before") for pair in sorted(before))]
    write_table(file, columns, [dict(zip(columns, row, strict=True)) for row in listed])
    return len(listed)


def _without(pool: Pool, names: set[tuple[str, str]]) -> Pool:
    """Removes (dataset without its config, record_id) pairs, but for test records."""
    datasets = [dataset.split("/")[0] for dataset in pool.columns["dataset"].tolist()]
    ids = pool.columns["record_id"].tolist()
    listed = np.asarray([pair in names for pair in zip(datasets, ids, strict=True)])
    return pool.select(np.flatnonzero((pool.split == PRIORITY[-1]) | ~listed))
