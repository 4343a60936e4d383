"""What collect downloaded becomes records; windows of one video stay on one side."""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_collect import Site, clips, data, site, write_list

from data_builders.youtube.youtube_dataset_builder import assign
from fer_jax.__main__ import main
from fer_jax.collect.links import read_links, video_key
from fer_jax.data.records import build_summary, open_records
from fer_jax.errors import InputError
from fer_jax.schema import EMOTIONS

__all__ = ["clips", "site"]  # fixtures
EXAMPLE = Path(__file__).resolve().parents[1] / "data_builders" / "youtube" / "links.csv"
HEADER = "url,category,emotion,reaction_type,start_s,end_s,subject_id"


def build(config: str, folder: Path, *words: str) -> int:
    place = [f"--source={folder / 'out'}", f"--data_dir={folder / 'data'}"]
    return main(["build", f"youtube/{config}", *place, "--frames=2", "--processes=2", *words])


def collected(folder: Path, *rows: str) -> None:
    links = write_list(folder, *rows, header=HEADER)
    assert main(["collect", str(links), f"--output={folder / 'out'}"]) == 0


def ledger(folder: Path, config: str) -> dict[str, str]:
    with (folder / "data/youtube" / config / "1.0.0/ledger.csv").open(newline="") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


def test_the_example_list_is_read():
    links, refused, unused = read_links(EXAMPLE)
    assert len(links) == 5 and not refused and not unused
    assert len({link.url for link in links}) == 4


def test_from_links_to_records(
    site: Site, clips: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    site.pages = {f"/{n}.mp4": data(clips[n]) for n in range(3)}
    first, second, third = map(site.url, site.pages)
    collected(
        tmp_path,
        f"{first},car_tech,happy,interested,,,ann",
        f"{second},food_market,sad,,0,0.3,",
        f"{second},food_market,,not interested,0.3,,",
        f"{third},car_tech,fear,,,,",
        f"{third},car_tech,fear,,5000,,",
        f"{site.url('/gone.mp4')},car_tech,fear,,,,",
        f"{first},car_tech,happy,interested,,,ann",
    )
    assert build("folds", tmp_path, "--folds=3", "--detector=none") == 0
    summary = build_summary("youtube/folds", tmp_path / "data")
    frames, printed = summary["inputs"] - 1, capsys.readouterr().out
    assert f"{summary['records']} records from {frames} frames of 5 clips" in printed
    assert (
        "  clips that were not read: 1\n    1 x not downloaded: removed\n"
        "  skipped frames: 1\n    1 x no frame in the clip's window\n"
        "  rows of the list that are not used: 1\n    1 x refused: duplicate\n" in printed
    )
    assert summary["inputs"] == summary["records"] + sum(summary["skipped"].values())
    late = f"youtube/{video_key(third)}/5000-end"
    assert ledger(tmp_path, "folds") == {
        site.url("/gone.mp4"): "not downloaded: removed",
        late: "no frame in the clip's window",
        f"line 8 of the list: {first}": "refused: duplicate",
    }
    records = open_records("youtube/folds", "all", tmp_path / "data")
    assert set(records.columns["source"]) == {"social"}
    clip = records.columns["clip_id"]
    assert set(clip) == {
        f"youtube/{video_key(first)}",
        *(f"youtube/{video_key(second)}/{window}" for window in ("0-0.3", "0.3-end")),
        f"youtube/{video_key(third)}",
    }
    ann = clip == f"youtube/{video_key(first)}"
    assert set(records.columns["subject_id"][ann]) == {"youtube/ann"}
    assert set(records.columns["emotion"][ann]) == {EMOTIONS.index("happiness")}
    assert set(records.columns["interest"][ann]) == {1}
    open_end = clip == f"youtube/{video_key(second)}/0.3-end"
    assert set(records.columns["emotion"][open_end]) == {-1}
    assert set(records.columns["interest"][open_end]) == {0}
    for fold in range(3):
        part = open_records("youtube/folds", f"fold_{fold}", tmp_path / "data")
        assert len({name.split("/")[1] for name in part.columns["clip_id"]}) == 1

    # A video that is not there any more is said, not skipped.
    capsys.readouterr()
    (tmp_path / "out" / "videos" / f"{video_key(third)}.mp4").unlink()
    assert build("folds", tmp_path, "--folds=2", "--detector=none", "--dry_run") == 0
    assert "2 x its file is gone or has another size; run collect" in capsys.readouterr().out


def test_faces_of_real_videos(shared: Path, site: Site, tmp_path: Path):
    videos = shared / "data" / "videos"
    names = ("clip_01.mp4", "clip_09.mkv", "clip_12.mp4", "clip_33.mp4")  # no face in the first
    site.pages = {f"/{name}": data((videos / name).read_bytes()) for name in names}
    rows = [f"{site.url(path)},car_tech,happy,,,," for path in site.pages]
    collected(tmp_path, *rows)
    model = f"--detector_model={shared / 'models/face_detection_yunet_2023mar.onnx'}"
    assert build("folds", tmp_path, "--folds=2", model) == 0
    summary = build_summary("youtube/folds", tmp_path / "data")
    assert (summary["inputs"], summary["records"]) == (8, 6)
    assert summary["skipped"] == {"no face": 2}
    records = open_records("youtube/folds", "all", tmp_path / "data")
    assert set(records.columns["content"]) == {"car_tech"}


def row(number: int, video: str, subject: str = "", content: str = "a", **known: str) -> Any:
    """A row of the inputs before the splits."""
    return {
        "record_id": f"youtube/{video}/{number}-end",
        "clip_id": f"youtube/{video}/{number}-end",
        "subject_id": subject,
        "content": content,
        "url": f"http://x/{video}",
        "_site_id": known.get("site_id", ""),
        "_sha256": known.get("sha256", video),
    }


def options(**flags: str) -> argparse.Namespace:
    return argparse.Namespace(
        **{"name": "youtube", "folds": "5", "content_parts": "train=a;test=b"} | flags
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=20, max_size=60),
    st.randoms(use_true_random=False),
)
def test_no_video_and_no_person_is_on_two_sides(pairs: list[tuple[int, int]], random: Any):
    rows = [row(n, f"v{v}", f"p{p}" if p < 6 else "") for n, (v, p) in enumerate(pairs)]
    try:
        kept, refused = assign(rows, "folds", "youtube", options(folds="2"))
    except InputError:
        return  # all hang together
    assert len(kept) == len(rows) and not refused
    assert [one["record_id"] for one in kept] == [one["record_id"] for one in rows]
    for name in ("url", "subject_id"):
        sides: dict[str, set[str]] = {}
        for one in kept:
            if one[name]:
                sides.setdefault(one[name], set()).add(one["split"])
        assert all(len(parts) == 1 for parts in sides.values())
    # What stands together does not depend on the order of the list.
    shuffled = random.sample(rows, len(rows))
    again, _ = assign(shuffled, "folds", "youtube", options(folds="2"))
    assert {r["record_id"]: r["split"] for r in again} == {r["record_id"]: r["split"] for r in kept}


