"""What a builder intends to write, and what became of it: the words of `build` and its builders."""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fer_jax.errors import InputError
from fer_jax.media.clips import Extraction, Found


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a builder intends to write.

    Attributes:
      name: of the dataset.
      config: how it is split; the dataset is "name/config".
      rows: every picture or clip that is read: the fields of `schema.record` that its faces
        share, plus "split" and whatever `read` needs under keys that begin with "_".
      refused: inputs that are not read: (item, reason).
      options: what the dataset was made from; a rebuild from others is another dataset.
      read: a row to its faces. Raising InputError refuses the row. None where the rows are clips.
      extraction: how faces are taken out of clips; each row's "_job" then says which clip.
    """

    name: str
    config: str
    rows: list[dict[str, Any]]
    refused: list[tuple[str, str]]
    options: dict[str, Any]
    read: Callable[[dict[str, Any]], list[Found]] | None = None
    extraction: Extraction | None = None


class Outcome(NamedTuple):
    """What became of one row; all counts are sums over these.

    Attributes:
      row: its record_id.
      split: its split.
      num_inputs: pictures or wanted frames.
      records: of each record "record_id", "digest" and what the tables count.
      ledger: (item, reason) of the inputs that became no record.
    """

    row: str
    split: str
    num_inputs: int
    records: list[dict[str, Any]]
    ledger: list[tuple[str, str]]


def check_name(name: str) -> None:
    """Refuses a --name that could not name a dataset, or a folder of the data folder.

    Raises:
      InputError: it is no word of lower case letters, digits and _.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"--name '{name}' must be lower case letters, digits and _")


def files_in(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The files with one of these endings anywhere in a folder.

    Args:
      folder: where.
      suffixes: in lower case.

    Returns:
      (their paths inside the folder, sorted; those that are not read: (item, reason)). Links
      are followed within the folder, to files.
    """
    files, refused = [], []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        linked = path.is_symlink()
        linked_folder = linked and path.is_dir()
        if not linked_folder and path.suffix.lower() not in suffixes:
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            item = os.fsencode(name).decode(errors="backslashreplace")
            refused.append((item, "its name is not UTF-8"))
            continue
        if linked_folder:
            refused.append((name, "a link to a folder"))
        elif linked and not path.exists():
            refused.append((name, "a link to nothing"))
        elif linked and not path.resolve().is_relative_to(folder.resolve()):
            refused.append((name, "a link out of the folder"))
        elif path.is_file():
            files.append(name)
    return sorted(files), sorted(refused)


def splits(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, by its name."""
    by_split: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in plan.rows:
        by_split[row["split"]].append(row)
    return dict(sorted(by_split.items()))


def listing(counts: Any) -> str:
    """Counts by name, as "a 1, b 2"."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def reasons(refused: list[tuple[str, str]], *, one_line: bool = False) -> str:
    """How often what was refused for which reason."""
    counts = collections.Counter(reason for _, reason in refused)
    if one_line:
        return f" ({listing(counts)})" if counts else ""
    lines = [f"    {count} x {reason}" for reason, count in counts.most_common()]
    return "\n".join([f"  skipped: {len(refused)}", *lines])
