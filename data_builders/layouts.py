"""Labels of pictures and clips: from a manifest, a published collection's layout, or class folders.

Published layouts are data (`LAYOUTS`); face_folder/README.md shows each with its command.
"""

import argparse
import collections
import functools
import io
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fer_jax import schema, storage
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder, files_in, outline
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media import extraction
from fer_jax.media.images import IMAGE_SUFFIXES
from fer_jax.media.video import VIDEO_SUFFIXES

PAGE = "data_builders/face_folder/README.md"
MANIFEST = "manifest.csv"
MAX_CSV_BYTES = 2**30
MAX_LABEL_BYTES = 2**16
ENDING = re.compile(r"(?<=[^/])\.[^./]+$")


def _numbered(words: str, first: int = 0) -> dict[str, str]:
    return {str(number): word for number, word in enumerate(words.split(), first)}


class Layout(NamedTuple):
    """How a published collection names its files and its labels.

    Attributes:
      labels: what its codes mean; meanings outside the seven emotions go to the ledger.
      file: what the path of a picture or clip ends with; its groups are columns of a manifest.
      table: name of the file that lists pictures with their labels.
      header: what the table's first bytes have in them.
      columns: of the table, if it has no header and its values are separated by spaces.
      label_file: name of a file with the label of one picture or sequence, whose groups have the
        same values as those of `file`.
      last: how many frames of a labelled sequence are used, from the one that `label_file` names.
      variant: what the name of a picture has in addition to the name in the table.
    """

    labels: Mapping[str, str] = {}
    file: str = ""
    table: str = ""
    header: str = ""
    columns: tuple[str, ...] = ()
    label_file: str = ""
    last: int = 0
    variant: str = ""


LAYOUTS = {
    "fer2013": Layout(_numbered("anger disgust fear happiness sadness surprise neutral")),
    "rafdb": Layout(
        _numbered("surprise fear disgust happiness sadness anger neutral", 1),
        file=r"(?P<orig_split>train|test)/(?P<label>[1-7])/(train|test)_\d+_aligned\.jpg",
        table=r"list_pa\w*_label\.txt",
        columns=("path", "label"),
        variant="_aligned",
    ),
    "affectnet": Layout(
        _numbered(
            "neutral happiness sadness surprise fear disgust anger contempt none uncertain no_face"
        ),
        file=r"(?P<orig_split>train|val)_set/images/(?P<key>\d+)\.jpg",
        table=r"(?P<orig_split>training|validation|automatically_annotated)\.csv",
        header="subDirectory_filePath",
        label_file=r"(?P<orig_split>train|val)_set/annotations/(?P<key>\d+)_exp\.npy",
    ),
    "expw": Layout(
        _numbered("anger disgust fear happiness sadness surprise neutral"),
        table=r"label\.lst",
        columns=("path", "face", "y", "x", "right", "bottom", "confidence", "label"),
    ),
    "ck": Layout(
        _numbered("neutral anger contempt disgust fear happiness sadness surprise"),
        file=r"(?P<subject_id>S\d{3})_(?P<clip_id>\d{3})_(?P<frame_index>\d{8})\.png",
        label_file=r"(?P<subject_id>S\d{3})_(?P<clip_id>\d{3})_(?P<last>\d{8})_emotion\.txt",
        last=3,
    ),
    "kdef": Layout(
        {
            **{"AF": "fear", "AN": "anger", "DI": "disgust", "HA": "happiness", "NE": "neutral"},
            **{"SA": "sadness", "SU": "surprise"},
        },
        file=r"[AB](?P<subject_id>(?P<gender>[FM])\d\d)(?P<label>AF|AN|DI|HA|NE|SA|SU)"
        r"(?P<content>FL|HL|S|HR|FR)\.jpe?g",
    ),
    "jaffe": Layout(
        {
            **{"AN": "anger", "DI": "disgust", "FE": "fear", "HA": "happiness", "NE": "neutral"},
            **{"SA": "sadness", "SU": "surprise"},
        },
        file=r"(?P<subject_id>[A-Z]{2})\.(?P<label>AN|DI|FE|HA|NE|SA|SU)\d\.\d+\.tiff?",
    ),
    "ravdess": Layout(
        _numbered("neutral calm happiness sadness anger fear disgust surprise", 1),
        file=r"0[12]-0[12]-0(?P<label>[1-8])-\d\d-\d\d-\d\d-(?P<subject_id>\d\d)\.\w+",
    ),
}

