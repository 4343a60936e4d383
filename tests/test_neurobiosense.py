"""Both layouts, either order of folders, and what the spreadsheet says become the same records."""

import argparse
import collections
import csv
import io
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openpyxl
import pytest

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
        assert row["stimulus_id"] == f"food_market/ad_{number}"
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
    assert neurobiosense._participant_first(pairs, {}, "auto") is participant_first
    for order in ("participant_ad", "ad_participant"):
        given = neurobiosense._participant_first(pairs, {}, order)
        assert given is (order == "participant_ad")


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
    assert [(r["gender"], r["age"], r["interest"]) for r in told] == [
        ("", 30, -1),
        ("female", 41, 0),
    ]


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
    assert capsys.readouterr().out == ""
    # A spreadsheet that does not say of which category its participant 1 is cannot be used.
    sheet(source / TABLE, (1, "f", 30, "yes"), (2, "m", 40, "no"))
    apart = planned(source, "--numbered_per_category")
    assert "note: the spreadsheet has no column for the category" in capsys.readouterr().out
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
        "Sports/P1/Ad 1/J/x.mp4",
        "Cosmetic & Fashion/P5/Ad 1/Joy/x.mp4",
        "notes/readme.txt",
    )
    plan = planned(source)
    reasons = dict(plan.skipped)
    nowhere = "not in folders category/participant/advertisement/letter/"
    assert reasons.pop("Food and Market/P1/Ad 1/Q/x.mp4").startswith("'Q' is not an emotion")
    assert reasons.pop("Sports/P1/Ad 1/J/x.mp4").startswith("'Sports' is no category")
    assert reasons == {
        "loose.mp4": nowhere,
        "Food and Market/P1/short.mp4": nowhere,
        "Food and Market/P1/Ad 1/J/deep/x.mp4": nowhere,
    }
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
    shutil.copy(tmp_path / "t.xlsx", tmp_path / "t.csv")
    refused(none, "t.csv")
    (tmp_path / "t.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    refused(none, "t.xls")
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
        (["--folds=1"], "cannot be dealt into 1 folds"),
        (["--folds=many"], "--folds is a number or 'loso'"),
        (["--content_parts=train"], "--content_parts is PART=GROUP"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, words: list[str], says: str):
    with pytest.raises(InputError, match=says):
        planned(people(tmp_path / "x", "P1", "P2"), *words)


def test_a_folder_of_something_else_is_told(tmp_path: Path):
    with pytest.raises(InputError, match="holds no video"):
        planned(tmp_path)
    with pytest.raises(InputError, match="no clip lies in category/.* and there is no metadata"):
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
