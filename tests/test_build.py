"""A build loses nothing: stopped, damaged, whatever its files are."""

import collections
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_jax.__main__ import main
from fer_jax.data import builder
from fer_jax.data.builder import files_in
from fer_jax.data.records import build_summary, open_records
from fer_jax.errors import InputError

WriteVideo = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ("car_tech", "cosmetics_fashion", "food_market")
NAME = "neurobiosense"


def grey(count: int, first: int = 0) -> list[np.ndarray]:
    return [np.full((48, 64, 3), first + 7 * number, np.uint8) for number in range(count)]


@pytest.fixture
def source(tmp_path: Path, write_video: WriteVideo) -> Path:
    """Two clips in each category, each of a person of its own: the layout with metadata.csv."""
    folder = tmp_path / "source"
    rows = ["video_id,participant_id,category,reaction_type"]
    for number in range(6):
        category = CATEGORIES[number // 2]
        name = f"{'slow' if category == CATEGORIES[1] else 'clip'}_{number}"
        write_video(folder / category / f"P{number}" / f"{name}.avi", grey(12, number))
        rows.append(f"{name},{number},{category},{'interested' if number % 2 else 'no'}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def words(source: Path, data_dir: Path, *more: str, protocol: str = "content") -> list[str]:
    place = [f"--source={source}", f"--data_dir={data_dir}"]
    return ["build", f"{NAME}/{protocol}", *place, "--detector=none", "--frames=4", *more]


def table(data_dir: Path, file: str, protocol: str = "content") -> list[dict[str, str]]:
    with (data_dir / NAME / protocol / "1.0.0" / file).open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def ledger(data_dir: Path, protocol: str = "content") -> dict[str, str]:
    return {row["item"]: row["reason"] for row in table(data_dir, "ledger.csv", protocol)}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr().err
    assert printed.startswith("fer-jax: ") and printed.count("\n") == 1
    return printed


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_records_carry_what_is_known_and_the_counts_add_up(source: Path, tmp_path: Path):
    (source / "food_market" / "P4" / "pointer.mp4").write_text("version https://git-lfs...")
    with (source / "metadata.csv").open("a") as text:
        text.write("pointer,4,food_market,interested\ngone,4,food_market,interested\n")
    before = tree(source)
    (tmp_path / "elsewhere").mkdir()
    others = tree(tmp_path)
    assert main(words(source, tmp_path / "data")) == 0
    # Nothing is written but in the folder of the data.
    assert tree(source) == before
    now = {k: v for k, v in tree(tmp_path).items() if not k.startswith(str(tmp_path / "data"))}
    assert now == others
    summary = build_summary(NAME, tmp_path / "data")
    assert summary["splits"] == {"train": 8, "validation": 8, "test": 8}
    assert (summary["inputs"], summary["records"], summary["inputs_with_faces"]) == (26, 24, 24)
    assert ledger(tmp_path / "data") == {
        "metadata.csv: gone": "no such file",
        f"{NAME}/food_market/p04/pointer": "not a video, or damaged",
    }
    records = open_records(NAME, "train", tmp_path / "data")
    expected = {
        f"{NAME}/food_market/p{p:02}/clip_{p}/{frame:06}" for p in (4, 5) for frame in (1, 4, 7, 10)
    }
    assert set(records.columns["record_id"]) == expected
    for row, name in enumerate(records.columns["record_id"]):
        person, frame = int(name.split("/")[2][1:]), int(name[-6:])
        assert records.columns["interest"][row] == person % 2
        assert records.columns["frame_index"][row] == frame
        level = records.images([row], 48)[0].mean()
        assert abs(level - (person + 7 * frame)) < 3
    # A JPEG is stored as it is: compressed once more it would be slower to read.
    (shard,) = (tmp_path / "data" / NAME).rglob("*-train.array_record-*")
    assert all(records.jpeg(row) in shard.read_bytes() for row in range(len(records)))
    # A content group is a part of a split, whatever the split.
    cars = open_records(NAME, "all[content=car_tech]", tmp_path / "data")
    assert set(cars.columns["content"]) == {"car_tech"} and len(cars) == 8
    two = open_records(NAME, "train+test[content=car_tech,food_market]", tmp_path / "data")
    assert len(two) == 16
    same = two.columns["record_id"].tolist().index(cars.columns["record_id"][3])
    np.testing.assert_array_equal(cars.images([3], 48), two.images([same], 48))
    with pytest.raises(InputError, match="'train' of .* has no content 'car_tec'"):
        open_records(NAME, "train[content=car_tec]", tmp_path / "data")
    with pytest.raises(InputError, match="has no split 'train\\[content=\\]'"):
        open_records(NAME, "train[content=]", tmp_path / "data")
    by_clip = {row["clip"]: row for row in table(tmp_path / "data", "clips.csv")}
    assert len(by_clip) == 7
    whole = by_clip[f"{NAME}/car_tech/p00/clip_0"]
    counts = [whole[k] for k in ("frames_claimed", "frames_decoded", "frames_requested")]
    assert counts == ["12", "12", "4"] and whole["frames_with_faces"] == "4"
    broken = by_clip[f"{NAME}/food_market/p04/pointer"]
    assert (broken["frames_decoded"], broken["frames_requested"], broken["frames_with_faces"]) == (
        ("0", "1", "0")
    )
    measured = table(tmp_path / "data", "quality.csv")
    assert len(measured) == 24 and {row["size"] for row in measured} == {"48.0"}


def test_counts_add_up_where_frames_have_several_faces(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rng = np.random.default_rng(0)
    lines = ["file,frame_index,x,y,width,height"]
    faces_of: dict[tuple[str, int], int] = {}
    for path in source.rglob("*.avi"):
        for frame in range(12):
            faces_of[path.stem, frame] = count = int(rng.integers(0, 4))
            lines += [f"{path.name},{frame},{9 * n},{n},{20 - n},20" for n in range(count)]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    more = ["--detector=boxes", f"--boxes={tmp_path / 'boxes.csv'}", "--choice=all"]
    assert main(words(source, tmp_path / "data", *more)) == 0
    summary = build_summary(NAME, tmp_path / "data")
    frames = (1, 4, 7, 10)
    counts = [n for (_, frame), n in faces_of.items() if frame in frames]
    assert len(counts) == 24 and counts.count(0) > 0 and max(counts) == 3
    assert summary["inputs"] == 24
    assert summary["records"] == sum(counts)
    assert summary["inputs_with_faces"] == 24 - counts.count(0)
    assert summary["skipped"] == {"no face": counts.count(0)}
    assert len(ledger(tmp_path / "data")) == counts.count(0)
    assert sum(summary["splits"].values()) == sum(counts)
    assert f"{sum(counts)} records from 24 frames of 6 clips" in capsys.readouterr().out
    ids = open_records(NAME, "all", tmp_path / "data").columns["record_id"]
    of_frame = collections.Counter((name.split("/")[-2], int(name[-8:-2])) for name in ids)
    assert of_frame == {k: n for k, n in faces_of.items() if n and k[1] in frames}
    for name in ids:
        assert int(name[-1]) < of_frame[name.split("/")[-2], int(name[-8:-2])]
    by_clip = table(tmp_path / "data", "clips.csv")
    assert sum(int(row["frames_with_faces"]) for row in by_clip) == 24 - counts.count(0)


DONE, BEGUN = "[!.]*.zip", ".*.tmp.zip"  # files of clips
SABOTAGE = """
import os, time
import av

opened = av.open

class Waiting:
    def __init__(self, container):
        self.container = container

    def __getattr__(self, name):
        return getattr(self.container, name)

    def demux(self, *streams):
        for number, packet in enumerate(self.container.demux(*streams)):
            while number > 3 and not os.path.exists(GO):
                time.sleep(0.01)
            yield packet

def open_or_wait(file, *rest, **options):
    container = opened(file, *rest, **options)
    return Waiting(container) if "slow" in os.path.basename(file.name) else container

av.open = open_or_wait
"""


def children(of: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == of and state != "Z":
            found.add(int(stat.parent.name))
    return found


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_was_stopped_goes_on_where_it_was(source: Path, tmp_path: Path, how: int):
    go, start, data = tmp_path / "go", tmp_path / "start", tmp_path / "data"
    start.mkdir()
    (start / "sitecustomize.py").write_text(f"GO = {str(go)!r}\n{SABOTAGE}")
    kept = data / ".clips" / NAME
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fer_jax", *words(source, data, "--processes=2")],
            env=os.environ | {"PYTHONPATH": f"{start}{os.pathsep}{ROOT}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        # Two clips are finished, two are in the middle, two are not begun.
        until(lambda: len(list(kept.glob(DONE))) == 2 and len(list(kept.glob(BEGUN))) == 2)
        workers = children(process.pid)
        assert len(workers) >= 2
        finished = {path: path.stat().st_mtime_ns for path in kept.glob(DONE)}
        if how == signal.SIGKILL:
            process.kill()
            assert process.wait(60) == -signal.SIGKILL
        else:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
            time.sleep(0.2)
            assert process.poll() is None  # what is being worked on is finished
            go.touch()
            assert process.wait(60) == 130
            assert "interrupted; rerun the same command to resume" in (tmp_path / "log").read_text()
            assert len(list(kept.glob(DONE))) >= 4
            assert "Traceback" not in (tmp_path / "log").read_text()
        until(lambda: not any(map(alive, workers)), 20)
    finally:
        go.touch()
        process.kill()
        process.wait()
    assert not (data / NAME).exists()
    assert main(words(source, data)) == 0
    assert len(list(kept.glob(DONE))) == 6
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert main(words(source, tmp_path / "uninterrupted")) == 0
    one, other = (build_summary(NAME, place) for place in (data, tmp_path / "uninterrupted"))
    assert one == other and one["records"] == 24


STARTING = """
import os, sys, time

if "--multiprocessing-fork" in sys.orig_argv:
    open(f"{GO}.{os.getpid()}", "w").close()
    while not os.path.exists(GO):
        time.sleep(0.01)
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_processes_that_are_just_starting_take_ctrl_c_in_silence(source: Path, tmp_path: Path):
    go, start, log = tmp_path / "go", tmp_path / "start", tmp_path / "log"
    start.mkdir()
    (start / "sitecustomize.py").write_text(f"GO = {str(go)!r}\n{STARTING}")
    with log.open("w") as text:
        process = subprocess.Popen(
            [sys.executable, "-m", "fer_jax", *words(source, tmp_path / "data", "--processes=2")],
            env=os.environ | {"PYTHONPATH": f"{start}{os.pathsep}{ROOT}"},
            stdout=text,
            stderr=text,
            start_new_session=True,
        )
    try:
        until(lambda: len(list(tmp_path.glob("go.*"))) == 2)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
        go.touch()
        assert process.wait(60) == 130
    finally:
        go.touch()
        process.kill()
        process.wait()
    assert log.read_text() == "fer-jax: interrupted; rerun the same command to resume\n"


def test_another_split_of_the_same_clips_decodes_nothing(source: Path, tmp_path: Path):
    data = tmp_path / "data"
    assert main(words(source, data)) == 0
    kept = {p: p.stat().st_mtime_ns for p in (data / ".clips" / NAME).iterdir()}
    assert len(kept) == 6
    assert main(words(source, data, "--folds=3", protocol="folds")) == 0
    assert {p: p.stat().st_mtime_ns for p in (data / ".clips" / NAME).iterdir()} == kept
    one, other = (build_summary(f"{NAME}/{p}", data) for p in ("content", "folds"))
    assert one["fingerprint"] == other["fingerprint"]
    assert set(other["splits"]) == {"fold_0", "fold_1", "fold_2"}


def test_building_again_changes_nothing_and_other_clips_are_refused(
    source: Path, tmp_path: Path, write_video: WriteVideo, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "data"
    assert main(words(source, data)) == 0
    first = build_summary(NAME, data)
    before = tree(data)
    assert main(words(source, data)) == 0
    assert "is already built" in capsys.readouterr().out and tree(data) == before
    # A copy of the same files is the same source.
    shutil.copytree(source, tmp_path / "copy" / "source")
    assert main(words(tmp_path / "copy" / "source", data)) == 0
    assert main(words(source, data, "--margin=0.5")) == 2
    says = "was built with other options: margin (was 0.0, now 0.5); use --overwrite or another"
    assert says in one_line(capsys)
    clip = next(source.rglob("clip_0.avi"))
    write_video(clip, grey(20, 100))
    assert main(words(source, data)) == 2
    assert "was built from other files, labels or splits" in one_line(capsys)
    assert build_summary(NAME, data) == first
    assert main(words(source, data, "--overwrite")) == 0
    assert build_summary(NAME, data)["fingerprint"] != first["fingerprint"]


def test_a_build_leaves_nothing_in_the_temporary_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert main(words(source, tmp_path / "data", "--processes=1")) == 0
    assert not list(temporary.iterdir())


def test_a_dry_run_decodes_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(words(source, tmp_path / "data", "--dry_run")) == 0
    assert "would read 6 clips: test 2, train 2, validation 2" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_a_file_as_data_dir_is_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "data").write_text("a file")
    assert main(words(source, tmp_path / "data")) == 2
    assert "data' is a file; name a folder" in one_line(capsys)


@pytest.mark.parametrize("processes", ["0", "-1"])
def test_no_processes_are_too_few(
    source: Path, tmp_path: Path, processes: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words(source, tmp_path / "data", f"--processes={processes}")) == 2
    assert "--processes must be at least 1" in one_line(capsys)


def nothing_prepared(data: Path) -> bool:
    return not (data / NAME).exists() and not list(data.glob(".building_*"))


def test_an_empty_split_names_the_reasons(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for path in (source / "car_tech").rglob("*.avi"):
        path.write_text("no video")
    assert main(words(source, tmp_path / "data")) == 2
    assert "the split 'test' would be empty (not a video, or damaged 2)" in one_line(capsys)
    assert nothing_prepared(tmp_path / "data")


def without_one(things: Iterator[Any]) -> Iterator[Any]:
    next(things)
    yield from things


def test_a_lost_row_is_an_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = builder._in_threads
    monkeypatch.setattr(builder, "_in_threads", lambda *rest: without_one(run(*rest)))
    with pytest.raises(RuntimeError, match="of 6 rows 3 are missing and 0 are duplicated"):
        main(words(source, tmp_path / "data"))
    assert nothing_prepared(tmp_path / "data")


def test_a_doubled_row_is_an_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = builder._in_threads

    def doubled(*rest: Any) -> Iterator[Any]:
        for outcome, records in run(*rest):
            yield outcome, records
            yield outcome, []

    monkeypatch.setattr(builder, "_in_threads", doubled)
    with pytest.raises(RuntimeError, match="of 6 rows 0 are missing and 6 are duplicated"):
        main(words(source, tmp_path / "data"))


def test_a_lost_or_doubled_record_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = builder._in_threads

    def shortened(*rest: Any) -> Iterator[Any]:
        return ((outcome, records[1:]) for outcome, records in run(*rest))

    monkeypatch.setattr(builder, "_in_threads", shortened)
    with pytest.raises(RuntimeError, match="test: 8 records made, 6 in the shards"):
        main(words(source, tmp_path / "data"))
    make = builder.make_records

    def alike(row: Any, find_faces: Any) -> Any:
        outcome, records = make(row, find_faces)
        same = [record | {"record_id": "same"} for record in outcome.records]
        return outcome._replace(records=same), records

    monkeypatch.setattr(builder, "_in_threads", run)
    monkeypatch.setattr(builder, "make_records", alike)
    with pytest.raises(RuntimeError, match="the record same came twice"):
        main(words(source, tmp_path / "data"))
    assert nothing_prepared(tmp_path / "data")


def test_files_are_those_of_the_folder_and_what_is_not_read_has_its_reason(tmp_path: Path):
    folder, outside = tmp_path / "in", tmp_path / "out"
    for path in (folder / "a" / "x.MP4", folder / "b.mp4", outside / "secret.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (folder / "notes.txt").write_text("x")
    (folder / "folder.mp4").mkdir()
    (folder / "within.mp4").symlink_to("a/x.MP4")
    (folder / "out.mp4").symlink_to(outside / "secret.mp4")
    (folder / "up.mp4").symlink_to("../out/secret.mp4")
    (folder / "nothing.mp4").symlink_to("gone.mp4")
    (folder / "linked").symlink_to(outside)
    (folder / "notes").symlink_to(outside / "secret.mp4")
    os.mkfifo(folder / "pipe.mp4")
    system = [
        "._b.mp4",
        ".DS_Store",
        "__MACOSX/a/x.MP4",
        "a/Thumbs.db",
        "a/desktop.ini",
        "~$t.xlsx",
    ]
    for name in system:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    expected = [
        ("linked", "a link to a folder"),
        ("notes", "a link out of the folder"),
        ("nothing.mp4", "a broken link"),
        ("out.mp4", "a link out of the folder"),
        ("pipe.mp4", "not a regular file"),
        ("up.mp4", "a link out of the folder"),
    ]
    listing = files_in(folder)
    assert listing.files == ["a/x.MP4", "b.mp4", "notes.txt", "within.mp4"]
    assert listing.skipped == expected and listing.ignored == sorted(system)
    # The folder itself may be one.
    (tmp_path / "link").symlink_to(folder)
    assert files_in(tmp_path / "link") == listing


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are always Unicode")
def test_a_name_that_is_not_utf8_is_refused_by_itself(source: Path, tmp_path: Path):
    clip = next(source.rglob("clip_0.avi"))
    shutil.copy(clip, os.fsdecode(os.fsencode(clip.parent) + b"/caf\xe9.avi"))
    assert main(words(source, tmp_path / "data")) == 0
    assert ledger(tmp_path / "data") == {"car_tech/P0/caf\\xe9.avi": "its name is not UTF-8"}
    assert build_summary(NAME, tmp_path / "data")["inputs"] == 25


def test_a_link_out_of_the_source_is_not_read(
    source: Path, tmp_path: Path, write_video: WriteVideo
):
    secret = write_video(tmp_path / "secret.avi", grey(12))
    (source / "car_tech" / "P0" / "link.avi").symlink_to(secret)
    (source / "food_market" / "P9").symlink_to(tmp_path)
    with (source / "metadata.csv").open("a") as text:
        text.write("link,0,car_tech,interested\n")
    assert main(words(source, tmp_path / "data")) == 0
    assert ledger(tmp_path / "data") == {
        "car_tech/P0/link.avi": "a link out of the folder",
        "food_market/P9": "a link to a folder",
        "metadata.csv: link": "no such file",
    }
    assert build_summary(NAME, tmp_path / "data")["records"] == 24


def test_text_that_is_not_ascii_survives(source: Path, tmp_path: Path, write_video: WriteVideo):
    name = "ä \u8bed '\"\n,x"
    write_video(source / "car_tech" / "P0" / f"{name}.avi", grey(4))
    (source / "car_tech" / "P0" / "ü.mp4").write_text("x")
    with (source / "metadata.csv").open("a", newline="", encoding="utf-8") as text:
        csv.writer(text).writerow([name, "0", "car_tech", "interested"])
    assert main(words(source, tmp_path / "data")) == 0
    ids = set(open_records(NAME, "test", tmp_path / "data").columns["record_id"])
    assert f"{NAME}/car_tech/p00/{name}/000000" in ids
    assert ledger(tmp_path / "data") == {"car_tech/P0/ü.mp4": "not in metadata.csv"}
    stored = json.loads((tmp_path / "data" / NAME / "content/1.0.0/build.json").read_text("utf-8"))
    assert stored == build_summary(NAME, tmp_path / "data")
