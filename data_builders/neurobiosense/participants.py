"""The table of NeuroBioSense's participants: which advertisement interested whom."""

import collections
import io
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from fer_jax import schema, storage
from fer_jax.errors import InputError

TABLE_NAME = "participant_demographic_information"
TABLE_SUFFIXES = (".xlsx", ".xls", ".csv")
MAX_TABLE_BYTES = 32 * 2**20
MAX_TABLE_ROWS = 100_000
MAX_TABLE_COLUMNS = 256
HEADER_ROWS = 10  # a title may stand above the header
UNKNOWN_AGE = float(schema.UNKNOWN)

# Column -> what it may be called, without spaces, signs and what is in parentheses; a later
# pattern counts where no column has an earlier one.
_ID = "(id|no|number|nr|num|code|name)?"
COLUMNS = {
    "gender": ("gender|sex",),
    "age": ("age(in)?(years?)?",),
    "category": ("(ads?|adverts?|advertisements?)?categor(y|ies)(name)?",),
    "ad": (f"(ads?|adverts?|advertisements?|commercials?|stimul(us|i)|videos?){_ID}",),
    "interested_in": ("interest(ed)?(in)?(the)?(ads?|products?)?(yesno|yn)?",),
    "participant": (
        f"(participants?|subjects?|persons?|volunteers?|viewers?|users?){_ID}|pid|pno",
        *("id", "no|number", "code|name"),
    ),
}
# Words before a number, by what they mean.
PERSON_WORDS = {
    **dict.fromkeys("p part participant participants person".split(), "p"),
    **dict.fromkeys("s sub subject subjects".split(), "s"),
    **{"user": "user", "": ""},
}
AD_WORDS = {
    **dict.fromkeys("a ad ads advert adverts advertisement advertisements".split(), "ad"),
    **dict.fromkeys("commercial commercials".split(), "ad"),
    **{"v": "video", "video": "video", "videos": "video", "stimulus": "stimulus", "": ""},
}
YES_AND_NO = {
    **dict.fromkeys("y yes 1 true evet".split(), "yes"),
    **dict.fromkeys("n no 0 false none hayır hayir".split(), "no"),
}

Cells = list[list[str]]
Sheet = tuple[str, Cells, list["Span"]]  # its name, its cells, and which are merged
Span = tuple[int, int, int]  # first row and column of merged cells, last row
Meaning = Callable[[str], str]


class Row(NamedTuple):
    """A row of the table, as it is written; "" where a cell or a column is missing."""

    number: str  # in the sheet, from 1; with the sheet's name where several are read
    participant: str
    category: str
    ad: str
    gender: str
    age: str
    interested_in: str


class Table(NamedTuple):
    """The rows, and what to say of how they were read."""

    name: str
    rows: list[Row]
    columns: set[str]  # of `COLUMNS`
    notes: list[str]


class Watched(NamedTuple):
    """A participant who watches an advertisement, as the folders name them."""

    category: str
    participant: str
    ad: str


def plain(text: str) -> str:
    """A name without capitals, spaces and leading zeros: "Coca  Cola 01" is "coca_cola_1"."""
    words = re.findall(r"[^\W\d_]+|\d+", unicodedata.normalize("NFKC", text).lower())
    words = [str(int(word)) if word.isdecimal() else word for word in words]
    return "_".join(words) or text.strip().lower()


def category_name(text: str) -> str:
    """A category's name in the protocol."""
    name = "_".join(word for word in re.findall(r"[a-z0-9]+", text.lower()) if word != "and")
    aliases = {"car_technology": "car_tech", "cosmetic_fashion": "cosmetics_fashion"}
    return aliases.get(name, name)


def meaning(words: Mapping[str, str], *sides: Collection[str]) -> Meaning:
    """Returns a function from an id to what it means: "P01", "s1" and "1.0" to "1".

    Where one of `sides` (ids of the folders, ids of the table) has a number after different words,
    such as P1 and S1, that number keeps its word. Other names become `plain`.
    """
    ambiguous: set[str] = set()
    for names in sides:
        used: dict[str, set[str]] = collections.defaultdict(set)
        for name in names:
            word, number = _split(name, words)
            used[number].add(word)
        ambiguous |= {number for number, found in used.items() if len(found - {""}) > 1}

    def mean(name: str) -> str:
        word, number = _split(name, words)
        if not number:
            return plain(name)
        return f"{word or 'unclear'}_{number}" if number in ambiguous else number

    return mean


def _split(name: str, words: Mapping[str, str]) -> tuple[str, str]:
    """The word before an id's number, by its meaning, and the number; ("", "") for a name."""
    found = re.fullmatch(r"([a-z]*)[\W_]*?0*(\d+)(\.0+)?", name.strip().lower())
    return (words[found[1]], found[2]) if found and found[1] in words else ("", "")


