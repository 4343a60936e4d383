"""Finds leakage between training, validation and test data, and writes a page of the findings.

Checks the parts of an experiment (`--config`), or the splits of datasets.
"""

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from fer_jax import figures
from fer_jax.config import OneLineParser, default_data_dir, output_path, parse_with_config
from fer_jax.data.audit.duplicates import MIN_SIMILARITY
from fer_jax.data.audit.exclusions import exclusions_to_fixed_point, write_exclusions
from fer_jax.data.audit.findings import (
    AUDIT_FILE,
    KINDS,
    LEAKS,
    LOOK_ALIKE_SIMILARITY,
    WARNINGS,
    Finding,
    Pool,
    count_kinds,
    describe_parts,
    identity_findings,
    image_findings,
    pool_records,
    rank,
)
from fer_jax.data.experiment import find_leaks, open_experiment
from fer_jax.data.provenance import ROLES
from fer_jax.data.records import (
    Records,
    built_datasets,
    dataset_directory,
    open_records,
    read_exclusions,
    split_names,
)
from fer_jax.data.splits import PROTOCOLS
from fer_jax.errors import InputError
from fer_jax.media.images import data_uri, encode_jpeg, resized
from fer_jax.schema import TASKS, UNKNOWN
from fer_jax.storage import write_atomically

SHOWN = 100  # findings of a kind on the page
LISTED = 3  # findings of a kind in the terminal
THUMBNAIL = 96  # pixels a side


def dataset_splits(names: Iterable[str], data_dir: Path) -> list[tuple[str, Records]]:
    """Opens all splits of datasets as (split, records) pairs.

    "dataset" stands for all its configs, unless they are protocols, which split the same records in
    different ways. Raises InputError if one is not built, is damaged, or built with several
    protocols.
    """
    built = built_datasets(data_dir)
    labels: list[str] = []
    for name in names:
        configs = [label for label in built if label.split("/")[0] == name]
        if not configs or any(label.split("/")[1] in PROTOCOLS for label in configs):
            directory = dataset_directory(name, data_dir)
            configs = ["/".join(directory.relative_to(data_dir).parts[:-1])]
        labels += [label for label in configs if label not in labels]
    return [
        (split, open_records(label, split, data_dir))
        for label in labels
        for split in split_names(label, data_dir)
    ]


def audit(parts: Sequence[tuple[str, Records]]) -> tuple[Pool, list[Finding], dict[str, Any]]:
    """Returns the pooled (split, records) pairs, all leakage between them, and audit.json."""
    pool = pool_records(parts)
    findings = identity_findings(pool)
    near_duplicates, hashes = image_findings(pool)
    findings += near_duplicates
    compared = describe_parts(parts)
    described = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "fingerprint": hashlib.sha256(json.dumps(compared).encode()).hexdigest(),
        "parts": compared,
        "datasets": sorted(set(pool.columns["dataset"].tolist())),
        "records": len(pool),
        "leaks": count_kinds(findings, LEAKS),
        "warnings": count_kinds(findings, WARNINGS),
        "hashes": hashes,
        "splits": {
            split: _describe_split(pool, pool.split == split)
            for split in sorted(set(pool.split.tolist()), key=rank)
        },
        "findings": [
            {
                "kind": finding.kind,
                "key": finding.key,
                "records": len(finding.rows),
                "a": _describe_record(pool, finding.a),
                "b": _describe_record(pool, finding.b),
            }
            for finding in findings
        ],
    }
    return pool, findings, described


def _describe_split(pool: Pool, inside: np.ndarray) -> dict[str, Any]:
    """Counts records and people, and the share of each class and source."""
    columns = {name: values[inside] for name, values in pool.columns.items()}
    described: dict[str, Any] = {
        "records": int(inside.sum()),
        "subjects": len(set(columns["subject_id"].tolist()) - {""}),
        "sources": _shares(columns["source"]),
        "content": _shares(columns["content"]),
    }
    for task, classes in TASKS.items():
        labels = columns[task][columns[task] != UNKNOWN]
        described[task] = _shares(np.asarray(classes)[labels]) if len(labels) else {}
    return described


def _shares(values: np.ndarray) -> dict[str, float]:
    names, counts = np.unique(values, return_counts=True)
    shares = counts / max(1, len(values))
    return {str(name): round(float(x), 4) for name, x in zip(names, shares, strict=True) if name}


def _describe_record(pool: Pool, row: int) -> dict[str, Any]:
    names = ("dataset", "record_id", "subject_id")
    described: dict[str, Any] = {name: str(pool.columns[name][row]) for name in names}
    described["split"] = str(pool.split[row])
    for task, classes in TASKS.items():
        index = int(pool.columns[task][row])
        described[task] = None if index == UNKNOWN else classes[index]
    return described


def page(pool: Pool, findings: Sequence[Finding], described: Mapping[str, Any]) -> str:
    """Returns the findings with their images as one self-contained HTML page."""
    groups = []
    for kind, meaning in KINDS.items():
        own = [finding for finding in findings if finding.kind == kind]
        shown = [
            {
                "key": finding.key,
                "records": len(finding.rows),
                "pair": [
                    _describe_record(pool, row)
                    | {"image": data_uri(encode_jpeg(resized(pool.image(row), THUMBNAIL)))}
                    for row in (finding.a, finding.b)
                ],
            }
            for finding in own[:SHOWN]
        ]
        if own:
            groups.append(
                {"meaning": meaning, "leak": kind in LEAKS, "count": len(own), "shown": shown}
            )
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (Path(__file__).parent / "audit.html").read_text(encoding="utf-8")
    )
    return template.render(
        groups=groups,
        described=described,
        style=figures.css(),
        similarities=_similarities_figure(described["hashes"]["similarities"]),
        look_alike_similarity=LOOK_ALIKE_SIMILARITY,
    )


