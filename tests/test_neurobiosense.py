"""Both layouts, either order of folders, and what the spreadsheet says become the same records."""

import argparse
import collections
import csv
import io
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openpyxl
import pytest
import xlwt

from data_builders.neurobiosense import neurobiosense_dataset_builder as neurobiosense
from fer_jax.__main__ import main
from fer_jax.data.builder import Inputs
from fer_jax.data.records import build_summary, open_records
from fer_jax.errors import InputError
from fer_jax.schema import EMOTIONS

WriteVideo = Callable[..., Path]
CATEGORIES = ("Food and Market", "Cosmetics and Fashion", "Car and Technology")
TABLE = "Participant_demographic_information.xlsx"
HEADER = ("Participant ID", "Gender", "Age", "INTERESTED IN")


def planned(source: Path, *words: str, protocol: str = "folds") -> Inputs:
    parser = argparse.ArgumentParser()
    neurobiosense.Builder.add_arguments(parser)
    flags = [f"--source={source}", "--detector=none", "--folds=2", *words]
    options = parser.parse_args(flags)
    return neurobiosense.Builder(config=protocol, options=options, data_dir=source).inputs


def by_clip(plan: Inputs) -> dict[str, dict[str, Any]]:
    return {row["record_id"].removeprefix("neurobiosense/"): row for row in plan.rows}


def touch(source: Path, *names: str) -> Path:
    """Files that are there; a plan decodes none of them."""
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    return source


def people(source: Path, *names: str, category: str = "Food and Market") -> Path:
    """A clip of each of these participants watching each of two advertisements."""
    return touch(source, *(f"{category}/{n}/Ad {ad}/J/c.mp4" for n in names for ad in (1, 2)))


def sheet(file: Path, *rows: tuple[Any, ...], header: tuple[Any, ...] = HEADER) -> Path:
    book = openpyxl.Workbook()
    page = book.active
    assert page is not None
    for row in (header, *rows):
        page.append(row)
    file.parent.mkdir(parents=True, exist_ok=True)
    book.save(file)
    return file


def metadata(source: Path, *rows: tuple[str, ...]) -> Path:
    text = io.StringIO()
    header = ("video_id", "participant_id", "category", "reaction_type")
    csv.writer(text).writerows([header, *rows])
    (source / "metadata.csv").write_text(text.getvalue(), "utf-8")
    return source


def test_a_clips_folders_say_all_of_it(tmp_path: Path):
    letters = ("J", "SA", "a", "D", "su", "N", "F")
    names = [
        f"Food and Market/Participant {number}/Ad {number}/{letter}/x.MP4"
        for number, letter in enumerate(letters, 1)
    ]
    rows = by_clip(planned(touch(tmp_path, *names)))
    emotions = ("happiness", "sadness", "anger", "disgust", "surprise", "neutral", "fear")
    for number, (letter, emotion) in enumerate(zip(letters, emotions, strict=True), 1):
        row = rows[f"food_market/p{number:02}/ad_{number}/{letter.lower()}/x"]
        assert EMOTIONS[row["emotion"]] == emotion
        assert row["subject_id"] == f"neurobiosense/p{number:02}"
        assert row["stimulus_id"] == f"ad_{number}"
        assert (row["content"], row["source"]) == ("food_market", "controlled")
        assert row["clip_id"] == row["record_id"] == row["_job"].item
        assert Path(row["_job"].path) == tmp_path / names[number - 1]


def test_ids_are_the_same_whichever_way_round_and_from_wherever(tmp_path: Path):
    clips = [(c, p, a) for c in range(3) for p in (1, 2) for a in (1, 2, 3)]
    plans = []
    for folder, pattern in (
        ("plain", "{c}/Participant {p}/Ad {a}/J/x.mp4"),
        ("titled", "Advertisement Categories/{c}/Participant {p}/Ad {a}/J/x.mp4"),
        ("swapped", "{c}/Ad {a}/Participant {p}/J/x.mp4"),
        ("terse", "{c}/P{p:03}/ad_{a}/j/x.MP4"),
        ("terse_swapped", "Advertisement categories/{c}/AD{a:02}/p{p}/J/x.avi"),
        ("numbers", "{c}/{p}/Ad {a}/J/x.mp4"),
        ("numbers_swapped", "{c}/ad-{a}/{p}/J/x.mp4"),
    ):
        names = [pattern.format(c=CATEGORIES[c], p=2 * c + p, a=a) for c, p, a in clips]
        plans.append(by_clip(planned(touch(tmp_path / folder, *names))))
    assert len(plans[0]) == 18 and "car_tech/p06/ad_3/j/x" in plans[0]
    for plan in plans[1:]:
        assert plan.keys() == plans[0].keys()
        for clip, row in plan.items():
            for key in ("subject_id", "stimulus_id", "content", "emotion", "split"):
                assert row[key] == plans[0][clip][key]
    inner = planned(tmp_path / "titled" / "Advertisement Categories")
    assert by_clip(inner).keys() == plans[0].keys()


@pytest.mark.parametrize(
    ("second", "third", "participant_first"),
    [
        (("Participant 1", "Participant 2"), ("Ad 1", "Ad 2"), True),
        (("Ad 1", "Ad 2"), ("Participant 1", "Participant 2"), False),
        (("P01", "P02"), ("Coca Cola", "Nike"), True),
        (("Coca Cola", "Nike"), ("P01", "P02"), False),
        (("s1", "s2"), ("v1", "v2"), True),
        (("1", "2"), ("ad1", "ad2"), True),
        (("ad1", "ad2"), ("1", "2"), False),
        (("1", "2"), ("Nike", "Puma"), True),
        (("Nike", "Puma"), ("1", "2"), False),
        (("Anna", "Ben"), ("Advert A", "Advert B"), True),
        (("user 7", "user 8"), ("7", "8"), True),
    ],
)
def test_the_order_is_seen_from_the_names(
    second: tuple[str, ...], third: tuple[str, ...], participant_first: bool
):
    pairs = {(a, b) for a in second for b in third}
    for order, expected in (
        ("auto", participant_first),
        ("participant_ad", True),
        ("ad_participant", False),
    ):
        found = neurobiosense._participant_first(pairs, None, order)
        assert found == dict.fromkeys(pairs, expected)


