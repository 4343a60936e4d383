"""The verb `predict`: every input ends in predictions or in a row with a reason, and once."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_runs import picture, write_run

from fer_jax import storage
from fer_jax.__main__ import main
from fer_jax.figures import CLASS_COLOURS
from fer_jax.inference import recognizer
from fer_jax.media import images, video
from fer_jax.media.faces import Face
from fer_jax.predict import predict as predicting
from fer_jax.predict.output import DrawnFace, annotate
from fer_jax.schema import EMOTIONS, TASKS

pytestmark = pytest.mark.usefixtures("short_network")

WriteVideo = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "run", folder)


@pytest.fixture
def two_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that finds bright squares."""

    def detect(image: np.ndarray, size: int) -> list[Face]:
        bright = (image.max(axis=2) > 40).astype(np.uint8)
        _, _, boxes, _ = cv2.connectedComponentsWithStats(bright)
        return [
            Face((float(x), float(y), float(w), float(h)), 0.9, None) for x, y, w, h, _ in boxes[1:]
        ]

    monkeypatch.setattr(recognizer, "make_detector", lambda name, model, fast: detect)


def scene(number: int, *, people: int = 2) -> np.ndarray:
    """A BGR picture with people that move apart, the first one larger."""
    image = np.zeros((120, 200, 3), np.uint8)
    for person in range(people):
        x, size = (60 - number, 40) if person == 0 else (120 + number, 30)
        face = picture(person, size) // 2 + 100
        image[40 : 40 + size, x : x + size] = face
    return image


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def frames_of(file: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(file)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(frame)


@pytest.fixture
def folder(tmp_path: Path, write_video: WriteVideo) -> Path:
    """One of each kind of input."""
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    cv2.imwrite(str(folder / "two.png"), scene(0))
    cv2.imwrite(str(folder / "inner" / "two.png"), scene(0))
    cv2.imwrite(str(folder / "nobody.jpg"), scene(0, people=0))
    (folder / "words.jpg").write_text("no picture at all")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("notes")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "words.mp4").write_text("no clip at all")
    write_video(folder / "moves.avi", [scene(n) for n in range(20)])
    return folder


