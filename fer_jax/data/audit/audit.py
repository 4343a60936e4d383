"""Finds leakage between the training, validation and test data, and writes a page of it.

The parts are those of an experiment (`--config`), or the splits of datasets.
"""

import argparse
import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from fer_jax import figures
from fer_jax.config import OneLineParser, default_data_dir, parse_with_config
from fer_jax.data.audit.exclusions import exclusions_to_fixed_point, write_exclusions
from fer_jax.data.audit.findings import (
    KINDS,
    LEAKS,
    WARNINGS,
    Finding,
    Pool,
    count_kinds,
    identity_findings,
    image_findings,
    pool,
    rank,
)
from fer_jax.data.experiment import open_experiment
from fer_jax.data.records import (
    Records,
    built_datasets,
    dataset_directory,
    open_records,
    read_exclusions,
)
from fer_jax.data.splits import PROTOCOLS
from fer_jax.errors import InputError
from fer_jax.schema import TASKS, UNKNOWN

SHOWN = 100  # findings of a kind on the page
THUMBNAIL = 96


def dataset_sides(names: Iterable[str], data_dir: Path) -> list[tuple[str, Records]]:
    """Datasets by themselves: every split is a side; splits of one name are one side.

    Args:
      names: a name without a config stands for all its configs, unless these are protocols,
        which split the same records in different ways.
      data_dir: where they were built.

    Raises:
      InputError: a dataset that is not built, or one that is built by several protocols.
    """
    built = built_datasets(data_dir)
    labels: list[str] = []
    for name in names:
        configs = [label for label in built if label.split("/")[0] == name]
        if not configs or any(label.split("/")[1] in PROTOCOLS for label in configs):
            directory = dataset_directory(name, data_dir)
            configs = ["/".join(directory.relative_to(data_dir).parts[:-1])]
        labels += [label for label in configs if label not in labels]
    parts = []
    for label in labels:
        info = json.loads((built[label] / "dataset_info.json").read_text())
        for split in sorted(part["name"] for part in info["splits"]):
            parts.append((split, open_records(label, split, data_dir)))
    return parts


def prevalence(everything: Pool) -> dict[str, Any]:
    """Per side: how many records, people, and what share each class and source has."""
    found = {}
    for side in sorted(set(everything.side.tolist()), key=rank):
        here = everything.side == side
        described: dict[str, Any] = {
            "records": int(here.sum()),
            "subjects": len(set(everything.columns["subject_id"][here].tolist()) - {""}),
            "sources": _shares(everything.columns["source"][here]),
            "content": _shares(everything.columns["content"][here]),
        }
        for task, classes in TASKS.items():
            labels = everything.columns[task][here]
            labels = labels[labels != UNKNOWN]
            described[task] = _shares(np.asarray(classes)[labels]) if len(labels) else {}
        found[side] = described
    return found


def _shares(values: np.ndarray) -> dict[str, float]:
    names, counts = np.unique(values, return_counts=True)
    shares = counts / max(1, len(values))
    return {str(name): round(float(x), 4) for name, x in zip(names, shares, strict=True) if name}


def audit(parts: Sequence[tuple[str, Records]]) -> tuple[Pool, list[Finding], dict[str, Any]]:
    """Everything: identities and pictures.

    Args:
      parts: (side, records) pairs.

    Returns:
      (the pool, its findings, what audit.json says).
    """
    everything = pool(parts)
    findings = identity_findings(everything)
    pictures, near = image_findings(everything)
    findings += pictures
    described = {
        "datasets": sorted(set(everything.columns["dataset"].tolist())),
        "records": len(everything),
        "leaks": count_kinds(findings, LEAKS),
        "warnings": count_kinds(findings, WARNINGS),
        "hashes": near,
        "sides": prevalence(everything),
        "findings": [
            {
                "kind": finding.kind,
                "key": finding.key,
                "records": len(finding.rows),
                "a": _place(everything, finding.a),
                "b": _place(everything, finding.b),
            }
            for finding in findings
        ],
    }
    return everything, findings, described


def _place(everything: Pool, row: int) -> dict[str, Any]:
    words = {
        name: str(everything.columns[name][row]) for name in ("dataset", "record_id", "subject_id")
    }
    labels = {
        task: classes[index] if (index := int(everything.columns[task][row])) >= 0 else None
        for task, classes in TASKS.items()
    }
    return words | {"side": str(everything.side[row])} | labels


