"""NeuroBioSense: faces in clips of people watching advertisements."""

import argparse
import collections
import csv
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import tensorflow_datasets as tfds

from fer_jax import schema
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder, files_in, protocols
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media import extraction
from fer_jax.media.clips import Job
from fer_jax.media.video import VIDEO_SUFFIXES

# The folder in which a clip's emotion is written.
LETTERS = {
    "j": "happiness",
    "sa": "sadness",
    "a": "anger",
    "d": "disgust",
    "su": "surprise",
    "n": "neutral",
    "f": "fear",
}
CATEGORY_ALIASES = {"car_technology": "car_tech", "cosmetic_fashion": "cosmetics_fashion"}
ORDERS = ("auto", "participant_ad", "ad_participant")
TABLE_NAME = "participant_demographic_information"
METADATA_COLUMNS = {"video_id", "participant_id", "category", "reaction_type"}
MAX_TABLE_BYTES = 32 * 2**20
MAX_TABLE_ROWS = 100_000
MAX_TABLE_COLUMNS = 256
HEADER_ROWS = 10  # a title may stand above the header
UNKNOWN_AGE = float(schema.UNKNOWN)

PARTICIPANT_LIKE = re.compile(r"(p|participants?|part|subjects?|sub|s|person|user)?[ _.-]*\d+")
AD_WORDS = "ads?|a|adverts?|advertisements?|commercials?|videos?|v"
AD_LIKE = re.compile(rf"({AD_WORDS})[ _.-]*\w*")


class Person(NamedTuple):
    """A row of the spreadsheet: what is known of a participant, or of one watching one ad."""

    category: str  # "" where the table has no column for it; so with the next
    ad: str
    gender: str
    age: float
    interested_in: str


class Builder(RecordBuilder):
    """Faces in clips of people watching advertisements (NeuroBioSense)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = protocols("grouped", "content", "folds")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folder of the videos, in one of the layouts of README.md."
    SOURCE = "folder of the videos"
    UNIT = "clip"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the builder's options."""
        super().add_arguments(parser)
        parser.add_argument("--table", type=Path, help=f"spreadsheet; default: {TABLE_NAME}*.xlsx")
        parser.add_argument("--order", default="auto", choices=ORDERS, help="of the folders")
        parser.add_argument(
            "--numbered_per_category",
            action="store_true",
            help="participant 1 of one category is not participant 1 of another",
        )
        splits.add_arguments(parser)
        extraction.add_arguments(parser, clips=True, detector="yunet")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.record_info("Faces of people who watch advertisements.")

    def list_inputs(self) -> Inputs:
        """Finds the clips and what is known of them."""
        options, source = self.options, Path(self.options.source)
        if not source.is_dir():
            raise InputError(f"--source '{source}' is not a folder")
        names, unread = files_in(source, VIDEO_SUFFIXES)
        if not names:
            raise InputError(f"'{source}' holds no video ({', '.join(VIDEO_SUFFIXES)})")
        rows, skipped = _labelled_clips([Path(name) for name in names], source, options)
        # The same name whichever way round the folders are; the path where that is not enough.
        taken = collections.Counter(row["_clip"] for row in rows)
        for row in rows:
            clip = row["_clip"] if taken[row["_clip"]] == 1 else row["_path"].as_posix()
            who = row["subject_id"]
            if options.numbered_per_category:
                who = f"{row['content']}/{who}"
            row["subject_id"] = f"{self.name}/{who}"
            row["clip_id"] = row["record_id"] = f"{self.name}/{clip}"
            row["source"] = "controlled"
            row["_job"] = Job(str((source / row["_path"]).resolve()), row["record_id"])
        _note_shared_people(rows)
        rows, outside = splits.assign(rows, self.protocol, self.name, options)
        settings = {
            "source": source.name,
            "numbered_per_category": options.numbered_per_category,
            "faces": extraction.recorded(self.extraction),
        } | splits.recorded(self.protocol, options)
        return Inputs(rows, skipped + unread + outside, settings)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        return self.examples(rows, self.faces_in_clip)