def test_where_names_do_not_tell_the_spreadsheet_does_and_else_a_person(tmp_path: Path):
    source = touch(
        tmp_path / "x", *(f"Food and Market/{p}/{a}/J/x.mp4" for p in (11, 12) for a in (1, 2))
    )
    with pytest.raises(InputError, match=r"cannot tell participants .*'11' .*'1'.*; say --order="):
        planned(source)
    assert "food_market/p11/2/j/x" in by_clip(planned(source, "--order=participant_ad"))
    assert "food_market/p02/11/j/x" in by_clip(planned(source, "--order=ad_participant"))
    sheet(source / TABLE, (11, "f", 30, "yes"), (12, "m", 31, "no"))
    assert "food_market/p11/2/j/x" in by_clip(planned(source))
    sheet(source / TABLE, (1, "f", 30, "yes"), (2, "m", 31, "no"))
    assert "food_market/p02/11/j/x" in by_clip(planned(source))


def test_each_clip_of_a_source_with_both_orders_is_read_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = [f"Food and Market/P0{p}/Ad {a}/J/c.mp4" for p in (1, 2) for a in (1, 2)]
    names += [f"Cosmetics and Fashion/Nike/P0{p}/J/c.mp4" for p in (3, 4)]
    names += ["Car and Technology/12/1/J/c.mp4", "Car and Technology/2/11/J/c.mp4"]
    source = touch(tmp_path / "x", *names, "Car and Technology/2/1/J/c.mp4")
    clear = {f"food_market/p0{p}/ad_{a}/j/c" for p in (1, 2) for a in (1, 2)}
    clear |= {f"cosmetics_fashion/p0{p}/nike/j/c" for p in (3, 4)}
    plan = planned(source)
    assert by_clip(plan).keys() == clear
    unclear = "Car and Technology/2/1/J/c.mp4"
    assert len(plan.skipped) == 3 and dict(plan.skipped)[unclear].startswith(
        "cannot tell participant from advertisement ('2/1'), and other clips lie in both orders"
    )
    assert "note: 4 clips lie in participant/advertisement/, 2 in advertisement/participant/" in (
        capsys.readouterr().out
    )
    # Participants 1, 2, 11 and 12 and advertisements 1 and 2: two pairs are one way round only.
    rows = [(p, a, "f", 30, "yes") for p in (1, 2, 11, 12) for a in (1, 2)]
    header = ("Participant", "Ad", *HEADER[1:])
    sheet(source / TABLE, *rows, header=header)
    plan = planned(source)
    assert by_clip(plan).keys() == clear | {"car_tech/p12/1/j/c", "car_tech/p11/2/j/c"}
    assert [item for item, _ in plan.skipped] == [unclear]
    num_files = sum(path.is_file() for path in source.rglob("*"))
    assert num_files == len(plan.rows) + len(plan.skipped) + sum(plan.ignored.values())


@pytest.mark.parametrize(
    ("ads", "filed", "alike"),
    [
        # Of three categories, an advertisement is filed under two.
        (({"A1", "A2"}, {"A1", "A3"}, {"A4"}), {"a_1"}, False),
        (({"Nike", "Puma"}, {"nike"}, {"Audi"}), {"nike"}, False),
        (({"A1", "A2"}, {"A3", "A4"}, {"A5", "A6"}), set(), False),
        # Each category counts from the start.
        (({"A1", "A2"}, {"A01", "A02"}, {"A1", "A2", "A3"}), set(), True),
        (({"Ad A", "Ad B", "Nike"}, {"Ad A", "Ad B"}, {"Ad A", "Nike"}), {"nike"}, True),
    ],
)
def test_an_advertisement_that_is_filed_under_two_categories_has_one_id(
    tmp_path: Path,
    ads: tuple[set[str], ...],
    filed: set[str],
    alike: bool,
    capsys: pytest.CaptureFixture[str],
):
    names = [
        f"{category}/P{number}/{ad}/J/c.mp4"
        for number, (category, own) in enumerate(zip(CATEGORIES, ads, strict=True))
        for ad in own
    ]
    rows = planned(touch(tmp_path, *names)).rows
    contents = collections.defaultdict(set)
    for row in rows:
        contents[row["stimulus_id"]].add(row["content"])
    assert {ad for ad, content in contents.items() if len(content) > 1} == filed
    printed = capsys.readouterr().out
    assert ("every category counts its advertisements from the start" in printed) is alike
    said = f"note: {len(filed)} advertisements, such as '{min(filed, default='')}', are filed under"
    assert (said in printed) is bool(filed)


def test_what_the_spreadsheet_knows_of_people(tmp_path: Path):
    source = people(
        tmp_path / "x" / "categories", "Participant 1", "Participant 2", "Participant 3"
    )
    people(source, "Participant 4", category="Car and Technology")
    sheet(
        tmp_path / "x" / TABLE,  # beside the folder of the categories
        ("1", "Female", 31, "Yes"),
        (2.0, "M", "24", "No"),
        ("Participant 03", "", "unknown", ""),
        (9, "male", 50, "yes"),
    )
    rows = by_clip(planned(source))
    told = {
        row["subject_id"][-3:]: (row.get("gender"), row.get("age"), row.get("interest"))
        for row in rows.values()
    }
    assert told == {
        "p01": ("female", 31.0, 1),
        "p02": ("male", 24.0, 0),
        "p03": ("", -1.0, -1),
        "p04": (None, None, None),
    }


