"""`fer_jax.load(path).predict(x)`: every kind of path and picture, and what cannot be read."""

import csv
import io
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_runs import image_bomb, picture, write_run

import fer_jax
from fer_jax.errors import InputError
from fer_jax.export.export import FILES, export
from fer_jax.inference.network import load
from fer_jax.inference.recognizer import PICTURES_AHEAD, Recognizer, as_picture, prefetch_map
from fer_jax.media import images
from fer_jax.media.extraction import Extraction, faces_in_image
from fer_jax.schema import EMOTIONS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "run", folder)


@pytest.fixture(scope="module")
def recognizer(run: Path) -> Recognizer:
    return fer_jax.load(run)


@pytest.fixture(scope="module")
def finder(run: Path, yunet_model: Path) -> Recognizer:
    return fer_jax.load(run, detector_model=str(yunet_model))


def test_every_path_that_was_trained_gives_the_same_prediction(
    run: Path, recognizer: Recognizer, tmp_path: Path
):
    export(load(run), tmp_path / "out", ("safetensors",), np.stack([picture(0, 71)]))
    (expected,) = recognizer.predict(picture(5, 71), faces="crop")
    for path in (
        run / "checkpoints",
        run / "checkpoints" / "1",
        tmp_path / "out",
        tmp_path / "out" / FILES["safetensors"],
        str(run),
    ):
        (face,) = fer_jax.load(path).predict(picture(5, 71), faces="crop")
        assert face["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)


def test_loading_prints_nothing_and_the_model_prints_as_a_few_lines(
    run: Path, recognizer: Recognizer
):
    program = "import sys, fer_jax; fer_jax.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, run],
        cwd=Path(fer_jax.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    lines = str(recognizer).splitlines()
    assert (
        len(lines) == 6
        and lines[0].startswith("Xception (width 0.03")
        and max(map(len, lines)) < 300
    )
    for part in ("emotion", "anger, disgust", "71 x 71", f"step 1 of '{run}'", "jax", "YuNet"):
        assert part in str(recognizer)


def test_a_crop_is_predicted_as_a_record_is(run: Path, recognizer: Recognizer):
    image = picture(1, 90)
    (face,) = recognizer.predict(image, faces="crop")
    (expected,) = load(run).probabilities([image])
    assert face["box"] == [0, 0, 90, 90] and face["score"] == 1
    assert list(face["probabilities"]) == list(EMOTIONS)
    np.testing.assert_allclose(list(face["probabilities"].values()), expected, atol=1e-6)
    assert face["emotion"] == EMOTIONS[expected.argmax()]
    assert json.loads(json.dumps(face)) == face


def test_every_kind_of_picture_is_the_same_picture(recognizer: Recognizer, tmp_path: Path):
    pil = pytest.importorskip("PIL.Image")
    image = picture(2, 80)
    file = tmp_path / "face.png"
    cv2.imwrite(str(file), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    turned = pil.fromarray(np.rot90(image, -1))
    turned.getexif()[0x112] = 8  # as a camera held on its side says it
    (expected,) = recognizer.predict(image, faces="crop")
    for same in (str(file), file, pil.open(file), turned, pil.fromarray(image).convert("RGBA")):
        assert recognizer.predict(same, faces="crop") == [expected]
    batch = np.stack([image, picture(3, 80)])
    for several in ([file, picture(3, 80)], batch, (one for one in batch)):
        predictions = recognizer.predict(several, faces="crop")
        assert len(predictions) == 2 and predictions[0] == [expected] != predictions[1]
    assert recognizer.predict([], faces="crop") == []


def test_features_are_those_of_the_last_layer(recognizer: Recognizer, tmp_path: Path):
    pictures = [picture(seed, 71) for seed in range(3)]
    found = recognizer.features(pictures, faces="crop")
    expected = recognizer.network.features(np.stack(pictures))
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(recognizer.features(pictures[1], faces="crop"), found[1])
    assert recognizer.features([], faces="crop").shape == (0, found.shape[1])
    with pytest.raises(InputError, match="picture 1: the array must be uint8"):
        recognizer.features([pictures[0], np.zeros((5, 5, 3))], faces="crop")
    export(recognizer.network, tmp_path, ("onnx",), np.stack(pictures))
    with pytest.raises(InputError, match="features and heatmaps need the engine jax"):
        fer_jax.load(tmp_path).features(pictures, faces="crop")


def test_a_picture_without_a_face_has_no_features(finder: Recognizer):
    rows = finder.features([np.zeros((64, 64, 3), np.uint8)] * 2)
    assert rows.shape[0] == 2 and np.isnan(rows).all()


def test_interest_is_called_interest(tmp_path: Path):
    other = fer_jax.load(write_run(tmp_path / "run", tmp_path, task="interest"))
    (face,) = other.predict(picture(0, 71), faces="crop")
    assert face["interest"] in face["probabilities"].keys() == {"not_interested", "interested"}


def test_a_full_batch_predicts_as_single_pictures_do(recognizer: Recognizer):
    pictures = [picture(seed, 71) for seed in range(43)]
    together = recognizer.predict(pictures, faces="crop")
    for number in (0, 31, 32, 39, 42):
        (alone,) = recognizer.predict(pictures[number], faces="crop")
        assert together[number][0]["probabilities"] == pytest.approx(
            alone["probabilities"], abs=1e-5
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gone.jpg", "'gone.jpg': no such file"),
        (".", "'.': is a folder"),
        (np.zeros((9, 9, 3), np.float32), "picture 0: the array must be uint8"),
        (np.zeros((9, 9), np.uint8), "picture 0: the array must be RGB"),
        ([np.zeros((9, 9, 3), np.uint8), 7], "picture 1: int is not a path, bytes, PIL image"),
    ],
)
def test_what_is_not_a_picture_is_named(recognizer: Recognizer, given: object, said: str):
    with pytest.raises(InputError, match=said):
        recognizer.predict(given, faces="crop")


def test_files_that_are_not_images_are_named(recognizer: Recognizer, tmp_path: Path):
    good = images.encode_jpeg(picture(0, 64))
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    progressive = cv2.imencode(".jpg", picture(0, 64), options)[1].tobytes()
    for content, said in (
        (b"", "empty file"),
        (b"these are words, not a picture", "unreadable image"),
        (good[: len(good) // 2], "truncated JPEG"),
        (good[: len(good) // 2] + b"\xff\xd9" + bytes(99), "truncated JPEG"),
        (progressive[: len(good) // 2] + b"\xff\xd9", "truncated JPEG"),
        (b"\0\0\0\x20ftypheic" + bytes(99), "HEIC is not supported; save the picture as JPEG"),
        (image_bomb(), "over the limit of 64000000 pixels"),
    ):
        file = tmp_path / "face.jpg"
        file.write_bytes(content)
        with pytest.raises(InputError, match=said):
            recognizer.predict(file, faces="crop")


def test_a_whole_picture_with_a_grey_corner_is_decoded_in_silence(
    capfd: pytest.CaptureFixture[str],
):
    ramp = np.repeat(np.arange(128, 192, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    data = cv2.imencode(".jpg", ramp, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    assert (images.decode(data)[0, 0] == 128).all()  # as if a block were missing there
    assert capfd.readouterr().err == ""  # libjpeg's warnings


def test_bytes_of_a_file_are_a_picture_whatever_is_behind_it(recognizer: Recognizer):
    good = images.encode_jpeg(picture(0, 64))
    (expected,) = recognizer.predict(images.decode(good), faces="crop")
    grey = cv2.imencode(".jpg", np.full((64, 64, 3), 128, np.uint8))[1].tobytes()
    assert recognizer.predict(good, faces="crop") == [expected]
    moving = good + b"\0\0\0\x18ftypmp42" + bytes(999) + good
    assert recognizer.predict([moving, good], faces="crop") == [[expected], [expected]]
    assert len(recognizer.predict(grey + bytes(999), faces="crop")) == 1


def test_16_bits_are_scaled_as_from_a_file(recognizer: Recognizer):
    image_module = pytest.importorskip("PIL.Image")
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    file = cv2.imencode(".png", grey)[1].tobytes()
    expected = as_picture(file)
    for opened in (image_module.open(io.BytesIO(file)), image_module.fromarray(grey)):
        assert np.abs(as_picture(opened).astype(int) - expected).max() <= 1
    for mode in ("L", "LA", "P", "1", "CMYK", "RGBA"):
        assert as_picture(image_module.new(mode, (9, 8))).shape == (8, 9, 3)


def test_a_stream_continues_after_what_cannot_be_read(recognizer: Recognizer):
    predictions = list(recognizer.stream(["gone.jpg", picture(0, 71)], faces="crop"))
    assert [prediction.reason for prediction in predictions] == ["no such file", ""]
    assert [len(prediction.found) for prediction in predictions] == [0, 1]


def test_an_endless_input_is_processed_with_few_pictures_ahead(recognizer: Recognizer):
    drawn = itertools.count()

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield picture(next(drawn) % 3, 71)

    predictions = recognizer.stream(endless(), faces="crop")
    for _ in range(20):
        next(predictions)
    predictions.close()
    # What is waiting for the network, what is prefetched, and the one in progress.
    assert next(drawn) <= 20 + 2 * PICTURES_AHEAD + 1


def test_prefetching_keeps_the_order_and_the_errors():
    def slow_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        if number == 5:
            raise ValueError("five")
        return number * 10

    worked = prefetch_map(range(9), slow_first, depth=3)
    assert [next(worked) for _ in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(ValueError, match="five"):
        next(worked)

    def broken() -> Iterator[int]:
        yield 1
        raise InputError("the camera stopped")

    worked = prefetch_map(broken(), float, depth=3)
    assert next(worked) == 1
    with pytest.raises(InputError, match="the camera stopped"):
        next(worked)


def test_nothing_runs_after_it_was_closed():
    began = []

    def note(number: int) -> int:
        began.append(number)
        time.sleep(0.01)
        return number

    worked = prefetch_map(itertools.count(), note, depth=4)
    next(worked)
    worked.close()
    after = len(began)
    time.sleep(0.1)
    assert len(began) == after <= 6
    assert not [
        t for t in threading.enumerate() if t.name.startswith("Thread") and "draw" in t.name
    ]


@pytest.mark.parametrize(
    ("path", "engine", "said"),
    [
        ("gone", "", "'.*gone' does not exist; name a run's workdir or an exported model"),
        (".", "", "holds no run"),
        ("words.txt", "", "JAX cannot read"),
        (".", "jaxx", "unknown engine 'jaxx'; did you mean 'jax'"),
    ],
)
def test_what_is_not_a_model_is_named(tmp_path: Path, path: str, engine: str, said: str):
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(InputError, match=said):
        fer_jax.load(tmp_path / path, engine)


def test_what_another_version_trained_is_named(run: Path, tmp_path: Path):
    for old, new, said in (
        ('"task": "emotion"', '"task": "age"', "config.task cannot be 'age'"),
        ('"model": {', '"model": {"experts": 3,', "the config has no field 'model.experts'"),
    ):
        folder = tmp_path / str(len(said))
        folder.mkdir()
        text = (run / "config.json").read_text()
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new))
        with pytest.raises(InputError, match=f"was not written by this version of fer_jax: {said}"):
            fer_jax.load(folder)


def test_without_the_detector_it_says_how_to_get_it(run: Path, tmp_path: Path):
    lacking = fer_jax.load(run, detector_model=str(tmp_path / "gone.onnx"))
    with pytest.raises(InputError, match=r"--detector_model '.*gone.onnx' does not exist"):
        lacking.predict(picture(0, 71))
    lacking.predict(picture(0, 71), faces="crop")


# Real photos


def true_boxes(shared: Path) -> dict[str, list[list[float]]]:
    with (shared / "data" / "photos" / "boxes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["ignore"] == "0"]
    boxes: dict[str, list[list[float]]] = {}
    for row in rows:
        place = [float(row[key]) for key in ("x", "y", "width", "height")]
        boxes.setdefault(row["file"], []).append(place)
    return boxes


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""
    sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def test_true_faces_are_found(finder: Recognizer, shared: Path):
    truth = true_boxes(shared)
    folder = shared / "data" / "photos"
    predictions = finder.predict([folder / name for name in truth])
    overlaps = [
        max(overlap(box, face["box"]) for face in found)
        for boxes, found in zip(truth.values(), predictions, strict=True)
        for box in boxes
    ]
    # All 23 by more than half; the truth's boxes are square, the detector's are taller.
    assert len(overlaps) == 23 and min(overlaps) > 0.6 and np.mean(overlaps) > 0.7


def test_a_crowd_gives_all_its_faces_and_a_landscape_none(finder: Recognizer, shared: Path):
    with (shared / "data" / "photos" / "manifest.csv").open(newline="") as file:
        counts = {row["file"]: int(row["yunet_count_at_0.6"]) for row in csv.DictReader(file)}
    crowd = max(counts, key=lambda name: counts[name])
    without = min(counts, key=lambda name: counts[name])
    assert counts[crowd] >= 16 and counts[without] == 0
    many, none = finder.predict([shared / "data" / "photos" / name for name in (crowd, without)])
    assert len(many) == counts[crowd] and none == []
    sizes = [face["box"][2] * face["box"][3] for face in many]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_faces_are_cropped_as_build_crops_them(
    tmp_path: Path, shared: Path, yunet_model: Path, margin: float
):
    run = write_run(tmp_path / "run", tmp_path)
    about = {"datasets": {name: {"margin": margin} for name in ("one", "two")}}
    (run / "environment.json").write_text(json.dumps(about))
    image = images.read(shared / "data" / "photos" / "photo_01.jpg")
    built = Extraction(detector_model=str(yunet_model), choice="all", margin=margin)
    crops = [images.decode(face["image"]) for face in faces_in_image(image, "", "", built).faces]
    (prediction,) = fer_jax.load(run, detector_model=str(yunet_model)).stream([image])
    assert len(prediction.found) == len(crops) == 8
    for found, crop in zip(prediction.found, crops, strict=True):
        difference = np.abs(found.crop.astype(int) - images.resized(crop, 71))
        # But for the JPEG that a record is; a margin of 0.05 more makes a mean of 4.
        assert difference.mean() < 1.5
