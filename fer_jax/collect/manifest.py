"""manifest.csv: how each link of a list went, one row a link, for people and for builders."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_jax.collect.links import Link, Refusal, video_key
from fer_jax.errors import InputError

MANIFEST, LEDGER = "manifest.csv", "ledger.csv"
DONE, FAILED, PENDING, UNLISTED = "done", "failed", "pending", "unlisted"
LINK_COLUMNS = ("url", "start_s", "end_s", "category", "reaction_type", "emotion", "subject_id")
STATE_COLUMNS = (
    *("status", "reason", "detail", "file", "bytes", "sha256", "frames", "duration_s", "width"),
    *("height", "site_id", "attempts", "when"),
)

State = dict[str, str]


def file_is_there(output: Path, row: Mapping[str, str]) -> bool:
    """Whether the video that a manifest's row names is the one that was downloaded.

    The name is the one that `collect` gives, not whatever the manifest says.
    """
    named = re.fullmatch(r"videos/([0-9a-f]{16})\.[a-z0-9]{2,4}", row["file"], re.ASCII)
    if not named or named[1] != video_key(row["url"]):
        return False
    file = output / row["file"]
    return file.is_file() and str(file.stat().st_size) == row["bytes"]


def read(output: Path) -> list[State]:
    """The rows of manifest.csv: `LINK_COLUMNS` and `STATE_COLUMNS` as text; none without it.

    Raises:
      InputError: it is not one that `collect` wrote.
    """
    file = output / MANIFEST
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            if tuple(reader.fieldnames or ()) != LINK_COLUMNS + STATE_COLUMNS:
                raise InputError(f"'{file}' has other columns than collect writes; move it away")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{file}' is damaged ({error}); move it away") from error
    whole = all(
        None not in row
        and None not in row.values()
        and row["status"] in (DONE, FAILED, PENDING, UNLISTED)
        and all(re.fullmatch(r"\d{0,15}", row[name], re.ASCII) for name in ("bytes", "attempts"))
        for row in rows
    )
    if not whole:
        raise InputError(f"'{file}' has a damaged row; move it away")
    return rows


def write(
    output: Path, links: list[Link], refused: list[Refusal], states: dict[str, State]
) -> None:
    """Writes manifest.csv (one row a link) and ledger.csv (every row of the list not done).

    Args:
      output: the folder.
      links: accepted rows of the list.
      refused: its other rows.
      states: URL -> `STATE_COLUMNS` and url.
    """
    rows = [
        {name: _text(getattr(link, name)) for name in LINK_COLUMNS} | states[link.url]
        for link in links
    ]
    listed = {link.url for link in links}
    # A video whose link is taken off the list is not forgotten, in case the link comes back.
    rows += [
        dict.fromkeys(LINK_COLUMNS, "") | state | {"status": UNLISTED}
        for url, state in states.items()
        if url not in listed and state["status"] == DONE
    ]
    _write_csv(output / MANIFEST, LINK_COLUMNS + STATE_COLUMNS, rows)
    ledger = [(row.line, row.item, "refused", row.reason) for row in refused]
    for link in links:
        state = states[link.url]
        if state["status"] != DONE:
            reason = ": ".join(filter(None, (state["reason"], state["detail"])))
            ledger.append((link.line, link.url, state["status"], reason))
    names = ("line", "item", "status", "reason")
    _write_csv(
        output / LEDGER, names, [dict(zip(names, row, strict=True)) for row in sorted(ledger)]
    )


def _write_csv(file: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("w", encoding="utf-8", newline="") as out:
        out.write(text.getvalue())
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)


def _text(value: str | float | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.10g}"
