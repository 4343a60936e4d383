"""Clips become faces or reasons, each wanted frame one of the two, whatever happens on the way."""

import argparse
import dataclasses
import functools
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_jax.errors import InputError
from fer_jax.media import clips, detector, faces
from fer_jax.media import extraction as extractions
from fer_jax.media.clips import Clip, Job
from fer_jax.media.extraction import Extraction, Found

WriteVideo = Callable[..., Path]
WHOLE = Extraction(detector="none", frames=4)


def grey(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Pictures whose level says their number."""
    return [np.full((height, width, 3), 10 * number, np.uint8) for number in range(count)]


def done(job: Job, extraction: Extraction, folder: Path) -> Clip:
    return clips.read_clip(clips.finish_clip(job, extraction, folder))


def picture(jpeg: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


def options(*words: str, of_clips: bool = True) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    extractions.add_arguments(parser, clips=of_clips, detector="none")
    return parser.parse_args(words)


def write_boxes(path: Path, rows: list[tuple[str, int, int, int, int, int]]) -> Extraction:
    """Writes (file, frame, x, y, width, height) and returns the extraction that uses them."""
    lines = ["file,frame_index,x,y,width,height", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines))
    return Extraction(detector="boxes", boxes=str(path), every=1, frames=0)


def test_a_clip_is_kept_with_everything_that_is_known_of_its_faces(
    tmp_path: Path, write_video: WriteVideo
):
    path = write_video(tmp_path / "x.avi", grey(20))
    clip = done(Job(str(path), "set/x"), WHOLE, tmp_path / "kept")
    assert clip[1:] == (20, 20, 10.0, 64, 48)
    assert [found.item for found in clip.found] == [f"set/x/{n:06}" for n in (2, 7, 12, 17)]
    for found, number in zip(clip.found, (2, 7, 12, 17), strict=True):
        (face,) = found.faces
        assert found.reason == "" and face["frame_index"] == number
        assert face["timestamp"] == pytest.approx(number / 10)
        assert face["box"].tolist() == [8, 0, 48, 48] and face["box"].dtype == np.float32
        image = picture(face["image"])
        assert image.shape == (48, 48, 3)
        assert abs(image.astype(int) - 10 * number).max() <= 3
        assert face["_measured"]["size"] == 48


def test_a_face_is_rgb(tmp_path: Path, write_video: WriteVideo):
    red = np.zeros((48, 48, 3), np.uint8)
    red[..., 2] = 200  # BGR
    path = write_video(tmp_path / "x.avi", [red] * 3)
    image = picture(done(Job(str(path), "x"), WHOLE, tmp_path).found[0].faces[0]["image"])
    assert image[24, 24, 0] > 180 and image[24, 24, 2] < 30
    found = extractions.faces_in_image(red[..., ::-1].copy(), "x", "x.jpg", WHOLE)
    assert picture(found.faces[0]["image"])[24, 24, 0] > 180


def test_the_window_of_a_job_is_kept_to(tmp_path: Path, write_video: WriteVideo):
    path = str(write_video(tmp_path / "x.avi", grey(20)))
    clip = done(Job(path, "x", 0.5, 1.0), WHOLE, tmp_path)
    assert [found.item for found in clip.found] == [f"x/{n:06}" for n in (5, 6, 8, 9)]
    late = done(Job(path, "x", 5.0, 9.0), WHOLE, tmp_path)
    assert late.found == [Found("x", [], "no frame in the clip's window")]


def test_every_wanted_frame_is_a_face_or_a_reason(tmp_path: Path, write_video: WriteVideo):
    """Largest, all, tracked: of a passer-by in a clip of somebody who stays."""
    path = write_video(tmp_path / "x.avi", [np.full((100, 200, 3), 60, np.uint8)] * 6)
    rows = [("x.avi", n, 10, 10, 20, 20) for n in (0, 1, 2, 4)]
    rows += [("x.avi", n, 100, 10, 50, 50) for n in (1, 2)]
    rows += [("x.avi", 5, 160, 60, 30, 30)]
    extraction = write_boxes(tmp_path / "boxes.csv", rows)
    job = Job(str(path), "x")

    def sides(choice: str, **gates: float) -> dict[int, list[int] | str]:
        chosen = dataclasses.replace(extraction, choice=choice, **gates)
        return {
            int(found.item[-6:]): [int(face["box"][2]) for face in found.faces] or found.reason
            for found in done(job, chosen, tmp_path).found
        }

    none = "no face"
    assert sides("largest") == {0: [20], 1: [50], 2: [50], 3: none, 4: [20], 5: [30]}
    assert sides("all") == {0: [20], 1: [50, 20], 2: [50, 20], 3: none, 4: [20], 5: [30]}
    absent = "the tracked person is not in this frame"
    assert sides("tracked") == {0: [20], 1: [20], 2: [20], 3: none, 4: [20], 5: absent}
    small = "size below 25"
    assert sides("largest", min_size=25) == {0: small, 1: [50], 2: [50], 3: none, 4: small, 5: [30]}
    assert sides("all", min_size=25) == sides("largest", min_size=25)
    assert sides("tracked", min_size=25)[1] == small
    assert sides("largest", min_contrast=5)[0] == "contrast below 5"
    assert sides("largest", min_sharpness=5)[0] == "sharpness below 5"
    several = "several faces"
    alone = {0: [20], 1: several, 2: several, 3: none, 4: [20]}
    assert sides("largest", one_face=True) == alone | {5: [30]}
    assert sides("all", one_face=True) == alone | {5: [30]}
    assert sides("tracked", one_face=True) == alone | {5: absent}


def test_of_all_faces_each_says_which_one_it_is_whatever_the_gates(
    tmp_path: Path, write_video: WriteVideo
):
    path = write_video(tmp_path / "x.avi", grey(1, 100, 200))
    rows = [("x.avi", 0, 10, 10, 20, 20), ("x.avi", 0, 50, 10, 60, 60), ("x.avi", 0, 150, 0, 9, 9)]
    extraction = write_boxes(tmp_path / "boxes.csv", rows)

    def numbers(choice: str, size: float = 0) -> list[tuple[int | None, int]]:
        chosen = dataclasses.replace(extraction, choice=choice, min_size=size)
        (found,) = done(Job(str(path), "x"), chosen, tmp_path).found
        return [(face["_number"], int(face["box"][2])) for face in found.faces]

    assert numbers("all") == [(0, 60), (1, 20), (2, 9)]
    assert numbers("all", 15) == [(0, 60), (1, 20)]
    assert numbers("largest") == [(None, 60)] and numbers("tracked") == [(None, 60)]


def test_a_crowd_is_followed_by_its_largest_faces_only(tmp_path: Path, write_video: WriteVideo):
    path = write_video(tmp_path / "x.avi", [np.full((100, 400, 3), 60, np.uint8)] * 2)
    rows = [("x.avi", n, 30 * i, 10, 10 + i, 10 + i) for n in (0, 1) for i in range(12)]
    extraction = dataclasses.replace(
        write_boxes(tmp_path / "boxes.csv", rows), choice="tracked", one_face=False
    )
    kept = clips.finish_clip(Job(str(path), "x"), extraction, tmp_path)
    with zipfile.ZipFile(kept) as archive:
        jpegs = [name for name in archive.namelist() if name.endswith(".jpg")]
    assert len(jpegs) == 2 * clips.MAX_TRACKED_FACES
    assert [found.faces[0]["box"][2] for found in clips.read_clip(kept).found] == [21, 21]


def test_boxes_name_a_clip_by_the_end_of_its_path(tmp_path: Path, write_video: WriteVideo):
    for person in ("P1", "P2"):
        write_video(tmp_path / person / "1.avi", grey(2))
    rows = [("P2/1.avi", 0, 1, 1, 11, 11), ("1.avi", 1, 1, 1, 22, 22), ("9/1.avi", 0, 1, 1, 9, 9)]
    extraction = write_boxes(tmp_path / "boxes.csv", rows)

    def sides(person: str) -> list[list[float]]:
        clip = done(Job(str(tmp_path / person / "1.avi"), person), extraction, tmp_path)
        return [[face["box"][2] for face in found.faces] for found in clip.found]

    assert sides("P1") == [[], [22]]
    assert sides("P2") == [[11], [22]]


def test_a_box_outside_the_picture_is_no_face(tmp_path: Path):
    image = np.zeros((50, 80, 3), np.uint8)
    for x, y, reason in (
        (79, 49, ""),
        (-9, 0, ""),
        (80, 0, "the box is outside the image"),
        (0, 50, "the box is outside the image"),
        (-10, 0, "the box is outside the image"),
        (0, -10, "the box is outside the image"),
    ):
        extraction = write_boxes(tmp_path / f"{x}_{y}.csv", [("a/x.jpg", 0, x, y, 10, 10)])
        found = extractions.faces_in_image(image, "set/x", "a/x.jpg", extraction)
        assert (found.item, found.reason, len(found.faces)) == ("set/x", reason, not reason)


def test_of_a_photo_one_face_or_all_are_taken(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    rows = [("x.jpg", 0, 10, 10, 20, 20), ("x.jpg", 0, 60, 20, 50, 50)]
    extraction = write_boxes(tmp_path / "boxes.csv", rows)

    def found(**options: Any) -> tuple[list[tuple[int | None, tuple[int, ...]]], str]:
        chosen = dataclasses.replace(extraction, **options)
        one = extractions.faces_in_image(image, "x", "x.jpg", chosen)
        return [(f["_number"], picture(f["image"]).shape) for f in one.faces], one.reason

    assert found() == ([(None, (50, 50, 3))], "")
    assert found(choice="all") == ([(0, (50, 50, 3)), (1, (20, 20, 3))], "")
    assert found(margin=0.5) == ([(None, (75, 75, 3))], "")
    assert found(one_face=True) == ([], "several faces")
    assert found(min_size=51, choice="all") == ([], "size below 51")
    other = write_boxes(tmp_path / "other.csv", [("y.jpg", 0, 10, 10, 20, 20)])
    assert found(boxes=other.boxes) == ([], "no face")


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        ({}, faces.LARGE_FACES),
        ({"choice": "tracked"}, faces.LARGE_FACES),
        ({"choice": "all"}, faces.ALL_FACES),
        ({"one_face": True}, faces.ALL_FACES),  # a small one is a second one
    ],
)
def test_small_faces_are_searched_where_they_count(
    monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any], size: int
):
    sizes = []

    def detect(image: np.ndarray, size: int) -> list[faces.Face]:
        sizes.append(size)
        return []

    monkeypatch.setattr(extractions, "make_detector", lambda name, model, smallest: detect)
    extractions.faces_in_image(np.zeros((9, 9, 3), np.uint8), "x", "x.jpg", Extraction(**wanted))
    assert sizes == [size]


def test_a_file_that_cannot_be_opened_is_one_reason(tmp_path: Path):
    (tmp_path / "x.mp4").write_text("no video")
    clip = done(Job(str(tmp_path / "x.mp4"), "set/x"), WHOLE, tmp_path)
    assert clip == Clip([Found("set/x", [], "not a video, or damaged")], 0, 0, 0.0, 0, 0)
    gone = done(Job(str(tmp_path / "gone.mp4"), "set/gone"), WHOLE, tmp_path)
    assert gone.found == [Found("set/gone", [], "no such file")]


def test_frames_that_are_only_claimed_have_their_reason(tmp_path: Path, write_video: WriteVideo):
    path = write_video(tmp_path / "x.avi", grey(10))
    data = bytearray(path.read_bytes())
    for place in (data.index(b"avih") + 24, data.index(b"strh") + 40):
        data[place : place + 4] = (20).to_bytes(4, "little")
    path.write_bytes(data)
    clip = done(Job(str(path), "x"), WHOLE, tmp_path)
    assert (clip.frames_claimed, clip.frames_decoded) == (20, 10)
    assert [(found.item, found.reason) for found in clip.found] == [
        ("x/000002", ""),
        ("x/000007", ""),
        ("x/000012", "the file ends before this frame"),
        ("x/000017", "the file ends before this frame"),
    ]


def test_what_is_kept_is_for_this_file_and_this_extraction_only(
    tmp_path: Path, write_video: WriteVideo
):
    path = write_video(tmp_path / "x.avi", grey(20))
    boxes = write_boxes(tmp_path / "boxes.csv", [("x.avi", 0, 1, 1, 9, 9)])
    job = Job(str(path), "x")

    def key(job: Job = job, extraction: Extraction = WHOLE) -> str:
        return clips.finished_file(job, extraction, tmp_path).name

    other = {
        "frames": 5,
        "every": 2,
        "seconds": 0.5,
        "detector": "haar",
        "choice": "all",
        "margin": 0.1,
        "min_size": 1.0,
        "min_contrast": 1.0,
        "min_sharpness": 1.0,
        "one_face": True,
    }
    fields = {field.name for field in dataclasses.fields(Extraction)}
    assert other.keys() == fields - {"detector_model", "boxes"}
    keys = [key()]
    keys += [key(extraction=dataclasses.replace(WHOLE, **{k: v})) for k, v in other.items()]
    keys += [key(job._replace(item="y")), key(job._replace(start_s=1.0))]
    keys += [key(job._replace(end_s=1.0)), key(job._replace(path=str(tmp_path / "y.avi")))]
    # The file's content: its time or its size changes, or the boxes drawn for it do.
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    keys.append(key())
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    keys.append(key())
    keys.append(key(extraction=boxes))
    with Path(boxes.boxes).open("a") as text:
        text.write("\nx.avi,1,1,1,9,9\n")
    extractions.from_arguments(options("--detector=boxes", f"--boxes={boxes.boxes}"))
    keys.append(key(extraction=boxes))
    assert len(set(keys)) == len(keys)
    # Where a table or a network lies does not matter.
    shutil.copy(boxes.boxes, tmp_path / "copy.csv")
    assert key(extraction=dataclasses.replace(boxes, boxes=str(tmp_path / "copy.csv"))) == keys[-1]


def test_a_finished_clip_is_not_decoded_again(tmp_path: Path, write_video: WriteVideo):
    path = write_video(tmp_path / "x.avi", grey(20))
    job = Job(str(path), "x")
    kept = clips.finish_clip(job, WHOLE, tmp_path / "kept")
    first = kept.read_bytes()
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert list(clips.extract([job], WHOLE, tmp_path / "kept", processes=1)) == [job]
    assert kept.read_bytes() == first
    assert list((tmp_path / "kept").iterdir()) == [kept]


def test_a_clip_that_was_stopped_half_way_is_not_taken_for_whole(
    tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
):
    job = Job(str(write_video(tmp_path / "x.avi", grey(20))), "x")
    cut = clips.crop_face
    calls = iter(range(2))

    def stopped(*words: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return cut(*words)  # pyright: ignore[reportArgumentType] (passed on as it came)

    monkeypatch.setattr(clips, "crop_face", stopped)
    with pytest.raises(KeyboardInterrupt):
        clips.finish_clip(job, WHOLE, tmp_path / "kept")
    assert not clips.finished_file(job, WHOLE, tmp_path / "kept").exists()
    monkeypatch.undo()
    assert len(done(job, WHOLE, tmp_path / "kept").found) == 4


@pytest.mark.usefixtures("crashing_decoder")
def test_a_decoder_that_crashes_harms_no_other_clip(tmp_path: Path, write_video: WriteVideo):
    names = ["a", "crash_1", "b", "c", "crash_2", "d"]
    jobs = [Job(str(write_video(tmp_path / f"{n}.avi", grey(4))), n) for n in names]
    kept = tmp_path / "kept"
    finished = list(clips.extract(jobs, WHOLE, kept, processes=2))
    assert sorted(finished) == sorted(jobs)
    for job in jobs:
        clip = clips.read_clip(clips.finished_file(job, WHOLE, kept))
        if "crash" in job.item:
            assert clip.found == [Found(job.item, [], "its decoder crashed")]
        else:
            assert len(clip.found) == 4 and all(found.faces for found in clip.found)
    # What is known of them is known the next time, without a process.
    assert list(clips.extract(jobs, WHOLE, kept, processes=0)) == jobs


def test_processes_that_cannot_start_are_no_clips_fault(
    tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
):
    job = Job(str(write_video(tmp_path / "x.avi", grey(4))), "x")
    monkeypatch.setattr(clips, "start_worker", functools.partial(os._exit, 3))
    with pytest.raises(BrokenProcessPool):
        list(clips.extract([job], WHOLE, tmp_path / "kept", processes=1))
    assert not clips.finished_file(job, WHOLE, tmp_path / "kept").exists()


def test_flags_become_an_extraction(tmp_path: Path, yunet_model: Path):
    assert extractions.from_arguments(options()) == Extraction(detector="none")
    words = ["--every=3", "--choice=tracked", "--margin=0.3", "--min_contrast=20", "--one_face"]
    assert extractions.from_arguments(options(*words)) == Extraction(
        frames=0,
        every=3,
        detector="none",
        choice="tracked",
        margin=0.3,
        min_contrast=20.0,
        one_face=True,
    )
    assert extractions.from_arguments(options("--seconds=0.5")).frames == 0
    # Photos have no frames to choose.
    photo = extractions.from_arguments(options("--choice=all", of_clips=False))
    assert photo == Extraction(detector="none", choice="all")
    given = extractions.from_arguments(
        options("--detector=yunet", f"--detector_model={yunet_model}")
    )
    assert given.detector_model == str(yunet_model)
    remembered = extractions.recorded(given)
    assert remembered["detector_model"] == detector.YUNET_SHA256[:16]
    assert json.loads(json.dumps(remembered)) == remembered


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--frames=0"], "--frames must be at least 1"),
        (["--frames=-1"], "--frames must be at least 0, got -1"),
        (["--every=-2"], "--every must be at least 0, got -2"),
        (["--seconds=nan"], "--seconds must be at least 0, got nan"),
        (["--seconds=inf"], "--seconds must be at least 0, got inf"),
        (["--min_size=-1"], "--min_size must be at least 0"),
        (["--margin=-0.6"], "--margin must be in -0.5 to 4, got -0.6"),
        (["--margin=nan"], "--margin must be in -0.5 to 4, got nan"),
        (["--boxes=x.csv"], "--detector=boxes and --boxes=FILE must be given together"),
        (["--detector=boxes"], "--detector=boxes and --boxes=FILE must be given together"),
        (["--detector=boxes", "--boxes=gone.csv"], "--boxes 'gone.csv' does not exist"),
        (["--detector=yunet", "--detector_model=gone.onnx"], "'gone.onnx' does not exist"),
    ],
)
def test_wrong_options_are_refused_before_work_starts(words: list[str], says: str):
    with pytest.raises(InputError, match=says):
        extractions.from_arguments(options(*words))


def test_without_the_detectors_file_no_other_detector_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(detector, "YUNET_URL", "http://127.0.0.1:9/nobody.onnx")
    detector.make_detector.cache_clear()
    with pytest.raises(InputError, match="could not be downloaded .*--detector=haar needs no file"):
        extractions.from_arguments(options("--detector=yunet"))
    assert extractions.from_arguments(options("--detector=haar")).detector == "haar"


def test_a_jobs_window_defaults_to_the_whole_clip():
    assert Job("x.mp4", "x") == ("x.mp4", "x", 0.0, math.inf)


def test_real_videos_side_by_side(shared: Path, tmp_path: Path, yunet_model: Path):
    """The frames that are there are the manifest's, none is missing, and the faces are found."""
    videos = shared / "data" / "videos"
    lines = (videos / "manifest.csv").read_text().splitlines()
    rows = {
        line.split(",")[0]: dict(zip(lines[0].split(","), line.split(","), strict=True))
        for line in lines[1:]
    }
    extraction = Extraction(detector_model=str(yunet_model))
    jobs = [Job(str(videos / name), name) for name in rows]
    finished = list(clips.extract(jobs, extraction, tmp_path, processes=2))
    assert sorted(finished) == sorted(jobs) and len(jobs) == 36
    for job in jobs:
        row = rows[job.item]
        clip = clips.read_clip(clips.finished_file(job, extraction, tmp_path))
        if job.item.startswith("broken"):
            assert clip.found == [Found(job.item, [], "not a video, or damaged")]
            continue
        assert clip.frames_claimed == clip.frames_decoded == int(row["frames_decoded"])
        assert (clip.width, clip.height) == (int(row["w"]), int(row["h"]))
        assert len(clip.found) == min(10, clip.frames_claimed)
        assert all(bool(found.faces) != bool(found.reason) for found in clip.found)
        assert {found.reason for found in clip.found} <= {"", "no face"}
        if row["frames_with_face_of_10"]:
            with_faces = sum(bool(found.faces) for found in clip.found)
            assert abs(with_faces - int(row["frames_with_face_of_10"])) <= 1