# Of a participant who watched "Ad 1" and "Ad 2" of food_market.
@pytest.mark.parametrize(
    ("cell", "interest"),
    [
        ("Yes", (1, 1)),
        ("no", (0, 0)),
        ("Y", (1, 1)),
        ("N", (0, 0)),
        (1, (1, 1)),
        (0, (0, 0)),
        (1.0, (1, 1)),
        (True, (1, 1)),
        (False, (0, 0)),
        ("interested", (1, 1)),
        ("Not interested", (0, 0)),
        ("none", (0, 0)),
        ("Ad 1", (1, 0)),
        ("ad1, ad2", (1, 1)),
        ("Ad 2; Ad 9", (0, 1)),
        ("Ad 2/Ad 1", (1, 1)),
        ("Ad 1 and Ad 2", (1, 1)),
        ("advertisement 02", (0, 1)),
        ("2, 3", (0, 1)),
        ("1,2", (1, 1)),
        ("Food and Market", (1, 1)),
        ("Car and Technology, food market", (1, 1)),
        ("Car & Technology", (0, 0)),
        ("car_tech", (0, 0)),
        ("Ad 9", (-1, -1)),  # there is no such advertisement
        ("maybe", (-1, -1)),
        ("n/a", (-1, -1)),
        (None, (-1, -1)),
    ],
)
def test_interest_is_read_from_many_forms(tmp_path: Path, cell: Any, interest: tuple[int, int]):
    source = people(tmp_path / "x", "P1", "P2")
    people(source, "P3", category="Car and Technology")
    sheet(source / TABLE, (1, "f", 30, cell))
    rows = by_clip(planned(source))
    found = tuple(rows[f"food_market/p01/ad_{ad}/j/c"]["interest"] for ad in (1, 2))
    assert found == interest
    assert "interest" not in rows["food_market/p02/ad_1/j/c"]


@pytest.mark.parametrize("ads", [("Ad 1", "Ad 2"), (1, 2), ("ad01", "AD 02"), ("1", 2.0)])
def test_a_row_per_participant_and_advertisement(tmp_path: Path, ads: tuple[Any, Any]):
    source = people(tmp_path / "x", "P1", "P2")
    header = ("S. No.", "Participant Name", "Ad No", "Sex", "Age (years)", "Interested in")
    rows = [(1, "P1", ads[0], "F", 20, "yes"), (2, "P1", ads[1], "F", 20, "no")]
    rows.append((3, "P2", ads[1], "M", 33, "yes"))
    sheet(source / TABLE, *rows, header=header)
    interests = {clip: row["interest"] for clip, row in by_clip(planned(source)).items()}
    assert interests == {
        "food_market/p01/ad_1/j/c": 1,
        "food_market/p01/ad_2/j/c": 0,
        "food_market/p02/ad_1/j/c": -1,
        "food_market/p02/ad_2/j/c": 1,
    }
    assert by_clip(planned(source))["food_market/p02/ad_1/j/c"]["age"] == 33


def test_rows_that_contradict_each_other_say_nothing(tmp_path: Path):
    source = people(tmp_path / "x", "P1", "P2")
    sheet(
        source / TABLE,
        *((1, "f", 30, "yes"), (1, "m", 30, "no"), (2, "", 41, ""), (2, "f", 999, "no")),
    )
    rows = by_clip(planned(source))
    told = [rows[f"food_market/p0{n}/ad_1/j/c"] for n in (1, 2)]
    # Several rows of a person and no column for the advertisement: each may be of any.
    assert [(r["gender"], r["age"], r["interest"]) for r in told] == [
        ("", 30, -1),
        ("female", 41, -1),
    ]


PUBLISHED = ("RECORD ID", "SUBJECT ID", "GENDER", "AGE", "AD CODE", "EMOTION", "INTERESTED IN")


def published(
    folder: Path, tree: str = "{category}/{person}/{ad}/{letter}/c.MP4"
) -> tuple[Path, dict[str, int]]:
    """The published tree of 6 people who watch two advertisements, and the interest of each."""
    right, names = {}, []
    for number in range(1, 7):
        category = CATEGORIES[number % 3]
        for ad in (1, 2):
            for letter in ("J", "SA"):
                words = {"category": category, "person": f"P{number:02}", "ad": f"A{ad:02}"}
                names.append(f"Advertisement Categories/{tree.format(letter=letter, **words)}")
                content = neurobiosense.category_name(category)
                clip = f"{content}/p{number:02}/a_{ad}/{letter.lower()}/c"
                right[clip] = int((number + ad) % 2)
    return touch(folder, *names), right


def rows_of_people(
    person: str = "P{:02}", ad: str = "A{:02}", words: tuple[str, str] = ("no", "Yes")
) -> list[tuple[Any, ...]]:
    return [
        (
            *(2 * number + ad_number - 2, person.format(number), "FM"[number % 2], 20 + number),
            *(ad.format(ad_number), "J %50 SA %50", words[(number + ad_number) % 2]),
        )
        for number in range(1, 7)
        for ad_number in (1, 2)
    ]


def write_table(file: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]], how: str) -> Path:
    """A table whose person, gender and age are in each row, merged, or in a person's first row."""
    spanned = [i for i, name in enumerate(header) if name in ("SUBJECT ID", "GENDER", "AGE")]
    if how != "full":
        rows = [
            tuple(None if n % 2 and i in spanned else cell for i, cell in enumerate(row))
            for n, row in enumerate(rows)
        ]
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8-sig") as text:
            csv.writer(text, delimiter=";").writerows([header, *rows])
        return file
    if file.suffix == ".xls":
        book = xlwt.Workbook()
        page = book.add_sheet("Sheet")
        for n, row in enumerate([header, *rows]):
            for i, cell in enumerate(row):
                if how != "merged" or not n or i not in spanned:
                    page.write(n, i, cell)
                elif n % 2:
                    page.write_merge(n, n + 1, i, i, cell)
        book.save(file)
        return file
    book = openpyxl.Workbook()
    page = book.active
    assert page is not None
    for row in (header, *rows):
        page.append(row)
    for n in range(2, len(rows) + 2, 2) if how == "merged" else ():
        for i in spanned:
            page.merge_cells(start_row=n, end_row=n + 1, start_column=i + 1, end_column=i + 1)
    book.save(file)
    return file