def test_a_folder_ends_in_predictions_and_reasons(
    two_faces: None, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = ["predict", str(folder), f"--model={run}", f"--out={out}"]
    assert main([*words, "--explain", "--smooth=0.3"]) == 0
    ledger = {
        Path(row["file"]).relative_to(folder).as_posix(): row for row in table(out / "ledger.csv")
    }
    assert {name: row["reason"] for name, row in ledger.items() if row["reason"]} == {
        "words.jpg": "unreadable image",
        "empty.jpg": "empty file",
        "itself.jpg": "no such file",
        "notes.txt": "neither a picture nor a clip: its name ends in .txt",
        "words.mp4": "not a video, or damaged",
    }
    counts = {
        n: (r["pictures"], r["with_faces"], r["faces"])
        for n, r in ledger.items()
        if not r["reason"]
    }
    assert counts == {
        "two.png": ("1", "1", "2"),
        "inner/two.png": ("1", "1", "2"),
        "nobody.jpg": ("1", "0", "0"),
        "moves.avi": ("20", "20", "40"),
    }
    said = capsys.readouterr().out
    assert "9 inputs: 4 processed (0 of them in part), 5 not" in said
    assert "23 pictures, 22 with a face, 44 faces" in said

    rows = lines(out / "faces.jsonl")
    assert len(rows) == 44 == len(table(out / "faces.csv"))
    for row, flat in zip(rows, table(out / "faces.csv"), strict=True):
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert [float(flat[key]) for key in ("x", "y", "width", "height")] == row["box"]
        assert [float(flat[f"p_{name}"]) for name in EMOTIONS] == list(
            row["probabilities"].values()
        )
        assert flat["emotion"] == row["emotion"]
    clip = [row for row in rows if row["file"].endswith("moves.avi")]
    assert [row["frame"] for row in clip[::2]] == list(range(20))
    assert [row["timestamp_s"] for row in clip[::2]] == pytest.approx(np.arange(20) / 10)
    # Each keeps its number, though both move.
    for number, start, step in ((1, 60, -1), (2, 120, 1)):
        moved = [row["box"][0] for row in clip if row["face"] == number]
        np.testing.assert_allclose(moved, start + step * np.arange(20), atol=3)

    people = table(out / "clips.csv")
    assert [(row["face"], row["frames"]) for row in people] == [("1", "20"), ("2", "20")]
    for row in people:
        mean = np.mean(
            [list(one["smoothed"].values()) for one in clip if one["face"] == int(row["face"])],
            axis=0,
        )
        np.testing.assert_allclose(
            [float(row[f"mean_{name}"]) for name in EMOTIONS], mean, atol=1e-4
        )

    drawn = frames_of(out / ledger["moves.avi"]["drawn"])
    assert len(drawn) == 20 and drawn[0].shape[1] == 200 and drawn[0].shape[0] > 120
    assert images.read(out / ledger["two.png"]["drawn"]).shape[1] == 200
    assert ledger["two.png"]["drawn"] != ledger["inner/two.png"]["drawn"]
    looks = {path.name for path in (out / "explanations").rglob("*.jpg")}
    assert looks == {"two.png.1.jpg", "two.png.2.jpg", "moves.avi.1.jpg", "moves.avi.2.jpg"}
    plot = ElementTree.parse(out / "timelines" / "moves.avi.svg").getroot()
    assert "time constant of 0.3 s" in " ".join(plot.itertext())


def test_the_same_command_resumes_and_does_nothing_twice(
    two_faces: None, run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    words = ["predict", str(folder), f"--model={run}", f"--out={out}"]
    whole = predicting.Output.finish

    def stopped(self: Any, one: Any, **known: Any) -> None:
        if one.path.name == "nobody.jpg":
            raise KeyboardInterrupt
        whole(self, one, **known)

    monkeypatch.setattr(predicting.Output, "finish", stopped)
    assert main(words) == 130
    before = (out / "ledger.csv").read_text()
    # Another stop, in the middle of a row.
    with (out / "faces.jsonl").open("a") as file:
        file.write('{"file": "' + (folder / "two.png").as_posix() + '", "face": 1, "bo')
    with (out / "ledger.csv").open("a") as file:
        file.write((folder / "two.png").as_posix() + ",picture,1")
    asked: list[str] = []

    def watched(self: Any, one: Any, **known: Any) -> None:
        asked.append(one.path.name)
        whole(self, one, **known)

    monkeypatch.setattr(predicting.Output, "finish", watched)
    assert main(words) == 0
    assert (out / "ledger.csv").read_text().startswith(before)
    done = [Path(row["file"]).name for row in csv.DictReader(before.splitlines())]
    assert done and sorted(done + asked) == sorted(p.name for p in folder.rglob("*.*"))
    rows = lines(out / "faces.jsonl")
    assert len(rows) == 44 and len({json.dumps(row) for row in rows}) == 44

    asked.clear()
    assert main(words) == 0 and asked == []
    # Rows that two commands wrote, before folders were locked, are written again.
    double = (out / "faces.jsonl").read_text().splitlines()[0] + "\n"
    with (out / "faces.jsonl").open("a") as file:
        file.write(double)
    assert main(words) == 0 and asked == [Path(json.loads(double)["file"]).name]
    assert len(lines(out / "faces.jsonl")) == 44
    asked.clear()
    with storage.lock(out):
        assert main(words) == 2 and asked == []
    cv2.imwrite(str(folder / "two.png"), scene(0, people=1))
    assert main(words) == 0 and asked == ["two.png"]
    assert len(lines(out / "faces.jsonl")) == 43 == len(table(out / "faces.csv"))
    assert len(table(out / "clips.csv")) == 2


def test_predictions_of_other_settings_are_not_mixed(
    two_faces: None, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = [
        "predict",
        str(folder / "moves.avi"),
        f"--model={run}",
        f"--out={out}",
        "--no_pictures",
    ]
    assert main(words) == 0
    assert {path.name for path in out.iterdir()} == {
        *("faces.csv", "faces.jsonl", "clips.csv", "ledger.csv", "settings.json", ".lock")
    }
    capsys.readouterr()
    assert main([*words, "--every=5"]) == 2
    assert "other settings: every (was 1, now 5); choose another --out" in capsys.readouterr().err
    assert main([*words, "--every=5", "--start=0.4", "--end=1.6", "--overwrite"]) == 0
    assert [row["frame"] for row in lines(out / "faces.jsonl")] == [4, 4, 9, 9, 14, 14]


def test_without_a_folder_the_rows_are_printed(
    two_faces: None, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    pattern = str(folder / "**" / "*.png")
    assert main(["predict", pattern, f"--model={run}"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4 and rows[0]["box"][2:] == pytest.approx([40, 40], abs=2)
    assert main(["predict", str(folder / "words.jpg"), f"--model={run}"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "words.jpg: unreadable image" in shown.err


def test_a_clip_that_stops_is_processed_as_far_as_it_goes(
    two_faces: None, run: Path, tmp_path: Path, write_video: WriteVideo
):
    whole = write_video(tmp_path / "whole.avi", [scene(n % 20) for n in range(40)])
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert main(["predict", str(cut), f"--model={run}", f"--out={tmp_path / 'out'}"]) == 0
    (row,) = table(tmp_path / "out" / "ledger.csv")
    decoded = len(frames_of(cut))
    assert 10 < decoded < 40 and int(row["pictures"]) == decoded
    assert row["reason"].startswith(f"{40 - decoded} frames missing ({decoded} to 39)")


def test_a_cut_to_another_person_begins_a_new_face(
    run: Path, tmp_path: Path, write_video: WriteVideo
):
    people = [
        picture(0, 96) // 2 + np.asarray(tint, np.uint8) for tint in ((120, 0, 0), (0, 0, 120))
    ]
    clip = write_video(tmp_path / "cut.avi", [people[n // 4] for n in range(8)])
    words = [f"--model={run}", f"--out={tmp_path / 'out'}", "--faces=crop", "--no_pictures"]
    assert main(["predict", str(clip), *words]) == 0
    rows = table(tmp_path / "out" / "clips.csv")
    assert [(row["face"], row["frames"]) for row in rows] == [("1", "4"), ("2", "4")]


def test_a_camera_is_processed_until_its_end(
    two_faces: None,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_video: WriteVideo,
):
    clip = write_video(tmp_path / "clip.avi", [scene(n) for n in range(20)])
    opened = cv2.VideoCapture
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda number: opened(str(clip)))
    monkeypatch.setattr(video, "CAMERA_TIMEOUT_S", 0.2)
    assert (
        main(["predict", "webcam", f"--model={run}", f"--out={tmp_path / 'out'}", "--end=60"]) == 0
    )
    (row,) = table(tmp_path / "out" / "ledger.csv")
    # Frames that come while another is processed are skipped; the reason is why it ended.
    assert row["file"] == "webcam" and 1 <= int(row["pictures"]) <= 20
    assert row["reason"] == "camera 0 sends no frames"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.jpg", "--model=RUN"], "'gone.jpg' does not exist"),
        (["*.gone", "--model=RUN"], "no file matches '*.gone'"),
        (["webcam:7", "--model=RUN", "--faces=crop"], "no camera 7 on this machine"),
        (["DATA", "--model=gone"], "'gone' does not exist; name a run's workdir"),
        (["DATA", "--model=DATA"], "holds no run"),
        (["DATA", "--model=RUN", "--every=0"], "--every must be at least 1, got 0"),
        (["DATA", "--model=RUN", "--start=2", "--end=1"], "--end must be after --start"),
        (["DATA", "--model=RUN", "--smooth=-1"], "--smooth must be at least 0"),
        (["DATA", "--model=RUN", "--explain"], "--explain draws pictures; it needs --out"),
        (["DATA", "--model=RUN", "--faces=cropp"], "invalid choice: 'cropp'"),
        (
            ["DATA", "--model=RUN", "--detector_model=gone"],
            "--detector_model 'gone' does not exist",
        ),
    ],
)
def test_mistakes_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
):
    data = tmp_path / "data"
    data.mkdir()
    cv2.imwrite(str(data / "two.png"), scene(0))
    words = [word.replace("RUN", str(run)).replace("DATA", str(data)) for word in words]
    assert main(["predict", *words]) in (1, 2)
    shown = capsys.readouterr()
    assert said in shown.err and len(shown.err.strip().splitlines()) == 1
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("width", [90, 400])
def test_a_picture_is_marked_where_its_faces_are(width: int):
    image = np.zeros((300, width, 3), np.uint8)
    box = (20.0, 150.0, 50.0, 60.0)
    chances = np.full(7, 0.05)
    chances[EMOTIONS.index("sadness")] = 0.7
    marked = annotate(image, [DrawnFace(box, "1", chances)], "emotion")
    assert marked.shape[1] == width and marked.shape[0] > 300 and not image.any()
    red, green, blue = bytes.fromhex(CLASS_COLOURS["sadness"][1:])
    here = np.abs(marked[:300].astype(int) - (blue, green, red)).max(axis=2) < 12
    rows, columns = np.nonzero(here)
    # The box, and above it most of the bar.
    assert (rows.max(), columns.min(), columns.max()) == (210, 20, max(70, columns.max()))
    assert here[180, 20] and here[180, 70] and not marked[160:200, 25:65].any()
    # A face at the edge, or larger than the picture, is drawn as far as it is inside.
    annotate(image, [DrawnFace((-50, -50, 1000, 1000), "", chances)], "emotion")
    assert set(CLASS_COLOURS) == {name for classes in TASKS.values() for name in classes}


def test_brackets_in_a_folders_name_are_no_pattern(tmp_path: Path):
    for name in ("photos [2024]/a.jpg", "photos [2024]/b.png", "photos 2/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = predicting.find_inputs(
        [f"{tmp_path}/photos [2024]/*.jpg", f"{tmp_path}/photos [0-9]/*"]
    )
    assert [one.path.parent.name for one in found] == ["photos [2024]", "photos 2"]


def test_a_picture_is_one_whatever_its_ending(tmp_path: Path):
    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    for name in ("plain", "x.jpg_large"):
        (tmp_path / name).write_bytes(picture)
    (tmp_path / "text").write_text("x")
    found = predicting.find_inputs([str(tmp_path)])
    assert {one.path.name: one.kind for one in found} == {
        **{"plain": "picture", "text": "", "x.jpg_large": "picture"}
    }