@pytest.mark.parametrize("same", ["site_id", "sha256"])
def test_one_video_under_two_addresses_is_on_one_side(same: str):
    pairs = [
        (row(2 * n, f"a{n}", **{same: f"x{n}"}), row(2 * n + 1, f"b{n}", **{same: f"x{n}"}))
        for n in range(40)
    ]
    kept, _ = assign([one for pair in pairs for one in pair], "grouped", "youtube", options())
    split = {one["record_id"]: one["split"] for one in kept}
    assert all(split[a["record_id"]] == split[b["record_id"]] for a, b in pairs)
    assert set(split.values()) == {"train", "validation", "test"}


def test_a_person_is_on_the_side_of_other_datasets():
    people = [row(n, f"v{n}", f"youtube/p{n}") for n in range(60)]
    elsewhere = [row(n, f"w{n}", f"youtube/p{n}") for n in range(60)]
    sets = (people, elsewhere)
    first, second = (assign(rows, "grouped", "youtube", options())[0] for rows in sets)
    assert [one["split"] for one in first] == [one["split"] for one in second]


def test_a_video_of_two_categories_cannot_be_in_two_parts():
    rows = [row(0, "v", content="a"), row(1, "v", content="b")]
    rows += [row(2, "w", content="a"), row(3, "x", content="b"), row(4, "y", content="c")]
    kept, refused = assign(rows, "content", "youtube", options())
    assert [(one["record_id"][8], one["split"]) for one in kept] == [("w", "train"), ("x", "test")]
    assert dict(refused) == {
        **{rows[n]["record_id"]: "its video is in several parts" for n in (0, 1)},
        rows[4]["record_id"]: "content 'c' belongs to no split; choose one of a, b",
    }
    assert assign(rows[:2], "content", "youtube", options())[0] == []


def test_without_a_collection_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert build("grouped", tmp_path, "--detector=none") == 2
    error = capsys.readouterr().err
    assert "write it with `fer-jax collect`" in error and error.count("\n") == 1


def test_options_are_remembered(site: Site, clips: list[bytes], tmp_path: Path):
    site.pages = {f"/{n}.mp4": data(clips[n]) for n in range(2)}
    collected(tmp_path, *(f"{site.url(path)},a,fear,,,," for path in site.pages))
    words = ("--folds=2", "--detector=none")
    assert build("folds", tmp_path, *words) == 0
    file = tmp_path / "data/youtube/folds/1.0.0/build.json"
    assert json.loads(file.read_text())["options"]["source_kind"] == "social"
    assert build("folds", tmp_path, *words, "--source_kind=controlled") == 2
    assert build("folds", tmp_path, *words, "--source_kind=controlled", "--overwrite") == 0
    records = open_records("youtube/folds", "all", tmp_path / "data")
    assert set(records.columns["source"]) == {"controlled"}