# Column of a manifest -> what it may be called, with _ for what is no letter or digit.
COLUMNS = {
    "path": "path file filename file_name image image_name image_path filepath pth "
    "subdirectory_filepath video video_id clip pic",
    "label": "label expression reaction_type class",
    "subject_id": "subject_id subject participant_id participant person actor",
    "orig_split": "orig_split usage split part partition",
    "content": "content category",
    "x": "x face_x left",
    "y": "y face_y top",
    "width": "width face_width",
    "height": "height face_height",
}
# Columns that go into the record as they are, and their types.
PLAIN: dict[str, Any] = {
    **dict.fromkeys(("content", "clip_id", "stimulus_id", "subject_id", "url", "gender"), str),
    **{"frame_index": int, "timestamp": float, "age": float, "label_confidence": float},
}
LIMITS = {  # the least and the largest value
    "frame_index": (0, 2**31 - 1),
    "timestamp": (0, math.inf),
    "age": (schema.UNKNOWN, 150),
    "label_confidence": (0, 1),
}
READ = {*COLUMNS, *PLAIN, "emotion", "interest", "dataset", "right", "bottom"}
# FERPlus' ten vote columns, beside the usual words: those outside the seven emotions.
OTHER_VOTES = ("contempt", "unknown", "nf")
PERSON_LIKE = re.compile(
    r"(p|s|[ab]?[fmw]|sub|subj|subject|person|participant|part|actor|user|id|yaleb)[ _-]?\d+"
)

Entry = dict[str, str]  # a row of a manifest, by the columns of `READ` and those of votes
Rows = list[dict[str, Any]]
Skipped = list[tuple[str, str]]


class Labelled(NamedTuple):
    """Files with what is known of them.

    Attributes:
      rows: as of `Inputs`: "_path", labels and other fields; "_given", the collection's own word
        for the part; "_box", the face's box; "_face", its number where a picture has several.
      skipped: (item, reason).
      tables: the files that were read for labels.
      note: what was understood, for the output.
    """

    rows: Rows
    skipped: Skipped
    tables: list[str]
    note: str


