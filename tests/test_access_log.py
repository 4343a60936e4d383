"""The log of test accesses notices what was done to it."""

import json
import random
from pathlib import Path

import pytest

from fer_jax import access_log
from fer_jax.errors import InputError


def _log(folder: Path) -> tuple[list[str], str]:
    newest = ""
    for step in range(6):
        row = {"dataset": "web", "split": "test", "checkpoint": step, "time": f"day {step}"}
        newest = access_log.append(folder, row)
    return (folder / access_log.FILE).read_text().splitlines(), newest


def test_an_untouched_log_is_read(tmp_path: Path):
    lines, newest = _log(tmp_path)
    rows, hashes = access_log.read(tmp_path, newest)
    assert [row["checkpoint"] for row in rows] == list(range(6)) == list(range(len(lines)))
    assert hashes[-1] == newest
    assert access_log.read(tmp_path, hashes[2])[1] == hashes, "a result of an earlier evaluation"


@pytest.mark.parametrize("kind", ["deletion", "edit", "order", "tail"])
def test_changes_are_noticed(tmp_path: Path, kind: str):
    lines, newest = _log(tmp_path)
    for seed in range(50):
        draw, changed = random.Random(seed), list(lines)
        at = draw.randrange(len(lines))
        if kind == "deletion":
            del changed[at]
        elif kind == "edit":
            row = json.loads(changed[at])
            field = draw.choice(sorted(row))
            changed[at] = json.dumps(row | {field: 99 if field == "checkpoint" else "other"})
        elif kind == "order":
            other = (at + draw.randrange(1, len(lines))) % len(lines)
            changed[at], changed[other] = changed[other], changed[at]
        else:
            del changed[at:]
        (tmp_path / access_log.FILE).write_text("".join(f"{line}\n" for line in changed))
        with pytest.raises(InputError):
            access_log.read(tmp_path, newest)


def test_rows_of_an_earlier_version_come_first(tmp_path: Path):
    old = json.dumps({"dataset": "web", "split": "test", "checkpoint": 1}) + "\n"
    (tmp_path / access_log.FILE).write_text(old)
    access_log.append(tmp_path, {"dataset": "web", "split": "test", "checkpoint": 2})
    assert len(access_log.read(tmp_path)[0]) == 2
    with (tmp_path / access_log.FILE).open("a") as file:
        file.write(old)
    with pytest.raises(InputError, match="line 3"):
        access_log.read(tmp_path)