def find_table(files: Sequence[str]) -> str:
    """The participants' table among the files of a source, or "".

    Raises:
      InputError: there are several.
    """
    found = [
        name
        for name in files
        if plain(Path(name).stem).startswith(TABLE_NAME)
        and Path(name).suffix.lower() in TABLE_SUFFIXES
    ]
    if len(found) > 1:
        raise InputError(f"there are several tables ({', '.join(found)}); choose one with --table")
    return found[0] if found else ""


def read_participants(
    file: Path, folders: Collection[str], categories: Collection[str] = ()
) -> Table:
    """Reads the demographic table, all sheets of it: .xlsx, .xls or .csv.

    Needed are a column for the participant and one for INTERESTED IN; gender, age, the category
    and the advertisement are used where there are columns for them. Of several columns for the
    participant or the advertisement, the one with most of the names of `folders` is used.
    The participant and the category are filled from the merged cell that spans a row; where no
    such cell is merged, from the row above. The advertisement and the interest never are.

    Raises:
      InputError: no table, or it has no such columns; says what it has.
    """
    sheets, read, other, seen = _sheets(file), [], [], []
    for name, rows, spans in sheets:
        for number, header in enumerate(rows[:HEADER_ROWS]):
            columns = _columns(header, rows[number + 1 :], folders)
            if {"participant", "interested_in"} <= columns.keys():
                read.append((name, _read_rows(file.name, rows, number, columns, spans)))
                break
            seen = seen or [cell for cell in header if cell]
        else:
            other += [name] if any(map(any, rows)) else []
    if not read:
        raise InputError(
            f"'{file}' has no columns for the participant and for INTERESTED IN; it has "
            f"{', '.join(seen) or 'nothing'}"
        )
    return _joined(read, other, categories)


def _joined(
    tables: list[tuple[str, Table]], other: list[str], categories: Collection[str]
) -> Table:
    """The tables of all sheets as one; a sheet named after a category holds its rows."""
    name, rows, columns, notes = tables[0][1].name, [], set(), []
    for sheet, table in tables:
        is_category = "category" not in table.columns and category_name(sheet) in categories
        for row in table.rows:
            number = f"{sheet}!{row.number}" if len(tables) > 1 else row.number
            category = sheet if is_category else row.category
            rows.append(row._replace(number=number, category=category))
        columns |= table.columns | ({"category"} if is_category else set())
        notes += [note for note in table.notes if note not in notes]
    if len(tables) > 1:
        notes.append(f"sheets read: {', '.join(sheet for sheet, _ in tables)}")
    if other:
        notes.append(f"sheets without these columns: {', '.join(other)}")
    return Table(name, rows, columns, notes)


def _sheets(file: Path) -> list[Sheet]:
    """The sheets of a table, their cells as text."""
    if not file.is_file():
        raise InputError(f"--table '{file}' does not exist")
    too_large = f"'{file}' is over {MAX_TABLE_BYTES // 2**20} MiB"
    if file.stat().st_size > MAX_TABLE_BYTES:
        raise InputError(too_large)
    data, suffix = file.read_bytes(), file.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        cells = storage.read_cells(data, str(file), errors="replace")
        return [("", [[cell.strip() for cell in row] for row in cells], [])]
    if suffix == ".xls" and not data.startswith(b"PK"):
        return _read_xls(file, data)
    import openpyxl

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_TABLE_BYTES:
                raise InputError(too_large)
        # A sheet that is read as a stream may claim any size, but does not know merged cells.
        book, whole = (
            openpyxl.load_workbook(io.BytesIO(data), read_only=stream, data_only=True)
            for stream in (True, False)
        )
        cells = [
            sheet.iter_rows(max_row=MAX_TABLE_ROWS, max_col=MAX_TABLE_COLUMNS, values_only=True)
            for sheet in book.worksheets
        ]
        spans = [sheet.merged_cells.ranges for sheet in whole.worksheets]
        return [
            (
                sheet.title,
                [["" if cell is None else str(cell).strip() for cell in row] for row in rows],
                [(s.min_row - 1, s.min_col - 1, s.max_row - 1) for s in merged],
            )
            for sheet, rows, merged in zip(book.worksheets, cells, spans, strict=True)
        ]
    except InputError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, ElementTree.ParseError),
        *(KeyError, ValueError, TypeError, OSError, EOFError),
    ) as error:
        raise InputError(f"'{file}' is not a spreadsheet (.xlsx); save it as .csv") from error