class Source(NamedTuple):
    """The files of a folder or an archive, those that cannot be read, and number of ignored ones.

    `read` takes a name, the most bytes that it may have, and, to read no more, their number.
    """

    path: Path
    files: list[str]
    read: Callable[..., bytes]
    skipped: Skipped = []
    ignored: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `label_files` and `to_inputs`."""
    parser.add_argument("--namespace", help="shared by datasets of the same people")
    parser.add_argument("--source_kind", help="controlled, social, ...; default: name")
    parser.add_argument(
        "--label_source",
        default="annotated",
        choices=schema.LABEL_SOURCES,
        help="how the labels came about",
    )
    group = parser.add_argument_group("labels")
    manifest = f"CSV; default: {MANIFEST} in or beside the source"
    group.add_argument("--manifest", type=Path, help=manifest)
    group.add_argument("--dataset", help="use the manifest's rows of this dataset only")
    layout = "whose names and codes of labels; default: recognized"
    group.add_argument("--layout", choices=LAYOUTS, help=layout)
    person = (
        "class folders: the one above (else below) the label is the person's; default: recognized"
    )
    group.add_argument("--subject_from", choices=("folder", "none"), help=person)
    part = "protocol 'given': the part of files that have none"
    group.add_argument("--part", choices=splits.PARTS, help=part)


def open_folder(folder: Path) -> Source:
    """The files of a folder."""
    listing = files_in(folder)
    read = functools.partial(_read_file, folder)
    return Source(folder, listing.files, read, listing.skipped, len(listing.ignored))


def open_file(file: Path) -> Source:
    """A file as the only one of its folder."""
    return Source(file, [file.name], functools.partial(_read_file, file.parent))


def _read_file(folder: Path, name: str, most: int, head: int = -1) -> bytes:
    try:
        if (folder / name).stat().st_size > most:
            raise InputError(f"file over {most // 2**20} MiB")
        with (folder / name).open("rb") as file:
            return file.read(head)
    except OSError as error:
        raise InputError((error.strerror or str(error)).lower()) from error


def to_inputs(builder: RecordBuilder, source: Source, found: Labelled) -> Inputs:
    """Adds ids, splits and what all rows share.

    An id is the path without its ending, unless two files differ in that only.
    """
    options, dataset = builder.options, builder.name
    if options.part and builder.protocol != "given":
        raise InputError("--part acts only with the protocol 'given'")
    known = {
        "namespace": options.namespace or dataset,
        "source_kind": options.source_kind or dataset,
        "label_source": options.label_source,
    }
    for row in found.rows:
        row |= {"source": known["source_kind"], "label_source": options.label_source}
        if "_face" in row:  # the faces of a picture stay together
            row.setdefault("clip_id", row["_path"])
        for name in ("subject_id", "clip_id"):
            if row.get(name):
                row[name] = f"{known['namespace']}/{row[name]}"
        face = f"_{row['_face']}" if "_face" in row else ""
        row["_whole"] = f"{dataset}/{row['_path']}{face}"
        row["record_id"] = f"{dataset}/{re.sub(ENDING, '', row['_path'])}{face}"
    twice = found.rows
    while twice:
        taken = collections.Counter(row["record_id"] for row in found.rows)
        twice = [r for r in twice if taken[r["record_id"]] > 1 and r["record_id"] != r["_whole"]]
        for row in twice:
            row["record_id"] = row["_whole"]
    rows, outside = splits.assign(found.rows, builder.protocol, known["namespace"], options)
    settings = {"source": source.path.name, "faces": extraction.recorded(builder.extraction)}
    settings |= known | splits.recorded(builder.protocol, options)
    ignored = {"read for labels": len(found.tables), "a system file": source.ignored}
    return Inputs(rows, found.skipped + source.skipped + outside, settings, ignored)


def label_files(source: Source, options: argparse.Namespace, protocol: str) -> Labelled:
    """Labels files by the manifest, else by a published layout, else by class folders.

    Raises:
      InputError: none of them labels anything, or an option has no effect.
    """
    labels = LAYOUTS[options.layout].labels if options.layout else {}
    manifest = _find_manifest(source, options.manifest)
    name = "" if manifest else options.layout or _recognize(source)
    found = _from_layout(source, name) if name else None
    if options.dataset and not manifest:
        raise InputError("--dataset acts only with a manifest, and there is none")
    if options.subject_from and (manifest or found):
        how = f"'{manifest[0]}'" if manifest else f"the layout '{name}'"
        raise InputError(f"--subject_from acts only on class folders; here {how} has the labels")
    if manifest:
        found = _from_manifest(source, *manifest, labels, options)
    elif found is None:
        found = _from_folders(source, labels, options.subject_from, protocol)
    for row in found.rows if options.part else ():
        row.setdefault("_given", options.part)
    return found


def _find_manifest(source: Source, given: Path | None) -> tuple[str, bytes] | None:
    """The manifest's name in the source, or its path, and its bytes; None where there is none."""
    if given is not None:
        if not given.is_file():
            raise InputError(f"--manifest '{given}' does not exist")
        inside = given.resolve().is_relative_to(source.path.resolve())
        name = given.resolve().relative_to(source.path.resolve()).as_posix() if inside else ""
        return name or str(given), given.read_bytes()
    within = [name for name in source.files if name.rpartition("/")[2].lower() == MANIFEST]
    if len(within) > 1:
        listed = ", ".join(within[:4])
        raise InputError(f"there are {len(within)} manifests ({listed}); choose one by --manifest")
    if within:
        try:
            return within[0], source.read(within[0], MAX_CSV_BYTES)
        except InputError as error:
            raise InputError(f"'{within[0]}' in '{source.path}': {error}") from error
    beside = source.path.parent / MANIFEST
    if beside.is_file():
        # A manifest beside the source may be about other things.
        entries = _read_csv(beside.read_bytes(), str(beside))[1]
        named = {entry.get("path", "").replace("\\", "/") for entry in entries}
        folder = _folder(source)
        if named & {*source.files, *(f"{folder}/{file}" for file in source.files)}:
            return str(beside), beside.read_bytes()
    return None


