"""NeuroBioSense: faces in clips of people watching advertisements."""

import argparse
import collections
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from data_builders.neurobiosense import participants
from data_builders.neurobiosense.participants import Table, Watched, category_name, plain
from fer_jax import schema, storage
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder, files_in, outline, protocols
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media import extraction, images
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
ORDERS = ("auto", "participant_ad", "ad_participant")
METADATA = "metadata.csv"
METADATA_COLUMNS = {"video_id", "participant_id", "category", "reaction_type"}

PARTICIPANT_LIKE = re.compile(r"(p|participants?|part|subjects?|sub|s|person|user)?[ _.-]*\d+")
AD_LIKE = re.compile(
    r"(ads?|adverts?|advertisements?|commercials?|videos?)([ _.-]*\d+|[ _.-]+\w+)?|[av][ _.-]*\d+"
)
# Of a plain name: a number or a letter that counts advertisements, unlike "nike".
AD_CODE = re.compile(rf"({'|'.join(participants.AD_WORDS)})_?(\d+|[a-z])")
PERSON = participants.meaning(participants.PERSON_WORDS)
AD = participants.meaning(participants.AD_WORDS)
LAYOUT = "category/participant/advertisement/letter/"


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
        parser.add_argument(
            "--table",
            type=Path,
            help=f"of the participants; default: {participants.TABLE_NAME}.xlsx, .xls or .csv",
        )
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
        listing = files_in(source)
        if not listing.files:
            raise InputError(f"'{source}' holds no file that can be read")
        found = _labelled_clips(listing.files, source, options)
        rows = found.rows
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
        ignored = {"read as a table": len(found.tables), "a system file": len(listing.ignored)}
        skipped = found.skipped + listing.skipped + outside
        return Inputs(rows, skipped, settings, ignored, found.remarks)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        return self.examples(rows)


class Clips(NamedTuple):
    """The clips of a source: rows of `Inputs`, and what became of the other files."""

    rows: list[dict[str, Any]]
    skipped: list[tuple[str, str]]
    tables: list[str]
    remarks: list[tuple[str, str]]


def _labelled_clips(files: list[str], source: Path, options: argparse.Namespace) -> Clips:
    """The clips with what metadata.csv, or the folders and the participants' table, say of them."""
    parts = splits.content_parts(options.content_parts)
    categories = [group for groups in parts.values() for group in groups]
    if METADATA in files:
        if options.table or options.order != "auto":
            raise InputError(f"--table and --order cannot act: {METADATA} says what the clips show")
        others = [PurePosixPath(name) for name in files if name != METADATA]
        rows, skipped = _from_metadata(others, source / METADATA, categories)
        return Clips(rows, skipped, [METADATA], [])
    name = "" if options.table else participants.find_table(files)
    beside = sorted(path.name for path in source.parent.glob("*") if path.is_file())
    given = options.table or (source / name if name else None)
    if given is None and (outside := participants.find_table(beside)):
        given = source.parent / outside
    if given is not None and given.resolve().is_relative_to(source.resolve()):
        name = given.resolve().relative_to(source.resolve()).as_posix()
    known, skipped = _from_folders([n for n in files if n != name], categories)
    folders = {folder for _, names in known for folder in names[1:3]}
    table = participants.read_participants(given, folders, categories) if given else None
    rows = _rows(known, table, options.order, categories, skipped)
    _name_stimuli(rows)
    remarks = _add_table(rows, table, options.numbered_per_category, files) if rows else []
    return Clips(rows, skipped, [name] if name else [], remarks)


