"""The list of links: which videos to collect, which part of each, and with which labels."""

import csv
import dataclasses
import difflib
import hashlib
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from fer_jax.errors import InputError, did_you_mean
from fer_jax.schema import EMOTIONS, INTERESTS, canonical_url, emotion_index, interest_index

LABELS = ("reaction_type", "emotion")
COLUMNS = ("url", "start_s", "end_s", "category", *LABELS, "subject_id")
MAX_LIST_BYTES = 64 * 2**20
MAX_URL_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class Link:
    """One accepted row of a list."""

    line: int  # in the file; the header is line 1
    url: str  # as `schema.canonical_url` returns it
    start_s: float | None = None  # of the labelled part of the video; None: its start
    end_s: float | None = None  # likewise
    category: str = ""  # the content group, such as car_tech
    reaction_type: str = ""  # one of `schema.INTERESTS`, or empty
    emotion: str = ""  # one of `schema.EMOTIONS`, or empty
    subject_id: str = ""

    @property
    def part(self) -> tuple[str, float | None, float | None]:
        """What two rows must not share."""
        return self.url, self.start_s, self.end_s


class RefusedRow(NamedTuple):
    """A row that is not used: its line, its URL as written, and the reason."""

    line: int
    item: str
    reason: str


def video_key(url: str) -> str:
    """Returns the file name of a URL's video: the first 16 hex digits of the URL's SHA-256.

    The ids and file names of sites are not used: those of different URLs collide, and a site could
    choose one that leads out of a folder or reads as an option.
    """
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def read_links(path: Path) -> tuple[list[Link], list[RefusedRow], list[str]]:
    """Reads a list of links: a CSV in UTF-8, separated by commas or semicolons.

    It has the column url, at least one of reaction_type and emotion, and any other of `COLUMNS`. A
    URL may have several windows, each in a row of its own. Returns (links in the order of the file,
    refused rows, columns that are not used); links and refused rows together are all rows that are
    not blank. InputError: no such file, not a CSV, or a header without the required columns.
    """
    if not path.is_file():
        raise InputError(f"the link list '{path}' does not exist")
    if path.stat().st_size > MAX_LIST_BYTES:
        raise InputError(f"the link list '{path}' is over {MAX_LIST_BYTES // 2**20} MiB")
    links: list[Link] = []
    refused: list[RefusedRow] = []
    seen: dict[tuple[str, float | None, float | None], Link] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Spreadsheets separate by semicolons where a comma is the decimal mark.
            first = file.readline()
            file.seek(0)
            delimiter = ";" if first.count(";") > first.count(",") else ","
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            header = [name.strip().lower() for name in next(reader, [])]
            unused = _check_header(path, header)
            for cells in reader:
                cells = [cell.strip() for cell in cells]
                if not any(cells):
                    continue
                row = dict(zip(header, cells, strict=False))
                line, item = reader.line_num, row["url"]
                try:
                    if len(cells) != len(header):
                        raise InputError(f"{len(cells)} cells, but the header has {len(header)}")
                    link = _link(line, row)
                    if earlier := seen.get(link.part):
                        same = dataclasses.replace(link, line=earlier.line) == earlier
                        raise InputError("duplicate" if same else "duplicate with other labels")
                except InputError as error:
                    refused.append(RefusedRow(line, item, str(error)))
                    continue
                seen[link.part] = link
                links.append(link)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the link list '{path}' is not a CSV in UTF-8: {error}") from error
    if not links and not refused:
        raise InputError(f"the link list '{path}' has no rows")
    return links, refused, unused


def check_url(text: str) -> str:
    """Returns a URL as it is, if a downloader may have it: plain http or https; else InputError."""
    if not text:
        raise InputError("no URL")
    if len(text) > MAX_URL_LENGTH:
        raise InputError(f"URL of more than {MAX_URL_LENGTH} characters")
    if not re.match(r"https?://", text, re.IGNORECASE):
        raise InputError("not an http:// or https:// URL")
    # urlsplit removes some of these characters; another parser might not.
    if re.search(r"[\s\\\x00-\x1f\x7f]", text):
        raise InputError("a space, backslash or control character in the URL")
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        named = False
    # yt-dlp passes options of its own behind this marker.
    if not named or "__youtubedl_smuggle" in text:
        raise InputError("malformed URL")
    if parts.username is not None:
        raise InputError("a user name in the URL")
    return text


def _check_header(path: Path, header: list[str]) -> list[str]:
    """Returns the columns that are not used; refuses missing, misspelled and repeated ones."""
    if "url" not in header or not set(LABELS) & set(header):
        raise InputError(
            f"'{path}' needs the columns url and {' or '.join(LABELS)}, separated by commas or "
            f"semicolons; it has {', '.join(name[:40] for name in header) or 'no header'}"
        )
    if len(set(header)) != len(header):
        raise InputError(f"'{path}' has a column twice: {', '.join(header)}")
    unused = [name for name in header if name not in COLUMNS]
    for name in unused:
        if difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.75):
            raise InputError(f"'{path}' has a column '{name}'{did_you_mean(name, COLUMNS)}")
    return unused


def _link(line: int, row: dict[str, str]) -> Link:
    url = canonical_url(check_url(row["url"]))
    reaction_type, emotion = (row.get(name, "") for name in LABELS)
    if not reaction_type and not emotion:
        raise InputError("no label")
    start_s, end_s = _seconds(row, "start_s"), _seconds(row, "end_s")
    if end_s is not None and end_s <= (start_s or 0):
        raise InputError("end_s is not after start_s")
    return Link(
        line=line,
        url=url,
        start_s=start_s,
        end_s=end_s,
        category=row.get("category", ""),
        reaction_type=INTERESTS[interest_index(reaction_type)] if reaction_type else "",
        emotion=EMOTIONS[emotion_index(emotion)] if emotion else "",
        subject_id=row.get("subject_id", ""),
    )


def _seconds(row: dict[str, str], name: str) -> float | None:
    text = row.get(name, "")
    if not text:
        return None
    # 12.5, 12,5, 0:12.5 or 1:02:03
    time = re.fullmatch(r"(?:(?:(\d+):)?(\d{1,3}):(?=\d\d))?(\d{1,9}(?:[.,]\d*)?)", text, re.ASCII)
    if not time:
        raise InputError(f"{name} is not a number of seconds or a time such as 1:02.5: '{text}'")
    hours, minutes, rest = time.groups(default="0")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest.replace(",", "."))