def _read_csv(data: bytes, name: str) -> tuple[set[str], list[Entry]]:
    """A CSV's columns by their usual names, and its rows; absent cells are empty."""
    lines = storage.read_cells(data, name)
    header = next(lines, [])
    names = [re.sub(r"[^a-z0-9]+", "_", cell.strip().lower()) for cell in header]
    for column, aliases in COLUMNS.items():
        alias = next((name for name in aliases.split() if name in names), column)
        names = [column if name == alias else name for name in names]
    kept = [i for i, name in enumerate(names) if name in READ or _vote(name) is not None]
    return set(names), [
        {names[i]: line[i].strip() if i < len(line) else "" for i in kept} for line in lines if line
    ]


def _vote(column: str) -> int | None:
    """The emotion of a column of votes; -1: outside the seven; None: no such column."""
    word = schema.EMOTION_ALIASES.get(column, column)
    if word in schema.EMOTIONS:
        return schema.EMOTIONS.index(word)
    return schema.UNKNOWN if word in OTHER_VOTES else None


def read_manifest(data: bytes, name: str) -> tuple[list[Entry], dict[str, int]]:
    """The rows of a manifest, and its columns of votes with their emotions (-1: none of ours).

    Raises:
      InputError: it names no files or has no labels.
    """
    columns, entries = _read_csv(data, name)
    votes = {c: vote for c in columns if (vote := _vote(c)) is not None}
    votes = votes if set(range(len(schema.EMOTIONS))) <= set(votes.values()) else {}
    if "path" not in columns or not (columns & {"label", "emotion", "interest"} or votes):
        raise InputError(
            f"'{name}' needs the columns path and label (or emotion, interest, or one column of "
            f"votes per emotion); it has {', '.join(sorted(columns)) or 'none'}"
        )
    return entries, votes


def _from_manifest(
    source: Source, name: str, data: bytes, labels: Mapping[str, str], options: argparse.Namespace
) -> Labelled:
    entries, votes = read_manifest(data, name)
    sets = {entry["dataset"] for entry in entries if "dataset" in entry}
    note = f"labels from '{name}'"
    if options.dataset:
        if options.dataset not in sets:
            guess = did_you_mean(options.dataset, sets)
            raise InputError(f"'{name}' describes no dataset '{options.dataset}'{guess}")
        entries = [entry for entry in entries if entry["dataset"] == options.dataset]
    elif len(sets) > 1:
        there = set(source.files)
        present = {entry["dataset"] for entry in entries if entry["path"] in there}
        if others := sets - present:
            entries = [entry for entry in entries if entry["dataset"] in present]
            note += f"; rows of datasets without a file are left out ({', '.join(sorted(others))})"
    tables = [name] if name in source.files else []
    files = [path for path in source.files if path not in tables]
    has_boxes = bool(options.boxes)
    folder = _folder(source)
    found = _match(files, entries, votes, labels, name, folder, has_boxes=has_boxes)
    return Labelled(*found, tables, note)


def _folder(source: Source) -> str:
    """The name of a source's folder, or of the folder that was packed into a zip."""
    path = source.path.resolve()
    return path.name if path.is_dir() else path.stem