def _add_table(
    rows: list[dict[str, Any]], table: Table | None, numbered_per_category: bool, files: list[str]
) -> list[tuple[str, str]]:
    """Adds what the table says to the rows, and prints how it was read; returns the remarks."""
    if table is None:
        sheets = [n for n in files if PurePosixPath(n).suffix.lower() in (".xlsx", ".xls")]
        remedy = f"; name one with --table, such as {sheets[0]}" if sheets else ""
        print(
            f"note: no {participants.TABLE_NAME}.xlsx, .xls or .csv was found: interest, gender "
            f"and age are unknown{remedy}"
        )
        return []
    watched: dict[Watched, list[str]] = collections.defaultdict(list)
    for row in rows:
        watched[row["_watched"]].append(row["_clip"])
    known, remarks = participants.match(table, watched, numbered_per_category=numbered_per_category)
    for row in rows:
        row |= known.get(row["_watched"], {})
    print("\n  ".join([f"{table.name}: {table.notes[0]}", *table.notes[1:]]))
    return remarks


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


def _category(text: str, accepted: Iterable[str]) -> str:
    name = category_name(text)
    if name not in accepted:
        raise InputError(f"'{text}' is no category of the protocol{did_you_mean(name, accepted)}")
    return name


def _emotion(letter: str) -> int:
    try:
        return schema.emotion_index(LETTERS.get(letter.strip().lower(), letter))
    except InputError as error:
        raise InputError(
            f"'{letter}' is not an emotion; valid are {', '.join(map(str.upper, LETTERS))}"
        ) from error


def _from_folders(
    files: list[str], categories: list[str]
) -> tuple[list[tuple[PurePosixPath, tuple[str, ...]]], list[tuple[str, str]]]:
    """.../category/participant/ad/letter/clip, or ad/participant: the clips with these folders."""
    known, skipped = [], []
    for path in map(PurePosixPath, files):
        folders = path.parent.parts
        named = [i for i, folder in enumerate(folders) if category_name(folder) in categories]
        # A folder in a category's place is taken for a category that the protocol does not have.
        start = named[-1] if named else len(folders) - 4
        if start < 0 or len(folders) - start != 4:
            skipped.append((path.as_posix(), f"not in folders {LAYOUT}"))
        elif images.is_still(path.name):
            skipped.append((path.as_posix(), "a picture, not a clip"))
        else:
            known.append((path, folders[start:]))
    if not known:
        raise InputError(
            f"no clip lies in {LAYOUT}, and there is no metadata.csv; point --source at the folder "
            f"of the categories; {outline(files)}; see data_builders/neurobiosense/README.md"
        )
    return known, skipped


def _rows(
    known: list[tuple[PurePosixPath, tuple[str, ...]]],
    table: Table | None,
    order: str,
    categories: list[str],
    skipped: list[tuple[str, str]],
) -> list[dict[str, Any]]:
    """The rows of clips in category/participant/ad/letter/; others are added to `skipped`."""
    orders = _participant_first({(one, two) for _, (_, one, two, _) in known}, table, order)
    folders = {pair[not first] for pair, first in orders.items() if first is not None}
    person = participants.meaning(participants.PERSON_WORDS, folders)
    rows, num_clips = [], collections.Counter()
    for path, (category, second, third, letter) in known:
        first = orders[second, third]
        num_clips[first] += 1
        participant, ad = (second, third) if first else (third, second)
        try:
            if first is None:
                raise InputError(
                    f"cannot tell participant from advertisement ('{second}/{third}'), and other "
                    "clips lie in both orders; rename a folder, such as to 'P1' or 'Ad 1'"
                )
            row = {
                "_path": path,
                "content": _category(category, categories),
                "subject_id": _participant(participant, person),
                "emotion": _emotion(letter),
            }
        except InputError as error:
            skipped.append((path.as_posix(), str(error)))
            continue
        words = [row["content"], row["subject_id"], plain(ad), letter.lower(), path.stem]
        row["_clip"] = "/".join(words)
        row["_watched"] = Watched(row["content"], participant, ad)
        rows.append(row)
    if num_clips[True] and num_clips[False]:
        print(
            f"note: {num_clips[True]} clips lie in participant/advertisement/, "
            f"{num_clips[False]} in advertisement/participant/"
        )
    return rows