def _labelled_clips(
    files: list[Path], source: Path, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The clips with what metadata.csv, or the folders and the spreadsheet, say of them."""
    parts = splits.content_parts(options.content_parts)
    categories = [group for groups in parts.values() for group in groups]
    metadata = source / "metadata.csv"
    if metadata.is_file():
        return _from_metadata(files, metadata, categories)
    people = _people(source, options.table)
    if options.numbered_per_category and not any(
        entry.category for entries in people.values() for entry in entries
    ):
        if people:
            print(
                "note: the spreadsheet has no column for the category, so its rows cannot be "
                "matched to participants; gender, age and interest stay unknown"
            )
        people = {}
    return _from_folders(files, people, options.order, categories)


def _note_shared_people(rows: list[dict[str, Any]]) -> None:
    seen: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        seen[row["subject_id"]].add(row["content"])
    shared = [who for who, categories in seen.items() if len(categories) > 1]
    if shared:
        print(
            f"note: {len(shared)} participants, such as '{shared[0]}', occur in several "
            "categories and are taken for the same people; if every category counts from 1, "
            "say --numbered_per_category"
        )


def _plain(text: str) -> str:
    """A name without capitals, spaces and leading zeros: "Participant 03" and "3" are one."""
    words = re.findall(r"[a-z]+|\d+", text.lower())
    words = [str(int(word)) if word.isdecimal() else word for word in words]
    return "_".join(words) or text.strip().lower()


def _participant(text: str) -> str:
    """A participant's name: the number, where there is nothing else to it."""
    number = re.fullmatch(r"\D*?0*(\d+)", text.strip())
    if number and PARTICIPANT_LIKE.fullmatch(text.strip().lower()):
        return f"p{int(number[1]):02}"
    return _plain(text)


def _ad_names(text: str) -> set[str]:
    """What an advertisement is called: "Ad 1", "ad01", "1" and a spreadsheet's 1.0 are one."""
    name = _plain(re.sub(r"\.0$", "", text.strip()))
    return {name, re.sub(rf"^({AD_WORDS})_(?=\d+$)", "", name)}


def _category_name(text: str) -> str:
    name = "_".join(word for word in re.findall(r"[a-z0-9]+", text.lower()) if word != "and")
    return CATEGORY_ALIASES.get(name, name)


def _category(text: str, accepted: Iterable[str]) -> str:
    name = _category_name(text)
    if name not in accepted:
        raise InputError(f"'{text}' is no category of the protocol{did_you_mean(name, accepted)}")
    return name


def _emotion(letter: str) -> int:
    return schema.emotion_index(LETTERS.get(letter.strip().lower(), letter))


def _from_folders(
    files: list[Path], people: Mapping[str, list[Person]], order: str, categories: list[str]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """[Advertisement Categories/]category/participant/ad/letter/clip, or ad/participant."""
    skipped: list[tuple[str, str]] = []
    known = []
    for path in files:
        folders = path.parent.parts
        if folders and folders[0].lower().startswith("advertisement categor"):
            folders = folders[1:]
        if len(folders) == 4:
            known.append((path, folders))
        else:
            wanted = "category/participant/advertisement/letter/"
            skipped.append((path.as_posix(), f"not in folders {wanted}"))
    if not known:
        raise InputError(
            "no clip lies in category/participant/advertisement/letter/, and there is no "
            "metadata.csv; point --source at the folder of the categories"
        )
    pairs = {(second, third) for _, (_, second, third, _) in known}
    participant_first = _participant_first(pairs, people, order)
    ads = {third if participant_first else second for second, third in pairs}
    names = {name for ad in ads for name in _ad_names(ad)} | set(categories)
    rows = []
    for path, (category, second, third, letter) in known:
        participant, ad = (second, third) if participant_first else (third, second)
        try:
            row = {
                "_path": path,
                "content": _category(category, categories),
                "subject_id": _participant(participant),
                "emotion": _emotion(letter),
            }
        except InputError as error:
            skipped.append((path.as_posix(), str(error)))
            continue
        row["stimulus_id"] = f"{row['content']}/{_plain(ad)}"
        words = [row["content"], row["subject_id"], _plain(ad), letter.lower(), path.stem]
        row["_clip"] = "/".join(words)
        if row["subject_id"] in people:
            row |= _known(people[row["subject_id"]], ad, row["content"], names)
        rows.append(row)
    return rows, skipped


def _participant_first(
    pairs: set[tuple[str, str]], people: Mapping[str, list[Person]], order: str
) -> bool:
    """Whether the participant's folder holds the advertisements' or the other way round."""
    if order != "auto":
        return order == "participant_ad"
    levels = [{pair[level] for pair in pairs} for level in range(2)]

    def share(names: set[str], test: Any) -> float:
        return sum(bool(test(name)) for name in names) / len(names)

    tests = [
        lambda name: _participant(name) in people,
        lambda name: PARTICIPANT_LIKE.fullmatch(name.strip().lower()) and not name.isdecimal(),
        lambda name: not AD_LIKE.fullmatch(name.strip().lower()),
        lambda name: PARTICIPANT_LIKE.fullmatch(name.strip().lower()),
    ]
    for test in tests:
        first, second = (share(names, test) for names in levels)
        if first != second:
            return first > second
    raise InputError(
        f"cannot tell participants from advertisements (folders such as '{min(levels[0])}' hold "
        f"folders such as '{min(levels[1])}'); say --order=participant_ad or ad_participant"
    )


def _people(source: Path, given: Path | None) -> dict[str, list[Person]]:
    """The spreadsheet by participant; empty where there is none."""
    if given is None:
        found = [
            path
            for folder in (source, source.parent)
            for path in sorted(folder.glob("*.xlsx"))
            if path.stem.lower().startswith(TABLE_NAME)
        ]
        if not found:
            return {}
        given = found[0]
    if not given.is_file():
        raise InputError(f"--table '{given}' does not exist")
    return read_people(given)


def read_people(file: Path) -> dict[str, list[Person]]:
    """Reads the demographic spreadsheet.

    Needed are a column for the participant and one named INTERESTED IN; gender, age, the
    category and the advertisement are used where there are columns for them.

    Raises:
      InputError: no spreadsheet, or no sheet has the needed columns; says what it has.
    """
    import openpyxl

    try:
        # Opened here: openpyxl leaves open what it cannot read.
        with file.open("rb") as data:
            with zipfile.ZipFile(data) as archive:
                if sum(info.file_size for info in archive.infolist()) > MAX_TABLE_BYTES:
                    raise InputError(f"'{file}' is over {MAX_TABLE_BYTES // 2**20} MiB")
            book = openpyxl.load_workbook(data, read_only=True, data_only=True)
            sheets = [_cells(sheet) for sheet in book.worksheets]
    except InputError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, ElementTree.ParseError),
        *(KeyError, ValueError, TypeError, OSError),
    ) as error:
        raise InputError(f"'{file}' is not a spreadsheet (.xlsx)") from error
    seen: list[str] = []
    for rows in sheets:
        for number, header in enumerate(rows[:HEADER_ROWS]):
            columns = _columns(header)
            if {"participant", "interested_in"} <= columns.keys():
                return _read_rows(rows[number + 1 :], columns)
            seen = seen or [cell for cell in header if cell]
    raise InputError(
        f"'{file}' has no columns for the participant and for INTERESTED IN; it has "
        f"{', '.join(seen) or 'nothing'}"
    )