def _read_xls(file: Path, data: bytes) -> list[Sheet]:
    try:
        import xlrd
    except ImportError as error:
        remedy = "pip install -e '.[xls]', or save it as .xlsx"
        raise InputError(f"'{file}' is an old spreadsheet (.xls): {remedy}") from error
    try:
        book = xlrd.open_workbook(file_contents=data, formatting_info=True)
        return [
            (
                sheet.name,
                [[str(cell).strip() for cell in sheet.row_values(n)] for n in range(sheet.nrows)],
                [(top, left, end - 1) for top, end, left, _ in sheet.merged_cells],
            )
            for sheet in book.sheets()
        ]
    except Exception as error:  # of a damaged file xlrd raises whatever comes
        raise InputError(f"'{file}' is not a spreadsheet (.xls); save it as .xlsx") from error


def _columns(header: list[str], rows: Cells, folders: Collection[str]) -> dict[str, int]:
    """What a column is -> where it is."""
    names = [re.sub(r"\(.*?\)|\[.*?\]|[\W\d_]", "", cell.lower()) for cell in header]
    found: dict[str, int] = {}
    for column, patterns in COLUMNS.items():
        for pattern in patterns:
            indices = [i for i, name in enumerate(names) if re.fullmatch(pattern, name)]
            if column in ("participant", "ad") and indices:
                mean = meaning(PERSON_WORDS if column == "participant" else AD_WORDS)
                known = {mean(name) for name in folders}
                cells = {i: [row[i] for row in rows if i < len(row)] for i in indices}
                # A column that numbers the rows is no participant's where a person has several.
                if pattern != patterns[0] and "ad" in found:
                    serial = [str(n + 1) for n in range(len(rows))]
                    indices = [
                        i for i in indices if [c.removesuffix(".0") for c in cells[i]] != serial
                    ]
                indices.sort(key=lambda i: -len({*map(mean, cells[i])} & known))
            if indices:
                found.setdefault(column, indices[0])
    return found


def _read_rows(
    name: str, rows: Cells, header: int, columns: dict[str, int], spans: list[Span]
) -> Table:
    filled = {
        columns[key] for key in ("participant", "category", "gender", "age") if key in columns
    }
    merged = False
    for top, left, bottom in spans:
        if left in filled and top > header:
            merged = merged or left == columns["participant"]
            for row in rows[top + 1 : bottom + 1]:
                row[left : left + 1] = [rows[top][left]]
    read: list[Row] = []
    num_filled = 0
    for number, row in enumerate(rows[header + 1 :], header + 2):
        cells = {key: row[i] if i < len(row) else "" for key, i in columns.items()}
        empty = not (cells.get("ad") or cells["interested_in"])
        if not cells["participant"]:
            if empty:
                continue  # a line between people, or a note below the table
            if read and not merged:
                num_filled += 1
                cells["participant"] = read[-1].participant
                cells["category"] = cells.get("category") or read[-1].category
        read.append(Row(str(number), *(cells.get(key, "") for key in Row._fields[1:])))
    used = set(columns.values())
    unused = [cell for i, cell in enumerate(rows[header]) if cell and i not in used]
    notes = [f"columns not used: {', '.join(unused)}"] if unused else []
    if num_filled:
        notes.append(f"{num_filled} rows without a participant are taken for the one above")
    return Table(name, read, set(columns), notes)


def match(
    table: Table, watched: Mapping[Watched, list[str]], *, numbered_per_category: bool
) -> tuple[dict[Watched, dict[str, Any]], list[tuple[str, str]]]:
    """Finds what the table says of each participant who watches an advertisement.

    Args:
      table: of the participants.
      watched: the clips of each.
      numbered_per_category: participant 1 of one category is not participant 1 of another.

    Returns:
      ("gender", "age" and "interest" of each with a row, -1 where rows contradict each other;
      (item, reason) of rows and clips without the other, and of what gives no interest).
    """
    ad = meaning(AD_WORDS, {one.ad for one in watched}, {row.ad for row in table.rows if row.ad})
    listed = {ad(one.ad) for one in watched} | {one.category for one in watched}
    of_person, own, remarks = _rows_of(table, watched, ad, numbered_per_category)
    known: dict[Watched, dict[str, Any]] = {}
    for one, clips in watched.items():
        known[one] = {
            "gender": _agreed((_gender(row.gender) for row in of_person[one]), ""),
            "age": _agreed((_age(row.age) for row in of_person[one]), UNKNOWN_AGE),
            "interest": schema.UNKNOWN,
        }
        rows = " and ".join(str(row.number) for row in own[one])
        numbers = f"row{'s' * (len(own[one]) > 1)} {rows} of {table.name}"
        cells = [row.interested_in for row in own[one]]
        says = {_interest(cell, ad(one.ad), one.category, listed, ad) for cell in cells}
        says -= {schema.UNKNOWN}
        if not own[one]:
            reason = f"no row of {table.name}: its interest is unknown"
        elif "ad" not in table.columns and len(cells) > 1:
            reason = f"{numbers} name no advertisement: its interest is unknown"
            own[one] = []
        elif len(says) > 1:
            reason = f"{numbers} contradict each other"
        elif not says:
            reason = f"{numbers}: no interest that is understood"
        else:
            known[one]["interest"] = says.pop()
            continue
        remarks += [(clip, reason) for clip in clips]
    num_clips = sum(len(clips) for clips in watched.values())
    num_matched = sum(len(clips) for one, clips in watched.items() if own[one])
    num_used = len({row.number for rows in own.values() for row in rows})
    counts = f"{len(table.rows)} rows read, {num_matched} clips matched, "
    counts += f"{num_clips - num_matched} clips without a row, "
    table.notes.insert(0, f"{counts}{len(table.rows) - num_used} rows without a clip")
    if table.rows and watched and not num_matched:
        row, one = table.rows[0], next(iter(watched))
        table.notes.append(
            f"no row is of a clip: row {row.number} has participant '{row.participant}', "
            f"advertisement '{row.ad}', category '{row.category}'; a clip has '{one.participant}', "
            f"'{one.ad}', '{one.category}'"
        )
    return {one: known[one] for one in watched if of_person[one]}, remarks