def interests(plan: Inputs) -> dict[str, int]:
    return {clip: row["interest"] for clip, row in by_clip(plan).items()}


@pytest.mark.parametrize("how", ["full", "merged", "first row"])
@pytest.mark.parametrize("suffix", [".xlsx", ".xls", ".csv"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_published_table_labels_each_clip_as_its_row_says(
    tmp_path: Path, how: str, suffix: str, order: int, capsys: pytest.CaptureFixture[str]
):
    source, right = published(tmp_path)
    rows = [row[::order] for row in rows_of_people()]
    file = source / "Participant Data" / f"Participant_demographic_information{suffix}"
    write_table(file, PUBLISHED[::order], rows, "first row" if suffix == ".csv" else how)
    plan = planned(source)
    assert interests(plan) == right and plan.skipped == plan.remarks == []
    printed = capsys.readouterr().out
    assert "12 rows read, 24 clips matched, 0 clips without a row, 0 rows without a clip" in printed
    assert "columns not used: " + ", ".join(("RECORD ID", "EMOTION")[::order]) in printed
    filled = how == "first row" or suffix == ".csv"
    assert ("6 rows without a participant are taken for the one above" in printed) is filled
    for clip, row in by_clip(plan).items():
        number = int(clip.split("/")[1][1:])
        assert (row["age"], row["gender"]) == (20 + number, ("female", "male")[number % 2])


@pytest.mark.parametrize(
    ("person", "ad"),
    [("{}.0", "{}"), ("S{}", "Ad {}"), ("{:03}", "A{}"), ("Participant {}", "{}.0")],
)
@pytest.mark.parametrize("header", ["AD CODE", "AD", "Ad No.", "STIMULUS", "Advertisement_ID"])
@pytest.mark.parametrize(
    ("words", "interested"),
    [
        (("NO", "YES"), "INTERESTED IN (YES/NO)"),
        (("n", "y"), "Interested?"),
        (("0", "1.0"), "interested_in"),
    ],
)
def test_ids_are_compared_by_what_they_mean(
    tmp_path: Path, person: str, ad: str, header: str, words: tuple[str, str], interested: str
):
    source, right = published(tmp_path, "{category}/{ad}/{person}/{letter}/c.mp4")
    names = ("RECORD ID", "Subject_No", "Sex", "Age (years)", header, "EMOTION", interested)
    write_table(source / "data" / TABLE, names, rows_of_people(person, ad, words), "full")
    assert interests(planned(source)) == right


def test_a_table_that_does_not_match_labels_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, right = published(tmp_path)
    header = ("NO", "SUBJECT ID", "GENDER", "AGE", "AD CODE", "EMOTION", "INTERESTED IN")
    nothing = dict.fromkeys(right, -1)

    def labels(rows: list[tuple[Any, ...]], header: tuple[str, ...] = header) -> dict[str, int]:
        write_table(source / TABLE, header, rows, "full")
        plan = planned(source)
        return {clip: row.get("interest", -1) for clip, row in by_clip(plan).items()}

    assert labels(rows_of_people()) == right
    assert labels(rows_of_people("X{}")) == labels(rows_of_people(ad="B{}")) == nothing
    assert "12 rows read, 0 clips matched, 24 clips without a row, 12 rows without a clip" in (
        capsys.readouterr().out
    )
    # The advertisement is in no column that is known: a person's rows cannot be told apart.
    assert labels(rows_of_people(), (*header[:4], "FILM", *header[5:])) == nothing
    assert "0 clips matched, 24 clips without a row" in capsys.readouterr().out
    # Numbers of rows are not people, an empty advertisement is not all of them.
    with pytest.raises(InputError, match="no columns for the participant"):
        labels(rows_of_people(), ("NO", "WHO", *header[2:]))
    assert labels([(*row[:4], "", *row[5:]) for row in rows_of_people()]) == nothing
    # A number after two words is two ids.
    touch(source, "Advertisement Categories/Food and Market/S01/A01/J/c.mp4")
    several = labels(rows_of_people("{}"))
    assert several["food_market/s_1/a_1/j/c"] == several["cosmetics_fashion/p_1/a_1/j/c"] == -1
    assert several["car_tech/p02/a_1/j/c"] == right["car_tech/p02/a_1/j/c"]
    assert (
        labels(rows_of_people())["cosmetics_fashion/p_1/a_1/j/c"]
        == right["cosmetics_fashion/p01/a_1/j/c"]
    )


def test_rows_and_clips_without_each_other_are_in_the_ledger(tmp_path: Path):
    source, right = published(tmp_path)
    rows = rows_of_people()
    rows[0] = (*rows[0][:6], "perhaps")  # P01 and A01
    rows[1] = (*rows[1][:1], "P77", *rows[1][2:])
    rows.append((*rows[2][:6], "no" if rows[2][6] == "Yes" else "Yes"))  # P02 and A01
    write_table(source / TABLE, PUBLISHED, rows, "full")
    plan = planned(source)
    unlabelled = {
        clip: row["interest"] for clip, row in by_clip(plan).items() if row["interest"] < 0
    }
    assert {clip.split("/", 1)[1].rsplit("/", 2)[0] for clip in unlabelled} == {
        *("p01/a_1", "p01/a_2", "p02/a_1")
    }
    assert {c: i for c, i in interests(plan).items() if c not in unlabelled} == {
        c: i for c, i in right.items() if c not in unlabelled
    }
    assert dict(plan.remarks) == {
        f"{TABLE}: row 3": "no clip of participant 'P77' and advertisement 'A02'",
        **{
            f"cosmetics_fashion/p01/a_1/{letter}/c": f"row 2 of {TABLE}: no interest that is "
            "understood"
            for letter in ("j", "sa")
        },
        **{
            f"cosmetics_fashion/p01/a_2/{letter}/c": f"no row of {TABLE}: its interest is unknown"
            for letter in ("j", "sa")
        },
        **{
            f"car_tech/p02/a_1/{letter}/c": f"rows 4 and 14 of {TABLE} contradict each other"
            for letter in ("j", "sa")
        },
    }


def test_an_old_spreadsheet_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, _ = published(tmp_path)
    (source / "Participant_demographic_information.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    monkeypatch.setitem(sys.modules, "xlrd", None)
    with pytest.raises(InputError, match=r"old spreadsheet .*'\.\[xls\]', or save it as .xlsx"):
        planned(source)


def test_one_table_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, right = published(tmp_path / "x")
    planned(source)
    assert "no participant_demographic_information.xlsx, .xls or .csv was found" in (
        capsys.readouterr().out
    )
    first = write_table(source / TABLE, PUBLISHED, rows_of_people(), "merged")
    write_table(source / "copy" / TABLE, PUBLISHED, rows_of_people(), "merged")
    with pytest.raises(InputError, match="there are several tables .*choose one with --table"):
        planned(source)
    plan = planned(source, f"--table={first}")
    assert interests(plan) == right and plan.ignored["read as a table"] == 1
    assert [item for item, _ in plan.skipped] == [f"copy/{TABLE}"]


def test_people_who_are_numbered_in_every_category(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = people(tmp_path / "x", "P1", "P2")
    people(source, "P1", "P3", category="Car and Technology")
    plan = planned(source)
    assert {row["subject_id"] for row in plan.rows} == {
        f"neurobiosense/p0{number}" for number in (1, 2, 3)
    }
    assert "note: 1 participants, such as 'neurobiosense/p01', occur in several" in (
        capsys.readouterr().out
    )
    apart = planned(source, "--numbered_per_category")
    assert {row["subject_id"] for row in apart.rows} == {
        "neurobiosense/food_market/p01",
        "neurobiosense/food_market/p02",
        "neurobiosense/car_tech/p01",
        "neurobiosense/car_tech/p03",
    }
    assert by_clip(apart).keys() == by_clip(plan).keys()
    assert "occur in several" not in capsys.readouterr().out
    # A spreadsheet that does not say of which category its participant 1 is cannot be used.
    sheet(source / TABLE, (1, "f", 30, "yes"), (2, "m", 40, "no"))
    apart = planned(source, "--numbered_per_category")
    assert "8 clips without a row, 2 rows without a clip" in capsys.readouterr().out
    assert all("age" not in row for row in apart.rows)
    rows = [("Food and Market", 1, "f", 30, "yes"), ("Car & Tech", 1, "m", 50, "no")]
    sheet(source / TABLE, *rows, header=("Ad Category", *HEADER))
    told = by_clip(planned(source, "--numbered_per_category"))
    assert told["food_market/p01/ad_1/j/c"]["age"] == 30
    assert told["car_tech/p01/ad_1/j/c"]["age"] == 50
    assert told["car_tech/p01/ad_1/j/c"]["interest"] == 0


def test_what_lies_elsewhere_or_is_named_otherwise_has_its_reason(tmp_path: Path):
    source = people(tmp_path / "x", "P1", "P2")
    touch(
        source,
        "loose.mp4",
        "Food and Market/P1/short.mp4",
        "Food and Market/P1/Ad 1/J/deep/x.mp4",
        "Food and Market/P1/Ad 1/Q/x.mp4",
        "Food and Market/P1/Ad 1/J/still.jpe",
        "Food and Market/P1/Ad 1/J/._c.mp4",
        "Food and Market/Thumbs.db",
        ".DS_Store",
        "__MACOSX/Food and Market/P1/Ad 1/J/c.mp4",
        "Sports/P1/Ad 1/J/x.mp4",
        "Cosmetic & Fashion/P5/Ad 1/Joy/x.mp4",
        "notes/readme.txt",
    )
    plan = planned(source)
    reasons = dict(plan.skipped)
    nowhere = "not in folders category/participant/advertisement/letter/"
    assert reasons.pop("Food and Market/P1/Ad 1/Q/x.mp4") == (
        "'Q' is not an emotion; valid are J, SA, A, D, SU, N, F"
    )
    assert reasons.pop("Sports/P1/Ad 1/J/x.mp4").startswith("'Sports' is no category")
    assert reasons == {
        "loose.mp4": nowhere,
        "Food and Market/P1/short.mp4": nowhere,
        "Food and Market/P1/Ad 1/J/deep/x.mp4": nowhere,
        "Food and Market/P1/Ad 1/J/still.jpe": "a picture, not a clip",
        "notes/readme.txt": nowhere,
    }
    assert plan.ignored == {"read as a table": 0, "a system file": 4}
    num_files = sum(path.is_file() for path in source.rglob("*"))
    assert num_files == len(plan.rows) + len(plan.skipped) + sum(plan.ignored.values())
    assert by_clip(plan)["cosmetics_fashion/p05/ad_1/joy/x"]["emotion"] == EMOTIONS.index(
        "happiness"
    )


def test_two_clips_of_one_name_keep_their_paths(tmp_path: Path):
    source = people(tmp_path / "x", "P1", "P2")
    touch(source, "Food and Market/P1/Ad 1/J/c.avi")
    ids = by_clip(planned(source)).keys()
    assert {clip for clip in ids if "p01/ad_1" in clip or "P1/Ad 1" in clip} == {
        "Food and Market/P1/Ad 1/J/c.avi",
        "Food and Market/P1/Ad 1/J/c.mp4",
    }


def test_a_table_of_metadata_instead_of_folders(tmp_path: Path):
    source = touch(
        tmp_path,
        "food_market/P1/v1.mp4",
        "food_market/P1/v.2.mp4",
        "food_market/P2/v1.mp4",
        "car_tech/Participant 3/x.MP4",
        "car_tech/3/y.webm",
        "cosmetics_fashion/4/z.mov",
    )
    metadata(
        source,
        ("v1", "1", "food_market", "interested"),
        ("v.2.mp4", "P01", "Food and Market", "Not Interested"),
        ("v1", "2", "food_market", "happy"),
        ("x", "3", "car_tech", "SU"),
        ("y.webm", "3", "Car and Technology", "no"),
        ("z", "Participant 4", "cosmetic_fashion", "interested"),
    )
    with pytest.raises(InputError, match="--table and --order cannot act"):
        planned(source, "--table=x.xlsx")
    plan = planned(source)
    assert plan.skipped == []
    told = {k: (r.get("interest"), r.get("emotion")) for k, r in by_clip(plan).items()}
    assert told == {
        "food_market/p01/v1": (1, None),
        "food_market/p01/v.2": (0, None),
        "food_market/p02/v1": (None, EMOTIONS.index("happiness")),
        "car_tech/p03/x": (None, EMOTIONS.index("surprise")),
        "car_tech/p03/y": (0, None),
        "cosmetics_fashion/p04/z": (1, None),
    }
    assert {row["subject_id"] for row in plan.rows} == {
        f"neurobiosense/p0{n}" for n in (1, 2, 3, 4)
    }


def test_names_that_return_in_every_category_are_told_apart(tmp_path: Path):
    source = touch(tmp_path, "food_market/P1/1.mp4", "car_tech/P1/1.mp4", "car_tech/P2/1.mp4")
    metadata(
        source,
        ("1", "1", "car_tech", "no"),
        ("1", "1", "food_market", "interested"),
        ("1", "2", "car_tech", "interested"),
    )
    interests = {clip: row["interest"] for clip, row in by_clip(planned(source)).items()}
    assert interests == {"food_market/p01/1": 1, "car_tech/p01/1": 0, "car_tech/p02/1": 1}


def test_metadata_and_files_that_disagree_have_their_reasons(tmp_path: Path):
    good = [f"food_market/P{n}/good_{n}.mp4" for n in (1, 2)]
    bad = ["food_market/P1/who.mp4", "food_market/P1/what.mp4", "food_market/P1/how.mp4"]
    bad += ["food_market/P1/twice.mp4", "food_market/P1/none.mp4", "food_market/P1/odd.mp4"]
    source = touch(tmp_path, *good, *bad, "food_market/P1/same.mp4")
    metadata(
        source,
        *((f"good_{n}", str(n), "food_market", "no") for n in (1, 2)),
        ("who", "2", "food_market", "no"),
        ("what", "1", "car_tech", "no"),
        ("how", "1", "food_market", "perhaps"),
        ("odd", "1", "sports", "no"),
        ("twice", "1", "food_market", "no"),
        ("twice", "1", "food_market", "interested"),
        ("gone", "1", "food_market", "no"),
        ("same", "1", "food_market", "no"),
        ("same", "9", "food_market", "no"),  # of a participant who has no folder
        ("short",),
    )
    plan = planned(source)
    assert by_clip(plan).keys() == {
        *(f"food_market/p0{n}/good_{n}" for n in (1, 2)),
        "food_market/p01/same",
    }
    reasons = collections.Counter(plan.skipped)
    assert reasons == collections.Counter(
        {
            (bad[0], "metadata.csv says participant '2'"): 1,
            (bad[1], "metadata.csv says category 'car_tech'"): 1,
            (bad[2], "reaction_type 'perhaps' is neither an interest nor an emotion"): 1,
            (bad[3], "named twice in metadata.csv"): 1,
            (bad[4], "not in metadata.csv"): 1,
            next(r for r in plan.skipped if r[0] == bad[5]): 1,
            ("metadata.csv: gone", "no such file"): 1,
            ("metadata.csv: same", "no such file"): 1,
            ("metadata.csv: short", "no such file"): 1,
        }
    )
    assert dict(plan.skipped)[bad[5]].startswith("'sports' is no category of the protocol")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"video_id,participant_id\n", "lacks the columns category, reaction_type"),
        (b"", "lacks the columns category, participant_id, reaction_type, video_id"),
        (b"video_id,participant_id,category,reaction_type\n\xff,1,x,no\n", "not a CSV in UTF-8"),
        (b'video_id,participant_id,category,reaction_type\n"' + b"a" * 1_100_000, "not a CSV in"),
    ],
)
def test_metadata_that_is_none_is_one_line(tmp_path: Path, text: bytes, says: str):
    source = touch(tmp_path, "food_market/P1/x.mp4")
    (source / "metadata.csv").write_bytes(text)
    with pytest.raises(InputError, match=says):
        planned(source)


def repacked(file: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))
    return file