def _cells(sheet: Any) -> list[list[str]]:
    rows = sheet.iter_rows(max_row=MAX_TABLE_ROWS, max_col=MAX_TABLE_COLUMNS, values_only=True)
    return [["" if cell is None else str(cell).strip() for cell in row] for row in rows]


def _columns(header: list[str]) -> dict[str, int]:
    """What a column is -> where it is."""
    patterns = {
        "participant": r"(participants?|subjects?)( (id|no|number|name|code))?|id|no",
        "gender": r"gender|sex",
        "age": r"age( years)?",
        "category": r"((ads?|advertisements?) )?categor(y|ies)",
        "ad": r"(ads?|adverts?|advertisements?|commercials?)( (id|no|number|name))?",
        "interested_in": r"interested( in)?|interest",
    }
    found: dict[str, int] = {}
    for index, cell in enumerate(header):
        words = " ".join(re.findall(r"[a-z]+", cell.lower()))
        for name, pattern in patterns.items():
            if name not in found and re.fullmatch(pattern, words):
                found[name] = index
    return found


def _read_rows(rows: list[list[str]], columns: dict[str, int]) -> dict[str, list[Person]]:
    people: dict[str, list[Person]] = collections.defaultdict(list)
    for row in rows:

        def cell(name: str, row: list[str] = row) -> str:
            place = columns.get(name, len(row))
            return row[place] if place < len(row) else ""

        if not cell("participant"):
            continue
        # Numbers come as 3.0 from some spreadsheets.
        who = _participant(re.sub(r"\.0$", "", cell("participant")))
        try:
            age = float(cell("age"))
        except ValueError:
            age = UNKNOWN_AGE
        age = age if 0 <= age < 150 else UNKNOWN_AGE
        try:
            gender = schema.gender(cell("gender"))
        except InputError:
            gender = ""
        category = _category_name(cell("category"))
        people[who].append(Person(category, cell("ad"), gender, age, cell("interested_in")))
    return dict(people)


