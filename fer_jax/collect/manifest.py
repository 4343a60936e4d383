"""manifest.csv: the state of every link of a list, for people and for builders.

While links are downloaded rows are appended; at the end it has one row per link again.
"""

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_jax import storage
from fer_jax.collect.links import COLUMNS as LINK_COLUMNS
from fer_jax.collect.links import Link, RefusedRow, video_key
from fer_jax.errors import InputError

MANIFEST, LEDGER = "manifest.csv", "ledger.csv"
DONE, FAILED, PENDING, UNLISTED = "done", "failed", "pending", "unlisted"
STATE_COLUMNS = (
    *("status", "reason", "detail", "file", "bytes", "sha256", "frames", "duration_s", "width"),
    *("height", "site_id", "attempts", "when"),
)
COLUMNS = LINK_COLUMNS + STATE_COLUMNS

State = dict[str, str]  # a row of the manifest


def new_state(url: str, status: str, **known: str) -> State:
    """Returns the state of a URL now; columns that are not given are empty."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return dict.fromkeys(STATE_COLUMNS, "") | {"url": url, "status": status, "when": now} | known


def file_is_there(output: Path, row: Mapping[str, str]) -> bool:
    """Returns whether the video of a row is in `output` with the recorded size.

    Only a name that `collect` would give is accepted, whatever the manifest says.
    """
    named = re.fullmatch(r"videos/([0-9a-f]{16})\.[a-z0-9]{2,4}", row["file"], re.ASCII)
    if not named or named[1] != video_key(row["url"]):
        return False
    file = output / row["file"]
    return file.is_file() and str(file.stat().st_size) == row["bytes"]


def read(output: Path) -> list[State]:
    """Returns the rows of manifest.csv, the latest of each part of a video; [] if there is none.

    InputError if it is not one that `collect` wrote.
    """
    file = output / MANIFEST
    if not file.is_file():
        return []
    header = ",".join(COLUMNS).encode()
    with file.open("rb") as stream:
        if stream.readline().rstrip() != header:
            raise InputError(f"'{file}' has other columns than collect writes; move it away")
    try:
        rows = storage.read_table(file)
    except InputError as error:
        raise InputError(f"{error}; move it away") from error
    for number, row in enumerate(rows, 2):
        known = row["status"] in (DONE, FAILED, PENDING, UNLISTED)
        counts = (row["bytes"], row["attempts"])
        if not known or not all(re.fullmatch(r"\d{0,15}", n, re.ASCII) for n in counts):
            raise InputError(f"'{file}', row {number}, is damaged; move it away")
    return list({(row["url"], row["start_s"], row["end_s"]): row for row in rows}.values())


def append(output: Path, links: list[Link], state: State) -> None:
    """Appends the rows of a video's links, which count instead of its rows before."""
    storage.append_table(output / MANIFEST, COLUMNS, [_row(link, state) for link in links])


def _row(link: Link, state: State) -> State:
    return {name: _text(getattr(link, name)) for name in LINK_COLUMNS} | state


def write(
    output: Path, links: list[Link], refused: list[RefusedRow], states: Mapping[str, State]
) -> None:
    """Writes manifest.csv (a row per link) and ledger.csv (all rows of the list not done).

    `states` has the state of every URL.
    """
    rows = [_row(link, states[link.url]) for link in links]
    listed = {link.url for link in links}
    # Videos whose links were taken off the list are remembered, in case a link comes back.
    rows += [
        dict.fromkeys(LINK_COLUMNS, "") | state | {"status": UNLISTED}
        for url, state in states.items()
        if url not in listed and state["status"] == DONE
    ]
    storage.write_table(output / MANIFEST, COLUMNS, rows)
    ledger: list[dict[str, Any]] = [
        {"line": row.line, "item": row.item, "status": "refused", "reason": row.reason}
        for row in refused
    ]
    for link in links:
        state = states[link.url]
        reason = ": ".join(filter(None, (state["reason"], state["detail"])))
        row = {"line": link.line, "item": link.url, "status": state["status"], "reason": reason}
        ledger += [row] if state["status"] != DONE else []
    ledger.sort(key=lambda row: row["line"])
    storage.write_table(output / LEDGER, ("line", "item", "status", "reason"), ledger)


def _text(value: str | float | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.10g}"