def _rows_of(
    table: Table, watched: Iterable[Watched], ad: Meaning, numbered_per_category: bool
) -> tuple[dict[Watched, list[Row]], dict[Watched, list[Row]], list[tuple[str, str]]]:
    """The rows of each one's participant, those of the advertisement too, and rows without any."""
    names = {one.participant for one in watched}
    person = meaning(PERSON_WORDS, names, {row.participant for row in table.rows})
    people: dict[str, list[Watched]] = collections.defaultdict(list)
    for one in watched:
        people[person(one.participant)].append(one)
    entries: dict[Watched, list[Row]] = collections.defaultdict(list)
    own: dict[Watched, list[Row]] = collections.defaultdict(list)
    remarks = []
    for row in table.rows:
        category, has_ad = category_name(row.category), "ad" in table.columns
        found = [
            one
            for one in people[person(row.participant)]
            if (category == one.category if category else not numbered_per_category)
        ]
        for one in found:
            entries[one].append(row)
        found = [one for one in found if not has_ad or ad(row.ad) == ad(one.ad)]
        several = len({one.category for one in found}) > 1
        item = f"{table.name}: row {row.number}"
        if several and (has_ad or _yes_or_no(row.interested_in) != schema.UNKNOWN):
            remarks.append((item, "it names no category, and the participant has clips in several"))
        elif found:
            for one in found:
                own[one].append(row)
        elif numbered_per_category and not category:
            remarks.append((item, "no category, and each counts its participants from 1"))
        else:
            reason = f"no clip of participant '{row.participant}'"
            reason += f" and advertisement '{row.ad}'" if has_ad else ""
            remarks.append((item, reason + (f" in '{row.category}'" if row.category else "")))
    return entries, own, remarks


def _agreed(values: Iterable[Any], unknown: Any) -> Any:
    distinct = set(values) - {unknown}
    return distinct.pop() if len(distinct) == 1 else unknown


def _gender(text: str) -> str:
    try:
        return schema.gender(text)
    except InputError:
        return ""


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d+([.,]\d+)?)\s*(y|yrs?|years?)?\.?( old)?", text.lower())
    age = float(found[1].replace(",", ".")) if found else UNKNOWN_AGE
    return age if age < 150 else UNKNOWN_AGE


def _yes_or_no(text: str) -> int:
    """1, 0, or -1 for anything else."""
    word = re.sub(r"\.0$|[.!]$", "", text.strip().lower())
    try:
        return schema.interest_index(YES_AND_NO.get(word, word))
    except InputError:
        return schema.UNKNOWN


def _interest(text: str, ad: str, category: str, listed: set[str], mean: Meaning) -> int:
    """INTERESTED IN for an advertisement (its meaning) of a category: 1, 0, or -1 for unknown.

    A cell is yes or no, or a list of advertisements or categories; one that holds none of
    `listed`, which are all that a list may hold, says nothing. `mean` is of advertisements.
    """
    said = _yes_or_no(text)
    if said != schema.UNKNOWN:
        return said
    parts = [*re.split(r"[,;/\n]", text), *re.split(r"[,;/\n&]|\band\b", text)]
    names = {name for part in parts if part.strip() for name in (mean(part), category_name(part))}
    return int(bool(names & {ad, category})) if names & listed else schema.UNKNOWN