def _match(
    files: list[str],
    entries: list[Entry],
    votes: Mapping[str, int],
    labels: Mapping[str, str],
    name: str,
    folder: str,
    *,
    has_boxes: bool = False,
    variant: str = "",
) -> tuple[Rows, Skipped]:
    """The rows of the entries whose files are there, and what is in `files` or `entries` only."""
    find = _finder(files, folder)
    skipped: Skipped = []
    of_file: dict[str, list[Entry]] = collections.defaultdict(list)
    for number, entry in enumerate(entries, 2):
        try:
            of_file[find(entry["path"], variant)].append(entry)
        except InputError as error:
            skipped.append((entry["path"] or f"{name}: row {number}", str(error)))
    rows: Rows = []
    without_box = set()
    for path, named in of_file.items():
        for number, entry in enumerate(named):
            try:
                row = {"_path": path} | read_entry(entry, votes, labels)
            except InputError as error:
                skipped.append((path if len(named) == 1 else f"{path}, face {number}", str(error)))
                continue
            if len(named) > 1:
                row["_face"] = number
                if "_box" not in row and not has_boxes:
                    without_box.add(path)
            rows.append(row)
    if without_box:
        raise InputError(
            f"'{name}' names {len(without_box)} files twice, such as '{min(without_box)}'; "
            "several faces of a picture need the columns x, y, width and height, or --boxes"
        )
    table = "the manifest" if name.lower().endswith(MANIFEST) else f"'{name.rpartition('/')[2]}'"
    skipped += [(path, f"not in {table}") for path in files if path not in of_file]
    return rows, skipped


