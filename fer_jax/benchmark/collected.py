"""Several benchmarks' results as one JSON and one markdown table: what launch/gpu_check.sh leaves.

python -m fer_jax.benchmark.collected FOLDER NAME
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fer_jax.benchmark.benchmark import MIN_REPEATS, NOISY_SPREAD
from fer_jax.errors import InputError

HEAD = "| | ours | peer | ratio | spread | unit |\n| --- | --- | --- | --- | --- | --- |"


def collect(folder: Path, name: str) -> tuple[Path, Path]:
    """Puts together the benchmark_*.json below a folder, and the lines of its notes.txt.

    Args:
      folder: holds them, in it or in folders of its own; receives NAME.json and NAME.md.
      name: of the two files.

    Returns:
      The paths of the two files.

    Raises:
      InputError: there is no result.
    """
    files = sorted(folder.rglob("benchmark_*.json"))
    if not files:
        raise InputError(f"'{folder}' holds no benchmark_*.json")
    results = [
        {"run": file.parent.relative_to(folder).as_posix()} | json.loads(file.read_text())
        for file in files
    ]
    notes_file = folder / "notes.txt"
    notes = notes_file.read_text().splitlines() if notes_file.is_file() else []
    whole = {"notes": notes, "benchmarks": results}
    of_json, of_markdown = folder / f"{name}.json", folder / f"{name}.md"
    of_json.write_text(json.dumps(whole, indent=2) + "\n")
    of_markdown.write_text(_markdown(results, notes))
    return of_json, of_markdown


def _markdown(results: list[dict[str, Any]], notes: list[str]) -> str:
    first = results[0]
    machine = ", ".join(f"{key} {value}" for key, value in first["hardware"].items())
    packages = ", ".join(f"{key} {value}" for key, value in first["versions"].items())
    lines = [f"{first['date']}; {machine}; {packages}", "", HEAD]
    doubts = []
    for result in results:
        for row in result["rows"]:
            if "skipped" in row:
                doubts.append(f"skipped: {row['what']}: {row['skipped']}")
                continue
            parts = (row["what"], row.get("dtype"), row.get("batch"))
            name = " ".join(str(part) for part in parts if part)
            unit = row["unit"] + (f" ({row['bar']})" if row.get("bar") else "")
            if "ratio" not in row:
                lines.append(f"| {name} | {row['ours']:.4g} | | | | {unit} |")
                continue
            lines.append(
                f"| {name} / {row['peer_name']} | {row['ours']:.4g} | {row['peer']:.4g} | "
                f"{row['ratio']:.3f} | {row['spread']:.0%} | {unit} |"
            )
            if row["repeats"] < MIN_REPEATS:
                doubts.append(f"{name}: only {row['repeats']} repeats")
            if row["spread"] > NOISY_SPREAD:
                doubts.append(f"{name}: the ratios spread over {row['spread']:.0%}")
    return "\n".join([*lines, "", *(f"- {line}" for line in [*notes, *doubts])]).rstrip() + "\n"


def main(argv: list[str]) -> None:
    """Collects and prints where the two files are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args(argv)
    for file in collect(arguments.folder, arguments.name):
        print(file)


if __name__ == "__main__":
    main(sys.argv[1:])