def page(everything: Pool, findings: Sequence[Finding], described: Mapping[str, Any]) -> str:
    """The findings with their pictures, as one self-contained HTML page."""

    def picture(row: int) -> str:
        face = everything.records[int(everything.part[row])].image(int(everything.row[row]))
        small = cv2.resize(face, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()
        return "data:image/jpeg;base64," + base64.b64encode(data).decode()

    groups = []
    for kind, meaning in KINDS.items():
        own = [finding for finding in findings if finding.kind == kind]
        shown = [
            {
                "key": finding.key,
                "records": len(finding.rows),
                "places": [
                    _place(everything, row) | {"picture": picture(row)}
                    for row in (finding.a, finding.b)
                ],
            }
            for finding in own[:SHOWN]
        ]
        if own:
            leak = kind in LEAKS
            groups.append(
                {"kind": kind, "meaning": meaning, "leak": leak, "count": len(own), "shown": shown}
            )
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (Path(__file__).parent / "audit.html").read_text()
    )
    return template.render(groups=groups, described=described, style=figures.css())


def summary(described: Mapping[str, Any]) -> str:
    """The audit for a terminal."""
    lines = [f"{described['records']} records of {', '.join(described['datasets'])}"]
    for side, here in described["sides"].items():
        lines.append(f"  {side}: {here['records']} records, {here['subjects'] or 'no'} subjects")
        for name in ("sources", "content", *TASKS):
            if here[name]:
                shares = ", ".join(f"{word} {share:.1%}" for word, share in here[name].items())
                lines.append(f"    {name}: {shares}")
    near = described["hashes"]
    if near["candidates"]:
        lines.append(
            f"  of {near['candidates']} pairs with like hashes {near['confirmed']} are the same "
            f"picture (precision {near['precision']:.3f})"
        )
    if near["blank"]:
        lines.append(f"  {near['blank']} pictures show nothing and were not compared")
    for name, kinds in (("leaks", LEAKS), ("warnings", WARNINGS)):
        counts = described[name]
        lines.append(f"{name}: {sum(counts.values()) or 'none'}")
        for kind, count in counts.items():
            lines.append(f"  {count} x {kinds[kind]}")
            first = [finding for finding in described["findings"] if finding["kind"] == kind][:3]
            for finding in first:
                a, b = finding["a"], finding["b"]
                lines.append(
                    f"    {finding['key']}: {a['record_id']} ({a['side']}), "
                    f"{b['record_id']} ({b['side']})"
                )
            if count > len(first):
                lines.append(f"    and {count - len(first)} more")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The verb `audit`; exit code 1 if something leaks."""
    parser = OneLineParser(
        prog="fer-jax audit",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="or --config=FILE.py")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    parser.add_argument(
        "--workdir", type=Path, required=True, help="gets audit.json and audit.html"
    )
    parser.add_argument(
        "--write_exclusions",
        "--write-exclusions",
        type=Path,
        metavar="FILE",
        help="list the records to leave out, for config.exclusions",
    )
    if any(word.startswith("--config") for word in argv) or "--help" in argv:
        arguments, config = parse_with_config(parser, argv)
        if arguments.datasets:
            raise InputError("name datasets or a --config, not both")
        experiment = open_experiment(config, arguments.data_dir)
        parts, before = experiment.sides, read_exclusions(config.exclusions)
        if experiment.absent:
            print(f"not built here, and so not looked at: {', '.join(experiment.absent)}")
    else:
        arguments = parser.parse_args(argv)
        if not arguments.datasets:
            raise InputError("name datasets, or an experiment with --config=FILE.py")
        parts, before = dataset_sides(arguments.datasets, arguments.data_dir), set()
    listed = arguments.write_exclusions
    if listed is not None:
        listed.parent.mkdir(parents=True, exist_ok=True)
    everything, findings, described = audit(parts)
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    (arguments.workdir / "audit.json").write_text(
        json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    )
    (arguments.workdir / "audit.html").write_text(page(everything, findings, described))
    print(summary(described))
    print(f"  -> {arguments.workdir / 'audit.html'}")
    if listed is not None:
        count = write_exclusions(listed, exclusions_to_fixed_point(everything, findings), before)
        print(f"{count} records to leave out -> {listed}")
    return int(bool(described["leaks"]))