def _finder(files: list[str], folder: str) -> Callable[[str, str], str]:
    """Returns a function from (path in a manifest, variant) to the file that is meant.

    That is the file itself, else the only one whose path ends so, also without its ending or in
    other capitals. The path may also begin outside the source, with the source's own folder or, if
    it is absolute, with any folders before those of the file.
    """
    there = set(files)

    @functools.cache
    def ends(change: Callable[[str], str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = collections.defaultdict(set)
        for file in files:
            for path in (file, re.sub(ENDING, "", file)):
                parts = change(path).split("/")
                for start in range(len(parts)):
                    found["/".join(parts[start:])].add(file)
        return found

    @functools.cache
    def whole() -> dict[str, str]:
        return {_folded(path): path for path in files}

    def from_outside(path: str) -> set[str]:
        parts = _folded(path).split("/")
        is_absolute = re.match(r"([a-z]:)?/", path, re.IGNORECASE) is not None
        for start in range(1, len(parts)):
            file = whole().get("/".join(parts[start:]))
            in_folder = is_absolute and start < len(parts) - 1
            if file and (in_folder or parts[start - 1] == _folded(folder)):
                return {file}
        return set()

    def find(path: str, variant: str) -> str:
        if not path:
            raise InputError("no file is named")
        if path in there and not variant:
            return path
        path = path.replace("\\", "/").removeprefix("./")
        varied = re.sub(r"(\.[^./]+)?$", variant + r"\1", path, count=1)
        named = ends(str).get(varied) or ends(str).get(path)
        named = named or ends(_folded).get(_folded(varied)) or from_outside(varied)
        if len(named) != 1:
            raise InputError(f"{len(named)} files end with this path" if named else "no such file")
        return next(iter(named))

    return find


def _folded(path: str) -> str:
    """The path as Windows and macOS compare it: whatever its capitals and the form of accents."""
    return unicodedata.normalize("NFC", path).casefold()


def read_entry(entry: Entry, votes: Mapping[str, int], labels: Mapping[str, str]) -> dict[str, Any]:
    """The labels and other fields of a manifest's row.

    Raises:
      InputError: no label, or a value outside the vocabulary.
    """
    row: dict[str, Any] = {}
    if votes:
        counts = np.zeros(len(schema.EMOTIONS) + 1)  # the last: outside the seven
        for column, index in votes.items():
            counts[index] += _number(entry[column] or "0", float, column, least=0)
        inside = counts[:-1]
        if counts[-1] >= inside.max() or inside.sum() <= 0:
            raise InputError("most votes are for none of the seven emotions")
        row["emotion"] = int(inside.argmax())
        row["emotion_probabilities"] = (inside / inside.sum()).astype(np.float32)
        row["label_confidence"] = float(inside.max() / counts.sum())
    elif word := entry.get("emotion") or entry.get("label"):
        if not entry.get("emotion") and schema.is_interest(word):
            row["interest"] = schema.interest_index(word)
        else:
            row["emotion"] = emotion(word, labels)
    if word := entry.get("interest"):
        row["interest"] = schema.interest_index(word)
    if not row:
        raise InputError("no label")
    for name, kind in PLAIN.items():
        cell = entry.get(name)
        if cell and (kind is str or cell.lower() != "nan"):
            least, most = LIMITS.get(name, (-math.inf, math.inf))
            row[name] = _number(cell, kind, name, least, most)
    if entry.get("orig_split"):
        row["_given"] = entry["orig_split"]
    if "gender" in row:
        row["gender"] = schema.gender(row["gender"])
    if entry.get("x") and entry.get("y"):
        row["_box"] = _box(entry)
    return row


def _box(entry: Entry) -> tuple[float, float, float, float]:
    x, y = (_number(entry[name], float, name) for name in ("x", "y"))
    width, height = (
        _number(entry[size], float, size)
        if entry.get(size)
        else _number(entry.get(end) or str(start), float, end) - start
        for size, end, start in (("width", "right", x), ("height", "bottom", y))
    )
    if not (0 < width < np.inf and 0 < height < np.inf and np.isfinite(x + y)):
        raise InputError("its box has no positive width and height")
    return x, y, width, height


def emotion(word: str, labels: Mapping[str, str]) -> int:
    """The index of an emotion, by its name or by a layout's code.

    Raises:
      InputError: it is none of the seven.
    """
    code = word.strip().upper()
    number = re.fullmatch(r"0*(\d+)(\.0*(E\+00)?)?", code)
    meant = labels.get(code) or (number and labels.get(number[1]))
    if not meant and number and not labels:
        raise InputError(f"'{word}' is a number: --layout says whose ({', '.join(LAYOUTS)})")
    if meant and meant not in schema.EMOTIONS:
        raise InputError(f"'{meant}' is not an emotion of the seven")
    return schema.emotion_index(meant or word)


def _accepts(function: Callable[..., Any], *values: Any) -> bool:
    try:
        function(*values)
    except InputError:
        return False
    return True


def _number(
    text: str, kind: Any, column: str, least: float = -math.inf, most: float = math.inf
) -> Any:
    """A cell as text or as a number; its decimals may follow a comma."""
    if kind is str:
        return text
    try:
        number = float(text.replace(",", "."))
    except ValueError as error:
        raise InputError(f"{column} is not a number") from error
    if not least <= number <= most or not math.isfinite(number) or kind(number) != number:
        what = "a whole number" if kind is int else "a number"
        limits = f" of at least {least:,}" if least > -math.inf else ""
        limits += f" and at most {most:,}" if most < math.inf else ""
        raise InputError(f"{column} is not {what}{limits}")
    return kind(number)


def _matches(pattern: str, paths: list[str]) -> dict[str, re.Match[str]]:
    """The paths that end with a pattern."""
    whole = re.compile(rf"(?:.*/)?(?:{pattern})", re.IGNORECASE | re.DOTALL)
    return {path: named for path in paths if pattern and (named := whole.fullmatch(path))}


def _class_folder(path: str) -> str:
    """The folder of a file if it is named after an emotion, else ""."""
    folder = PurePosixPath(path).parent.name
    return folder if _accepts(schema.emotion_index, folder) else ""


def _tables(source: Source, layout: Layout) -> dict[str, re.Match[str]]:
    found = _matches(layout.table, source.files)
    header = layout.header.encode()
    return {p: named for p, named in found.items() if header in source.read(p, MAX_CSV_BYTES, 200)}


def _recognize(source: Source) -> str:
    """The published layout that a source has, or ""."""
    endings = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    media = [name for name in source.files if name.lower().endswith(endings)]
    for name, layout in LAYOUTS.items():
        if _tables(source, layout):
            return name
        named = _matches(layout.file, media)
        # Without its labels a collection may have been sorted into class folders.
        has_labels = not layout.label_file or _matches(layout.label_file, source.files)
        if not has_labels and not any(map(_class_folder, named)):
            continue
        if len(named) * 2 > len(media):
            return name
    return ""


def _from_layout(source: Source, name: str) -> Labelled | None:
    """Labels files as a published collection does; None if it has none of its files."""
    layout = LAYOUTS[name]
    codes = ", ".join(f"{code} {meant}" for code, meant in layout.labels.items())
    note = f"labels as published with '{name}' ({codes}), from "
    tables = _tables(source, layout)
    if tables:
        entries = [
            entry for table in tables.values() for entry in _read_table(source, table, layout)
        ]
        files = [path for path in source.files if path not in tables]
        listed = " and ".join(tables)
        variant, folder = layout.variant, _folder(source)
        found = _match(files, entries, {}, layout.labels, listed, folder, variant=variant)
        return Labelled(*found, list(tables), note + listed)
    named = _matches(layout.file, source.files)
    label_files = _matches(layout.label_file, source.files)
    groups = (re.compile(pattern).groupindex for pattern in (layout.file, layout.label_file))
    shared = set.intersection(*map(set, groups))
    of_key = {_key(label_file, shared): label_file for label_file in label_files.values()}
    others = [path for path in source.files if path not in named and path not in label_files]
    rows, skipped = [], [(path, "its name is not as published") for path in others]
    for path, match in named.items():
        try:
            entry: Entry = match.groupdict()
            if label_files:
                entry["label"] = _read_label(source, match, of_key.get(_key(match, shared)), layout)
            elif layout.label_file:
                entry["label"] = PurePosixPath(path).parent.name
            row = {"_path": path} | read_entry(entry, {}, layout.labels)
            folder = _class_folder(path)
            if folder and schema.emotion_index(folder) != row.get("emotion"):
                raise InputError(f"its name is of another emotion than its folder '{folder}'")
            if "clip_id" in row:
                row["clip_id"] = f"{row['subject_id']}/{row['clip_id']}"
            rows.append(row)
        except InputError as error:
            skipped.append((path, str(error)))
    return Labelled(rows, skipped, list(label_files), f"{note}file names") if named else None


def _key(named: re.Match[str], groups: Collection[str]) -> tuple[str, ...]:
    return tuple(named[group].lower() for group in sorted(groups))


def _read_table(source: Source, table: re.Match[str], layout: Layout) -> list[Entry]:
    data = source.read(table[0], MAX_CSV_BYTES)
    if not layout.columns:
        return [entry | table.groupdict() for entry in read_manifest(data, table[0])[0]]
    lines = [line.split() for line in data.decode(errors="replace").splitlines()]
    entries = [dict(zip(layout.columns, line, strict=False)) for line in lines if line]
    # The part is in the names of the pictures, where it is published.
    return [e | {"orig_split": part(e["path"].rpartition("/")[2])} for e in entries]


def _read_label(
    source: Source, named: re.Match[str], file: re.Match[str] | None, layout: Layout
) -> str:
    """The label of a picture in a file of its own: text, or an array of one value."""
    if file is None:
        raise InputError("no label is published for it")
    if layout.last and not 0 <= int(file["last"]) - int(named["frame_index"]) < layout.last:
        raise InputError(f"not one of the last {layout.last} frames of its sequence")
    data = source.read(file[0], MAX_LABEL_BYTES)
    try:
        if data.startswith(b"\x93NUMPY"):
            return str(np.load(io.BytesIO(data), allow_pickle=False).item())
        return data.decode().strip()
    except (ValueError, EOFError, OSError) as error:
        raise InputError("its label file cannot be read") from error


def part(name: str) -> str:
    """The part that a name begins with ("Train_Aligned_Faces", "test_0001.jpg"), or ""."""
    word = re.split(r"[^a-z]+", name.lower())[0]
    return word if _accepts(splits.given, word) else ""


def _from_folders(
    source: Source, labels: Mapping[str, str], subject_from: str | None, protocol: str
) -> Labelled:
    """.../label/file: the label is a folder, a part's and a person's may be above or below it."""
    rows, skipped = [], []
    places: list[tuple[tuple[str, ...], int]] = []  # folders, and which of them is the label
    parents = {path: PurePosixPath(path).parent.parts for path in source.files}
    names = {folder for folders in parents.values() for folder in folders}
    emotions = {folder for folder in names if _accepts(emotion, folder, labels)}
    for path, folders in parents.items():
        label = max((i for i, folder in enumerate(folders) if folder in emotions), default=-1)
        try:
            if not folders:
                raise InputError("no class folder and no manifest")
            row: dict[str, Any] = {"_path": path, "emotion": emotion(folders[label], labels)}
        except InputError as error:
            skipped.append((path, str(error)))
            continue
        others = [folder for i, folder in enumerate(folders) if i != label]
        given = next(filter(None, map(part, reversed(others))), "")
        if given or label:
            row["_given"] = given or folders[label - 1]
        rows.append(row)
        places.append((folders, label))
    if not rows:
        hint = "; --layout says what numbers mean" if any(map(str.isdecimal, names)) else ""
        raise InputError(
            f"no file is in a folder named after an emotion, there is no {MANIFEST}, and no "
            f"published layout is recognized{hint}; {outline(source.files)}; put the pictures into "
            f"folders such as 'anger' and 'happiness', or see {PAGE}"
        )
    distance, note = _find_person(places, subject_from, protocol)
    for row, (folders, label) in zip(rows, places, strict=True):
        place = label + distance
        if distance and 0 <= place < len(folders) and not part(folders[place]):
            row["subject_id"] = folders[place]
    return Labelled(rows, skipped, [], f"labels from class folders{note}")


def _find_person(
    places: Sequence[tuple[tuple[str, ...], int]], subject_from: str | None, protocol: str
) -> tuple[int, str]:
    """How far the person's folder is below the label's (0: there is none), and a note.

    Raises:
      InputError: folders may be people's, and a split by people needs to know.
    """
    names: dict[int, set[str]] = collections.defaultdict(set)  # by the distance
    for folders, label in places:
        for i, folder in enumerate(folders):
            if i != label and not part(folder):
                names[i - label].add(folder)
    several = {distance: found for distance, found in names.items() if len(found) > 1}
    listed = {d: f"{len(found)} folders such as '{min(found)}'" for d, found in names.items()}
    if subject_from == "folder":
        if not names:
            raise InputError("--subject_from=folder has no effect: no folder can be a person's")
        # The nearest above, where there is one.
        nearest = min(names, key=lambda distance: (distance > 0, abs(distance)))
        return nearest, f"; {listed[nearest]} are read as people"
    people = [d for d in several if all(PERSON_LIKE.fullmatch(n.lower()) for n in several[d])]
    if subject_from == "none" or not several:
        return 0, ""
    if len(people) == 1:
        note = f"; {listed[people[0]]} are read as people (--subject_from=none if they are not)"
        return people[0], note
    if protocol in ("grouped", "folds"):
        raise InputError(
            f"{' and '.join(listed[d] for d in several)} may be people, who must not be in several "
            "parts; add --subject_from=folder if they are (the folder above the emotion's, else "
            "the one below it), --subject_from=none if not, or name people in a manifest"
        )
    return 0, ""