def _known(entries: list[Person], ad: str, category: str, names: set[str]) -> dict[str, Any]:
    """What the spreadsheet says of this participant watching this advertisement.

    Rows that contradict each other leave it unknown.
    """
    entries = [entry for entry in entries if entry.category in ("", category)]
    own = [entry for entry in entries if entry.ad and _ad_names(entry.ad) & _ad_names(ad)]
    own = own or [entry for entry in entries if not entry.ad]
    return {
        "gender": _agreed((entry.gender for entry in entries), ""),
        "age": _agreed((entry.age for entry in entries), UNKNOWN_AGE),
        "interest": _agreed(
            (_interest(entry.interested_in, ad, category, names) for entry in own), schema.UNKNOWN
        ),
    }


def _agreed(values: Iterable[Any], unknown: Any) -> Any:
    distinct = set(values) - {unknown}
    return distinct.pop() if len(distinct) == 1 else unknown


def _interest(text: str, ad: str, category: str, names: set[str]) -> int:
    """INTERESTED IN: yes or no, or a list of the advertisements or categories.

    Args:
      text: what the cell says.
      ad: the advertisement watched.
      category: of it.
      names: all that a list may hold; one that holds none of them says nothing.

    Returns:
      1, 0, or -1 for unknown.
    """
    word = {"1": "yes", "0": "no", "1.0": "yes", "0.0": "no", "true": "yes", "false": "no"}.get(
        text.lower(), text
    )
    try:
        return schema.interest_index({"y": "yes", "n": "no", "none": "no"}.get(word.lower(), word))
    except InputError:
        pass
    parts = [*re.split(r"[,;/\n]", text), *re.split(r"[,;/\n&]|\band\b", text)]
    listed = {name for part in parts for name in (*_ad_names(part), _category_name(part))}
    if not listed & names:
        return schema.UNKNOWN
    return int(bool(listed & (_ad_names(ad) | {category})))


def _from_metadata(
    files: list[Path], metadata: Path, categories: list[str]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """category/participant/clip, with metadata.csv."""
    with metadata.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text, restval="")
        try:
            missing = METADATA_COLUMNS - set(reader.fieldnames or ())
            entries = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{metadata}' is not a CSV in UTF-8") from error
    if missing:
        raise InputError(f"'{metadata}' lacks the columns {', '.join(sorted(missing))}")
    by_name: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
    for entry in entries:
        file = Path(entry["video_id"])
        by_name[file.stem if file.suffix.lower() in VIDEO_SUFFIXES else file.name].append(entry)
    rows, skipped, used = [], [], set()
    for path in files:
        candidates = by_name.get(path.stem, [])
        # The same name may occur once per participant, and per category.
        if len(candidates) > 1:
            who = {_participant(folder) for folder in path.parent.parts}
            candidates = [c for c in candidates if _participant(c["participant_id"]) in who]
        if len(candidates) > 1:
            what = {_category_name(folder) for folder in path.parent.parts}
            candidates = [c for c in candidates if _category_name(c["category"]) in what]
        used |= {id(entry) for entry in candidates}
        try:
            if not candidates:
                raise InputError("not in metadata.csv")
            if len(candidates) > 1:
                raise InputError("named twice in metadata.csv")
            rows.append({"_path": path} | _labelled(path, candidates[0], categories))
        except InputError as error:
            skipped.append((path.as_posix(), str(error)))
    skipped += [
        (f"metadata.csv: {entry['video_id']}", "no such file")
        for entry in entries
        if id(entry) not in used
    ]
    return rows, skipped


def _labelled(path: Path, entry: dict[str, str], categories: list[str]) -> dict[str, Any]:
    category = _category(entry["category"], categories)
    folders = path.parent.parts
    if len(folders) >= 2 and _category(folders[-2], categories) != category:
        raise InputError(f"metadata.csv says category '{entry['category']}'")
    if folders and _participant(folders[-1]) != _participant(entry["participant_id"]):
        raise InputError(f"metadata.csv says participant '{entry['participant_id']}'")
    who = _participant(entry["participant_id"])
    row: dict[str, Any] = {
        "content": category,
        "subject_id": who,
        "_clip": f"{category}/{who}/{path.stem}",
    }
    word = entry["reaction_type"]
    try:
        return row | {"interest": schema.interest_index(word)}
    except InputError:
        pass
    try:
        return row | {"emotion": _emotion(word)}
    except InputError as error:
        raise InputError(f"reaction_type '{word}' is neither an interest nor an emotion") from error