def _participant(name: str, person: participants.Meaning = PERSON) -> str:
    """A participant's name in records."""
    meant = person(name)
    return f"p{int(meant):02}" if meant.isdecimal() else meant


def _participant_first(
    pairs: set[tuple[str, str]], table: Table | None, order: str
) -> dict[tuple[str, str], bool | None]:
    """Whether the participant's folder holds the advertisement's, for each pair of folders.

    A pair that does not show it is as all others are, or None where those differ.
    """
    if order != "auto":
        return dict.fromkeys(pairs, order == "participant_ad")
    people = {PERSON(row.participant) for row in table.rows} if table else set()
    ads = {AD(row.ad) for row in table.rows} if table else set()

    def is_like(pattern: re.Pattern[str], name: str) -> bool:
        return pattern.fullmatch(name.strip().lower()) is not None

    # Signs of a participant's name, the most certain one first.
    signs: list[Callable[[str], bool]] = [
        lambda name: is_like(PARTICIPANT_LIKE, name) and not name.isdecimal(),
        lambda name: not is_like(AD_LIKE, name),
        lambda name: PERSON(name) in people and AD(name) not in ads,
        lambda name: is_like(PARTICIPANT_LIKE, name),
    ]
    found: dict[tuple[str, str], bool | None] = {}
    for second, third in pairs:
        shown = ((sign(second), sign(third)) for sign in signs)
        found[second, third] = next((one for one, two in shown if one != two), None)
    seen = set(found.values()) - {None}
    if not seen:
        second, third = min(pairs)
        raise InputError(
            f"cannot tell participants from advertisements (folders such as '{second}' hold "
            f"folders such as '{third}'); say --order=participant_ad or ad_participant"
        )
    return dict.fromkeys(pairs, seen.pop()) if len(seen) == 1 else found


def _name_stimuli(rows: list[dict[str, Any]]) -> None:
    """Adds the advertisements' ids; prints which are in several categories.

    One name is one advertisement, filed several times, unless the categories count theirs alike:
    then there are about as many codes as one category has, and not as all of them together have.
    """
    ads: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        ads[row["content"]].add(plain(row["_watched"].ad))
    num_categories = collections.Counter(ad for own in ads.values() for ad in own)
    several = sorted(ad for ad, count in num_categories.items() if count > 1)
    codes = {ad for ad in num_categories if AD_CODE.fullmatch(ad)}
    sizes = [len(own & codes) for own in ads.values()]
    counted_alike = 2 * len(codes) < sum(sizes) + max(sizes, default=0)
    for row in rows:
        ad = plain(row["_watched"].ad)
        row["stimulus_id"] = f"{row['content']}/{ad}" if counted_alike and ad in codes else ad
    filed = [ad for ad in several if not (counted_alike and ad in codes)]
    if counted_alike:
        print(
            f"note: every category counts its advertisements from the start; '{min(codes)}' of two "
            "categories is taken for two advertisements"
        )
    if filed:
        print(
            f"note: {len(filed)} advertisements, such as '{filed[0]}', are filed under several "
            "categories"
        )


def _from_metadata(
    files: list[PurePosixPath], metadata: Path, categories: list[str]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """category/participant/clip, with metadata.csv."""
    header, entries = storage.read_rows(metadata.read_bytes(), str(metadata))
    names = {column: "_".join(column.lower().split()) for column in header}
    if missing := METADATA_COLUMNS - set(names.values()):
        has = ", ".join(header) or "none"
        raise InputError(f"'{metadata}' lacks the columns {', '.join(sorted(missing))}; has {has}")
    entries = [{names[column]: cell.strip() for column, cell in e.items()} for e in entries]
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
            what = {category_name(folder) for folder in path.parent.parts}
            candidates = [c for c in candidates if category_name(c["category"]) in what]
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


def _labelled(path: PurePosixPath, entry: dict[str, str], categories: list[str]) -> dict[str, Any]:
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