def _similarities_figure(similarities: Mapping[str, Sequence[int]]) -> Markup | None:
    """Draws how similar the confirmed and the rejected pairs are; None without pairs."""
    lines = []
    for (name, counts), colour in zip(similarities.items(), ("within", "soft"), strict=True):
        if total := sum(counts):
            middles = (np.arange(len(counts)) + 0.5) / len(counts)
            shares = 100 * np.asarray(counts) / total
            lines.append(figures.Line(f"{name}, {total} pairs", middles, shares, colour))
    if not lines:
        return None
    drawn = figures.chart(
        lines,
        "similarity of candidate pairs",
        "similarity",
        "% of the pairs, in steps of 0.01",
        y_end=None,
        vertical=(f"required: {MIN_SIMILARITY}", MIN_SIMILARITY),
    )
    return figures.svg(drawn)


def summary(described: Mapping[str, Any]) -> str:
    """Returns the content of audit.json as text for a terminal."""
    lines = [f"{described['records']} records of {', '.join(described['datasets'])}"]
    for name, split in described["splits"].items():
        lines.append(f"  {name}: {split['records']} records, {split['subjects'] or 'no'} subjects")
        for column in ("sources", "content", *TASKS):
            if split[column]:
                shares = ", ".join(f"{value} {share:.1%}" for value, share in split[column].items())
                lines.append(f"    {column}: {shares}")
    hashes = described["hashes"]
    if hashes["candidates"]:
        lines.append(
            f"  {hashes['confirmed']} of {hashes['candidates']} pairs with similar hashes are "
            f"near-duplicates (precision {hashes['precision']:.3f})"
        )
    if hashes["look_alikes"]:
        lines.append(
            f"  different people of {', '.join(hashes['look_alikes'])} look so alike that a "
            f"similarity of {LOOK_ALIKE_SIMILARITY} was required, not {MIN_SIMILARITY}"
        )
    if hashes["blank"]:
        lines.append(f"  {hashes['blank']} blank images were not compared")
    for name, kinds in (("leaks", LEAKS), ("warnings", WARNINGS)):
        counts = described[name]
        lines.append(f"{name}: {sum(counts.values()) or 'none'}")
        for kind, count in counts.items():
            lines.append(f"  {count} x {kinds[kind]}")
            own = [finding for finding in described["findings"] if finding["kind"] == kind]
            for finding in own[:LISTED]:
                a, b = finding["a"], finding["b"]
                lines.append(
                    f"    {finding['key']}: {a['record_id']} ({a['split']}), "
                    f"{b['record_id']} ({b['split']})"
                )
            if own and count > LISTED:
                lines.append(f"    and {count - LISTED} more")
    lines += [f"  {sentence}" for sentence in described.get("seen", ())]
    lines += [f"unknown people are behind: {what}" for what in described.get("unknown_people", ())]
    return "\n".join(lines)


def _parser() -> OneLineParser:
    parser = OneLineParser("fer-jax audit", __doc__, show_defaults=True)
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="or --config=FILE.py")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    parser.add_argument(
        "--workdir", type=output_path, required=True, help="receives audit.json and audit.html"
    )
    parser.add_argument(
        "--write_exclusions",
        "--write-exclusions",
        type=output_path,
        metavar="FILE",
        help="list the records to leave out, for config.exclusions",
    )
    return parser


def main(argv: list[str]) -> int:
    """Runs the verb `audit`; exit code 1 if there is leakage."""
    parser = _parser()
    excluded: set[tuple[str, str]] = set()
    experiment = None
    if any(word.startswith("--config") or word in ("-h", "--help") for word in argv):
        arguments, config = parse_with_config(parser, argv)
        if arguments.datasets:
            raise InputError("name datasets or a --config, not both")
        experiment = open_experiment(config, arguments.data_dir)
        parts, excluded = experiment.parts, read_exclusions(config.exclusions)
        if experiment.absent:
            print(f"not audited, because they are not built: {', '.join(experiment.absent)}")
    else:
        arguments = parser.parse_args(argv)
        if not arguments.datasets:
            raise InputError("name datasets, or an experiment with --config=FILE.py")
        parts = dataset_splits(arguments.datasets, arguments.data_dir)
    workdir, file = arguments.workdir, arguments.write_exclusions
    # Before the audit, so that a folder that cannot be written costs no time.
    for folder in (workdir, file.parent if file else workdir):
        folder.mkdir(parents=True, exist_ok=True)
    pool, findings, described = audit(parts)
    if experiment is not None:
        leaks = find_leaks(experiment, arguments.data_dir)
        described["leaks"] |= {role: leaks.counts[role] for role in ROLES if role in leaks.counts}
        described |= {"seen": leaks.seen, "unknown_people": leaks.unknown}
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    write_atomically(workdir / AUDIT_FILE, text)
    write_atomically(workdir / "audit.html", page(pool, findings, described))
    print(summary(described))
    print(f"  -> {workdir / 'audit.html'}")
    if file:
        count = write_exclusions(file, exclusions_to_fixed_point(pool, findings), excluded)
        print(f"{count} records to leave out -> {file}")
    return int(bool(described["leaks"]))