def test_a_spreadsheet_that_is_none_is_one_line(tmp_path: Path):
    source = people(tmp_path / "x", "P1", "P2")
    row = (1, "f", 30, "yes")

    def refused(says: str, name: str = "t.xlsx") -> None:
        with pytest.raises(InputError, match=says):
            planned(source, f"--table={tmp_path / name}")

    none = "is not a spreadsheet"
    refused("--table '.*gone.xlsx' does not exist", "gone.xlsx")
    (tmp_path / "t.xlsx").write_text("Participant,INTERESTED IN\n1,yes\n")
    refused(none)
    (tmp_path / "t.csv").write_bytes(b"Participant,Liked\n1,\xff\n")
    refused("no columns for .* it has Participant, Liked", "t.csv")
    (tmp_path / "t.csv").write_text('Participant,INTERESTED IN\n1,"' + "a" * 1_100_000)
    refused("is not a CSV", "t.csv")
    (tmp_path / "t.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    refused(f"{none}|extra 'xls'", "t.xls")
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("hello", "world")
    refused(none)
    whole = sheet(tmp_path / "t.xlsx", row).read_bytes()
    (tmp_path / "t.xlsx").write_bytes(whole[: len(whole) // 2])
    refused(none)
    repacked(sheet(tmp_path / "t.xlsx", row), lambda n, d: d[:300] if "sheet1" in n else d)
    refused(none)
    repacked(sheet(tmp_path / "t.xlsx", row), lambda n, d: b"<" if "workbook.xml" in n else d)
    refused(none)
    sheet(tmp_path / "t.xlsx", row, header=("Name", "Gender", "Age", "Liked"))
    refused("no columns for the participant and for INTERESTED IN; it has Name, Gender, Age, Liked")
    openpyxl.Workbook().save(tmp_path / "t.xlsx")
    refused("it has nothing")
    # 40 MB of spaces in 40 kB.
    bomb = repacked(
        sheet(tmp_path / "t.xlsx", row),
        lambda n, d: d + b" " * (40 * 2**20) if "sheet1" in n else d,
    )
    assert bomb.stat().st_size < 10**5
    refused("is over 32 MiB")


def test_a_spreadsheet_is_read_whatever_stands_around_its_table(tmp_path: Path):
    source = people(tmp_path / "x", "P1", "P2")
    book = openpyxl.Workbook()
    first = book.active
    assert first is not None
    first.append(["About this study"])
    page = book.create_sheet("people")
    for cells in (["Participants of the study"], [], [None, *HEADER, "Joy"], [None, None, "f"]):
        page.append(cells)
    page.append([None, "P1", "f", 30, "yes", 1, *([None] * 400), "far away"])
    book.save(source / TABLE)
    # Excel may say that a sheet reaches to its last column and row.
    repacked(
        source / TABLE,
        lambda n, d: re.sub(rb'(<dimension ref=)"[^"]*"', rb'\1"A1:XFD1048576"', d),
    )
    assert by_clip(planned(source))["food_market/p01/ad_1/j/c"]["age"] == 30
    # One that is given is used, and not the one that lies there.
    given = sheet(tmp_path / "other.xlsx", ("P1", "f", 44, "yes"))
    assert by_clip(planned(source, f"--table={given}"))["food_market/p01/ad_1/j/c"]["age"] == 44


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--source=nowhere"], "--source 'nowhere' is not a folder"),
        (["--name=../x"], "must be lower case letters"),
        (["--folds=1"], "cannot be divided into 1 folds"),
        (["--folds=many"], "--folds must be a number or 'loso'"),
        (["--content_parts=train"], "--content_parts must be PART=GROUP"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, words: list[str], says: str):
    with pytest.raises(InputError, match=says):
        planned(people(tmp_path / "x", "P1", "P2"), *words)


def test_a_folder_of_something_else_is_told(tmp_path: Path):
    with pytest.raises(InputError, match="holds no file"):
        planned(tmp_path)
    says = (
        "no clip lies in category/.* no metadata.*the folders 'a' and the files 'a/b.mp4'; see data"
    )
    with pytest.raises(InputError, match=says):
        planned(touch(tmp_path, "a/b.mp4"))


def many_people(source: Path, count: int = 60) -> Path:
    for number in range(count):
        people(source, f"P{number}", category=CATEGORIES[number % 3])
    return source


def test_a_person_is_on_one_side_of_every_split(tmp_path: Path):
    source = many_people(tmp_path / "x")
    for protocol, parts in (
        ("grouped", {"train", "validation", "test"}),
        ("content", {"train", "validation", "test"}),
        ("folds", {f"fold_{n}" for n in range(5)}),
    ):
        rows = planned(source, "--folds=5", protocol=protocol).rows
        assert len(rows) == 120 and {row["split"] for row in rows} == parts
        sides = collections.defaultdict(set)
        for row in rows:
            sides[row["subject_id"]].add(row["split"])
        assert len(sides) == 60 and all(len(side) == 1 for side in sides.values())
    loso = planned(source, "--folds=loso").rows
    assert len({row["split"] for row in loso}) == 60


def test_the_protocol_of_contents(tmp_path: Path):
    source = many_people(tmp_path / "x", 6)
    published = {"food_market": "train", "cosmetics_fashion": "validation", "car_tech": "test"}
    for row in planned(source, protocol="content").rows:
        assert row["split"] == published[row["content"]]
    other = "--content_parts=training=car_tech,food_market;test=cosmetics_fashion"
    plan = planned(source, other, protocol="content")
    assert {(r["content"], r["split"]) for r in plan.rows} == {
        ("car_tech", "train"),
        ("food_market", "train"),
        ("cosmetics_fashion", "test"),
    }
    # A category outside of the named parts is refused, clip by clip.
    two = planned(source, "--content_parts=train=food_market;test=car_tech", protocol="content")
    assert len(two.rows) == 8 and len(two.skipped) == 4
    assert {reason.split(";")[0] for _, reason in two.skipped} == {
        "'Cosmetics and Fashion' is no category of the protocol"
    }
    with pytest.raises(InputError, match="validation and test would be empty"):
        planned(people(tmp_path / "y", "P1", "P2"), protocol="content")
    # Options that the protocol reads make another dataset; others do not.
    assert planned(source, other, protocol="content").settings["content_parts"] == other[16:]
    assert "content_parts" not in planned(source).settings


def test_parts_without_people_are_told(tmp_path: Path):
    with pytest.raises(InputError, match="would be empty.*use the protocol 'folds'"):
        planned(people(tmp_path / "x", "P1", "P2"), protocol="grouped")


@pytest.fixture(scope="module")
def sequences(shared: Path) -> dict[tuple[str, str, str], list[np.ndarray]]:
    """(subject, sequence, emotion) -> pictures of real sequences, two of each of six people."""
    with (shared / "data" / "faces" / "manifest.csv").open(newline="") as text:
        rows = [row for row in csv.DictReader(text) if row["dataset"] == "ckseq"]
    found: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for row in sorted(rows, key=lambda row: row["path"]):
        name = row["path"].rpartition("/")[2][:8]
        found[row["subject_id"], name, row["label"]].append(row["path"])
    taken = collections.Counter()
    pictures = {}
    with zipfile.ZipFile(shared / "data" / "faces" / "ckseq.zip") as archive:
        for key, paths in found.items():
            taken[key[0]] += 1
            if taken[key[0]] > 2 or len(taken) > 6 or key[2] == "contempt":
                continue
            data = [np.frombuffer(archive.read(path), np.uint8) for path in paths[::3]]
            pictures[key] = [cv2.imdecode(one, cv2.IMREAD_COLOR) for one in data]
    return pictures


def test_real_sequences_in_each_layout(
    tmp_path: Path,
    sequences: dict[tuple[str, str, str], list[np.ndarray]],
    yunet_model: Path,
    write_video: WriteVideo,
    capsys: pytest.CaptureFixture[str],
):
    subjects = sorted({subject for subject, _, _ in sequences})
    letter_of: dict[str, str] = dict(
        zip(EMOTIONS, ("A", "D", "F", "J", "N", "SA", "SU"), strict=True)
    )
    assert len(subjects) == 6
    rows = []
    short = ("food_market", "cosmetics_fashion", "car_tech")
    for index, ((subject, name, emotion), pictures) in enumerate(sequences.items()):
        number = subjects.index(subject)
        category, person, ad = CATEGORIES[number % 3], f"Participant {number}", f"Ad {index % 3}"
        one = write_video(tmp_path / "video.mp4", pictures)
        places = {
            "one": f"Advertisement Categories/{category}/{person}/{ad}/{letter_of[emotion]}",
            "swapped": f"{category}/{ad}/{person}/{letter_of[emotion]}",
            "listed": f"{short[number % 3]}/{person}",
        }
        for layout, place in places.items():
            (tmp_path / layout / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(one, tmp_path / layout / place / f"{name}.MP4")
        rows.append((name, str(number), short[number % 3], emotion))
    metadata(tmp_path / "listed", *rows)
    table = [
        (n, "Female" if n % 2 else "Male", 20 + n, "Yes" if n % 2 else "Ad 1") for n in range(6)
    ]
    for layout in ("one", "swapped"):
        sheet(tmp_path / layout / TABLE, *table)
    # A clip without anybody in it.
    empty = write_video(tmp_path / "empty.mp4", [np.full((48, 64, 3), 99, np.uint8)] * 4)
    shutil.copy(empty, tmp_path / "listed" / "food_market" / "Participant 0" / "wall.mp4")
    with (tmp_path / "listed" / "metadata.csv").open("a") as text:
        text.write("wall,0,food_market,neutral\n")

    summaries = {}
    for layout in ("one", "swapped", "listed"):
        words = [f"--source={tmp_path / layout}", f"--data_dir={tmp_path / 'data' / layout}"]
        words += [f"--detector_model={yunet_model}", "--frames=3", "--processes=2"]
        assert main(["build", "neurobiosense/content", *words]) == 0
        summaries[layout] = build_summary("neurobiosense", tmp_path / "data" / layout)
    clips = len(sequences)
    assert summaries["one"]["records"] == summaries["one"]["inputs"] == 3 * clips
    assert summaries["one"]["fingerprint"] == summaries["swapped"]["fingerprint"]
    assert summaries["listed"]["skipped"] == {"no face": 3}
    assert summaries["listed"]["inputs"] == 3 * clips + 3
    assert summaries["listed"]["classes"].keys() == {"train", "validation", "test"}
    by_number = {}
    for layout in ("one", "listed"):
        records = open_records("neurobiosense", "all", tmp_path / "data" / layout)
        assert len(records) == 3 * clips
        by_number[layout] = collections.Counter(
            zip(records.columns["subject_id"], records.columns["emotion"].tolist(), strict=True)
        )
        if layout == "one":
            for row, subject in enumerate(records.columns["subject_id"]):
                number = int(subject[-2:])
                assert records.columns["age"][row] == 20 + number
                assert records.columns["gender"][row] == ("female" if number % 2 else "male")
                watched = records.columns["stimulus_id"][row].endswith("ad_1")
                assert records.columns["interest"][row] == (number % 2 or watched)
            faces = records.images(range(len(records)), 96)
            # Lit skin in the middle, whoever it is.
            assert faces[:, 30:66, 30:66].mean(axis=(1, 2, 3)).min() > 60
    assert by_number["one"] == by_number["listed"]


def test_all_sheets_are_read_and_one_named_after_a_category_is_its(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "x"
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(("collected in 2023",))
    for number, category in enumerate(CATEGORIES):
        people(source, "P1", "P2", category=category)
        page = book.create_sheet(category)
        page.append(("Participant ID", "AD", "INTERESTED IN"))
        for who in ("P\N{NO-BREAK SPACE}1", "P2"):
            for ad in (1, 2):
                page.append((who, ad, "yes" if number == 1 else "no"))
    book.save(tmp_path / "t.xlsx")
    rows = by_clip(planned(source, f"--table={tmp_path / 't.xlsx'}"))
    said = capsys.readouterr().out
    assert "12 rows read, 12 clips matched, 0 clips without a row, 0 rows without a clip" in said
    assert "sheets without these columns: Sheet" in said
    assert f"sheets read: {', '.join(CATEGORIES)}" in said
    interest = {row["content"]: row["interest"] for row in rows.values()}
    assert interest == {"food_market": 0, "cosmetics_fashion": 1, "car_tech": 0}


def test_a_table_of_other_people_says_how_the_names_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = people(tmp_path / "x", "P1", "P2")
    table = sheet(tmp_path / "t.xlsx", ("Anna", "f", 30, "yes"))
    planned(source, f"--table={table}")
    said = capsys.readouterr().out
    assert "row 2 has participant 'Anna'" in said and "a clip has 'P1', 'Ad 1'" in said


def test_names_beyond_ascii_are_kept_apart(tmp_path: Path):
    names = [f"food_market/P1/{ad}/J/x.mp4" for ad in ("Çay", "Şay", "Ülker 01")]
    plan = planned(touch(tmp_path, *names, "food_market/P2/Çay/J/x.mp4"))
    assert {row["stimulus_id"] for row in plan.rows} == {"çay", "şay", "ülker_1"}


def test_headers_of_metadata_may_have_capitals_and_spaces(tmp_path: Path):
    source = touch(tmp_path, "food_market/P1/x.mp4", "food_market/P2/x.mp4")
    lines = [f"x;P{n};food_market;joy\n" for n in (1, 2)]
    text = "Video ID;Participant_ID;Category;Reaction Type\n" + "".join(lines)
    (source / "metadata.csv").write_text(text, "utf-16-le")
    assert len(planned(source).rows) == 2
