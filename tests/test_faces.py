"""Faces land where they must in the crop; the detector is the known one or none; gates tell why."""

import csv
import http.server
import math
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_jax.errors import InputError
from fer_jax.media import detector, faces, images
from fer_jax.media.faces import Face
from fer_jax.media.video import Video

# Where the eyes and the nose of the mean face lie in a tight crop, in shares of its side.
EYES_AND_NOSE = np.array([[0.31, 0.38], [0.69, 0.38], [0.5, 0.38 + 0.57 * 0.38]])


def box_face(*box: float) -> Face:
    return Face((box[0], box[1], box[2], box[3]), 1.0, None)


def placed(eyes_apart: float, degrees: float, middle: tuple[float, float]) -> np.ndarray:
    """The mean face's landmarks [5, 2], turned, scaled and shifted."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (faces.MEAN_FACE @ turn * eyes_apart + middle).astype(np.float32)


def with_spots(height: int, width: int, landmarks: np.ndarray, sigma: float) -> np.ndarray:
    """A black picture with the left eye bright in channel 0, the right in 1, the nose in 2."""
    y, x = np.mgrid[:height, :width]
    return np.dstack(
        [
            255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * sigma**2))
            for spot in landmarks[:3]
        ]
    ).astype(np.uint8)


def spots(crop: np.ndarray) -> np.ndarray:
    """Where each channel is bright, [3, 2], in shares of the crop's side."""
    y, x = np.mgrid[: len(crop), : len(crop)] + 0.5
    weight = np.maximum(crop.astype(np.float64) - 10, 0)
    return np.array(
        [[(x * w).sum(), (y * w).sum()] / w.sum() for w in np.moveaxis(weight, 2, 0)]
    ) / len(crop)


@pytest.mark.parametrize("degrees", [0.0, 17.0, -35.0, 90.0, 180.0])
@pytest.mark.parametrize("eyes_apart", [15.0, 60.0, 97.3, 140.0, 195.0, 300.0, 430.0])
def test_eyes_and_nose_land_where_the_framing_has_them(eyes_apart: float, degrees: float):
    middle = (3.1 * eyes_apart / 2 + 0.37, 1.4 * eyes_apart + 0.81)
    size = math.ceil(3.2 * eyes_apart)
    landmarks = placed(eyes_apart, degrees, middle)
    picture = with_spots(size, size + 7, landmarks, sigma=0.07 * eyes_apart)
    face = Face((0, 0, 1, 1), 1.0, landmarks)
    crop = faces.align(picture, face)
    side = eyes_apart / 0.38
    assert crop.shape == (min(256, round(side)),) * 2 + (3,) and crop.dtype == np.uint8
    # A tenth of a pixel of the crop: bilinear sampling and 8 bits leave less.
    np.testing.assert_allclose(spots(crop), EYES_AND_NOSE, atol=0.1 / len(crop))


@pytest.mark.parametrize("eyes_apart", [60.0, 200.0, 390.0])
@pytest.mark.parametrize("degrees", [0.0, 45.0, 200.0])
def test_all_of_a_crop_is_where_it_was_in_the_picture(eyes_apart: float, degrees: float):
    landmarks = placed(eyes_apart, degrees, (2.3 * eyes_apart, 2.3 * eyes_apart))
    size = math.ceil(4.6 * eyes_apart)

    def wave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        period = eyes_apart / 4
        return 127 + 100 * np.sin(x / period) * np.cos(y / period)

    y, x = np.mgrid[:size, :size]
    picture = np.repeat(np.round(wave(x, y)).astype(np.uint8)[..., None], 3, axis=2)
    crop = faces.align(picture, Face((0, 0, 1, 1), 1.0, landmarks))
    # Where each of its pixels was: the framing in distances between the eyes, turned.
    share = (np.arange(len(crop)) + 0.5) / len(crop)
    right, down = np.meshgrid((share - 0.5) / 0.38, (share - 0.38) / 0.38)
    angle = math.radians(degrees)
    x = 2.3 * eyes_apart + eyes_apart * (math.cos(angle) * right - math.sin(angle) * down)
    y = 2.3 * eyes_apart + eyes_apart * (math.sin(angle) * right + math.cos(angle) * down)
    # Averaging over the pixels of a crop's pixel flattens the wave by a level or two.
    assert np.abs(crop[..., 0] - wave(x, y)).max() < 4


@pytest.mark.parametrize("eyes_apart", [50.0, 300.0])
def test_a_margin_widens_about_the_same_middle(eyes_apart: float):
    landmarks = placed(eyes_apart, 12.0, (2.5 * eyes_apart, 2 * eyes_apart))
    size = round(5 * eyes_apart)
    picture = with_spots(size, size, landmarks, sigma=0.1 * eyes_apart)
    for margin in (-0.2, 0.3, 0.6):
        crop = faces.align(picture, Face((0, 0, 1, 1), 1.0, landmarks), margin=margin)
        expected = 0.5 + (EYES_AND_NOSE - 0.5) / (1 + margin)
        assert len(crop) == min(256, round(eyes_apart / 0.38 * (1 + margin)))
        np.testing.assert_allclose(spots(crop), expected, atol=0.1 / len(crop))


@pytest.mark.parametrize("eyes_apart", [60.0, 97.3, 260.0, 431.0])
@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_face_at_the_border_stays_in_its_framing(eyes_apart: float, corner: tuple[int, int]):
    height, width = round(3.3 * eyes_apart), round(3.71 * eyes_apart)
    # Half of the crop lies outside; the eyes and the nose do not.
    middle = [0.75 * eyes_apart if side == 0 else -0.75 * eyes_apart for side in corner]
    middle = (middle[0] % width, middle[1] % height)
    landmarks = placed(eyes_apart, 0.0, middle)
    picture = with_spots(height, width, landmarks, sigma=0.05 * eyes_apart)
    crop = faces.align(picture, Face((0, 0, 1, 1), 1.0, landmarks))
    np.testing.assert_allclose(spots(crop), EYES_AND_NOSE, atol=0.1 / len(crop))


@pytest.mark.parametrize("side", [100, 800])
def test_beyond_the_picture_its_border_goes_on(side: int):
    picture = np.zeros((side, side, 3), np.uint8)
    picture[:, :] = np.linspace(50, 200, side, dtype=np.uint8)[:, None, None]
    picture[:, : side // 2, 0] = 255
    crop = faces.align(picture, box_face(-side / 2, -side / 2, side, side))
    half = len(crop) // 2
    assert np.abs(crop[: half - 2, :, 1].astype(int) - 50).max() <= 2
    assert (crop[:, : half - 1, 0] == 255).all()
    # Also where nothing of the picture is in the crop.
    crop = faces.align(picture, box_face(side * 3, side * 3, side, side))
    assert np.abs(crop[..., 1].astype(int) - 200).max() <= 2


def test_a_box_of_whole_pixels_is_cut_out_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)

    def cut(*box: float, margin: float = 0.0) -> np.ndarray:
        return faces.align(picture, box_face(*box), margin=margin)

    np.testing.assert_array_equal(cut(40, 30, 100, 100), picture[30:130, 40:140])
    np.testing.assert_array_equal(cut(41, 30, 33, 33), picture[30:63, 41:74])
    # The square about the centre, with the longer side.
    np.testing.assert_array_equal(cut(40, 30, 100, 60), picture[10:110, 40:140])
    np.testing.assert_array_equal(cut(40, 30, 60, 100), picture[30:130, 20:120])
    np.testing.assert_array_equal(cut(60, 60, 60, 60, margin=0.5), picture[45:135, 45:135])
    assert cut(10, 10, 0.3, 0.2).shape == (1, 1, 3)


def test_what_is_reduced_is_averaged_and_not_picked():
    picture = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    crop = faces.align(picture, box_face(0, 0, 1024, 1024))
    mean = picture.reshape(256, 4, 256, 4, 3).mean(axis=(1, 3))
    assert np.abs(crop - mean).max() <= 1
    # Stripes of a pixel become grey, whatever the angle.
    striped = np.repeat((np.indices((2000, 2000))[1] % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    for degrees in (0.0, 31.0):
        landmarks = placed(400, degrees, (1000, 800))
        crop = faces.align(striped, Face((0, 0, 1, 1), 1.0, landmarks))
        assert crop.std() < 4 and abs(crop.mean() - 127.5) < 3


@given(st.integers(0, 2**32 - 1))
def test_the_similarity_is_the_least_squares_one(seed: int):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(5, 2)) * 20 + 100
    unit, origin = faces._similarity(faces.MEAN_FACE, target)
    # x' = a x - b y + c, y' = b x + a y + d
    x, y = faces.MEAN_FACE.T
    one, zero = np.ones(5), np.zeros(5)
    system = np.vstack([np.c_[x, -y, one, zero], np.c_[y, x, zero, one]])
    solved = np.linalg.lstsq(system, target.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose([*unit, *origin], solved, atol=1e-8)


def test_the_gates_look_at_size_contrast_and_sharpness():
    rng = np.random.default_rng(0)
    crop = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float64)
    measured = faces.measure(crop)
    assert measured["size"] == 64
    assert measured["contrast"] == pytest.approx(grey.std(), rel=1e-6)
    laplacian = cv2.Laplacian(grey, cv2.CV_64F)
    assert measured["sharpness"] == pytest.approx(laplacian.var(), rel=1e-6)
    flat = faces.measure(np.full((20, 20, 3), 7, np.uint8))
    assert (flat["contrast"], flat["sharpness"]) == (0, 0)
    # Red counts as red: a crop is RGB.
    red, blue = (np.zeros((8, 8, 3), np.uint8) for _ in range(2))
    red[:4, :, 0] = blue[:4, :, 2] = 255
    assert faces.measure(red)["contrast"] > 2 * faces.measure(blue)["contrast"]


def test_a_gate_says_which_limit_a_face_misses():
    measured = {"size": 48.0, "contrast": 19.0, "sharpness": 99.0}
    assert faces.gate(measured, size=0, contrast=0, sharpness=0) is None
    assert faces.gate(measured, size=48, contrast=19, sharpness=99) is None
    assert faces.gate(measured, size=49, contrast=20, sharpness=0) == "size below 49"
    assert faces.gate(measured, size=0, contrast=20, sharpness=100) == "contrast below 20"
    assert faces.gate(measured, size=0, contrast=0, sharpness=99.5) == "sharpness below 99.5"


def test_tracking_follows_who_is_there_most_and_not_who_is_largest():
    def at(x: float, size: float) -> Face:
        return box_face(x, 100, size, size)

    # A passer-by, larger and nearer, goes through the picture of somebody who stays.
    frames = [
        [at(100, 50)],
        [at(300, 90), at(104, 51)],
        [at(240, 90), at(101, 49)],
        [at(180, 90), at(103, 50)],
        [],
        [at(105, 52)],
    ]
    assert faces.track(frames) == [0, 1, 1, 1, None, 0]
    # The order within a frame does not matter; another size is another person.
    assert faces.track([[at(0, 40), at(500, 40)], [at(505, 40)], [at(510, 41), at(0, 90)]]) == [
        1,
        0,
        0,
    ]
    # Further than its own size away is another person; of equals the larger one is taken.
    assert faces.track([[at(0, 40)], [at(41, 40)]]) == [0, None]
    assert faces.track([[at(0, 40)], [at(39, 40)]]) == [0, 0]
    assert faces.track([[at(0, 40)], [at(300, 60)]]) == [None, 0]
    assert faces.track([[at(0, 40)], [at(0, 80)]]) == [None, 0]
    # The nearest goes on, and one face is in one track only.
    assert faces.track([[at(0, 40), at(30, 40)], [at(28, 40)], [at(29, 40)]]) == [1, 0, 0]
    assert faces.track([]) == [] and faces.track([[], []]) == [None, None]


@given(st.lists(st.lists(st.tuples(*[st.integers(0, 300)] * 2, st.integers(20, 90)), max_size=4)))
def test_a_track_is_one_of_the_faces_of_each_frame(boxes: list[list[tuple[int, int, int]]]):
    frames = [[box_face(x, y, size, size) for x, y, size in frame] for frame in boxes]
    followed = faces.track(frames)
    assert len(followed) == len(frames)
    for found, picked in zip(frames, followed, strict=True):
        assert picked is None or 0 <= picked < len(found)
    # Somebody is followed wherever there is anybody at all.
    assert any(found for found in frames) == any(picked is not None for picked in followed)


def test_boxes_are_read_by_file_and_frame(tmp_path: Path):
    table = tmp_path / "boxes.csv"
    table.write_text(
        "\ufefffile,x,y,width,height,frame_index,ignore\n"
        "a.jpg,1,2.5,3,4,,0\na.jpg,9,9,9,9,,\na.jpg,5,5,5,5,,1\nv/b.mp4,-3,0,8,8,12,0\n"
    )
    assert faces.read_boxes(table) == {
        ("a.jpg", 0): [box_face(1, 2.5, 3, 4), box_face(9, 9, 9, 9)],
        ("v/b.mp4", 12): [box_face(-3, 0, 8, 8)],
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"file,x,y,width\na,1,2,3\n", "lacks the columns height"),
        (b"", "lacks the columns file, height"),
        (b"file,x,y,width,height\na,1,2,3,4\na,1,2,3,\n", "line 3: not a box"),
        (b"file,x,y,width,height\na,1\n", "line 2: not a box"),
        (b"file,x,y,width,height,frame_index\na,1,2,3,4,one\n", "line 2: not a box"),
        (b"file,x,y,width,height\na,1,2,0,4\n", "line 2: box width and height must be positive"),
        (b"file,x,y,width,height\na,1,2,3,-4\n", "line 2: box width and height must be positive"),
        (b"file,x,y,width,height\na,1,2,3,nan\n", "line 2: box width and height must be positive"),
        (
            b"file,x,y,width,height\na,1,2,inf,4\n",
            "line 2: box width and height must be positive and finite",
        ),
        (b"file,x,y,width,height\na,nan,2,3,4\n", "line 2: box coordinates are out of range"),
        (b"file,x,y,width,height\na,1e300,2,3,4\n", "line 2: box coordinates are out of range"),
        (b"file,x,y,width,height\n\xff\xfe,1,2,3,4\n", "is not a CSV in UTF-8"),
        (b'file,x,y,width,height\n"' + b"a" * 1_100_000, "is not a CSV in UTF-8"),
    ],
)
def test_boxes_that_are_none_are_refused_by_line(tmp_path: Path, text: bytes, says: str):
    (tmp_path / "boxes.csv").write_bytes(text)
    with pytest.raises(InputError, match=says):
        faces.read_boxes(tmp_path / "boxes.csv")


def test_a_table_of_boxes_must_be_there(tmp_path: Path):
    with pytest.raises(InputError, match="--boxes '.*gone.csv' does not exist"):
        faces.read_boxes(tmp_path / "gone.csv")


class Zoo:
    """A web server in the place of OpenCV's, and how often it was asked."""

    def __init__(self) -> None:
        self.answer = b""
        self.status = 200
        self.asked = 0


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Zoo]:
    zoo = Zoo()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            zoo.asked += 1
            if zoo.status == 0:
                self.wfile.write(b"this is not HTTP\r\n\r\n")
                return
            self.send_response(zoo.status)
            self.send_header("Content-Length", str(len(zoo.answer)))
            self.end_headers()
            self.wfile.write(zoo.answer)

        def log_message(self, *words: object) -> None:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    detector.make_detector.cache_clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        place = f"http://127.0.0.1:{server.server_port}/{detector.YUNET_FILE}"
        monkeypatch.setattr(detector, "YUNET_URL", place)
        yield zoo
        server.shutdown()
        thread.join()
    detector.make_detector.cache_clear()


def test_the_detector_is_fetched_once_and_kept(zoo: Zoo, tmp_path: Path, yunet_model: Path):
    zoo.answer = yunet_model.read_bytes()
    kept = tmp_path / "cache" / "fer_jax" / detector.YUNET_FILE
    assert detector.detector_model("") == kept
    assert kept.read_bytes() == zoo.answer
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]
    assert detector.detector_model("") == kept and zoo.asked == 1
    assert detector.make_detector("yunet")(np.zeros((90, 90, 3), np.uint8), 640) == []
    # A kept file that was damaged since is fetched again.
    kept.write_bytes(zoo.answer[:1000])
    assert detector.detector_model("") == kept and zoo.asked == 2
    assert kept.read_bytes() == zoo.answer


@pytest.mark.parametrize("change", ["cut", "bit", "page", "longer"])
def test_another_file_than_the_known_detector_is_refused(
    zoo: Zoo, tmp_path: Path, yunet_model: Path, change: str
):
    data = bytearray(yunet_model.read_bytes())
    if change == "bit":
        data[len(data) // 2] ^= 1
    zoo.answer = {
        "cut": bytes(data[:-1]),
        "bit": bytes(data),
        "page": b"<html>not here</html>",
        "longer": bytes(data) + b"\0",
    }[change]
    with pytest.raises(InputError, match="has another file than the known detector; download"):
        detector.detector_model("")
    assert not (tmp_path / "cache").exists()


def test_a_detector_that_cannot_be_had_is_an_error_and_not_another_detector(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, yunet_model: Path
):
    says = f"could not be downloaded .*; download {detector.YUNET_URL[:8]}.* to .*--detector_model"
    for status in (404, 503, 0):
        zoo.status = status
        with pytest.raises(InputError, match=says):
            detector.make_detector("yunet")
    zoo.status, zoo.answer = 200, yunet_model.read_bytes()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=says):
        detector.make_detector("yunet")
    monkeypatch.setattr(detector, "YUNET_URL", "http://127.0.0.1:9/nobody.onnx")
    with pytest.raises(InputError, match=says):
        detector.make_detector("yunet")


def test_a_given_detector_is_never_fetched(zoo: Zoo, tmp_path: Path, yunet_model: Path):
    assert detector.detector_model(str(yunet_model)) == yunet_model
    with pytest.raises(
        InputError, match="--detector_model '.*gone.onnx' does not exist; get it from http"
    ):
        detector.detector_model(str(tmp_path / "gone.onnx"))
    assert zoo.asked == 0


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """Fields of a protocol buffer: (number, bytes or a small integer)."""
    out = b""
    for field, value in fields:
        if isinstance(value, int):
            out += bytes([field << 3, value])
        else:
            out += bytes([field << 3 | 2, len(value)]) + value
    return out


def test_a_file_that_is_no_yunet_is_refused(tmp_path: Path):
    dimensions = message(*((1, message((1, n))) for n in (1, 3, 64, 64)))
    kind = message((1, message((1, 1), (2, dimensions))))
    graph = message(
        (1, message((1, b"input"), (2, b"output"), (4, b"Relu"))),
        (2, b"graph"),
        (11, message((1, b"input"), (2, kind))),
        (12, message((1, b"output"), (2, kind))),
    )
    other = message((1, 7), (7, graph), (8, message((1, b""), (2, 13))))
    for content in (other, b"", b"no network"):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(InputError, match="x.onnx' is not the YuNet detector"):
            detector.make_detector.cache_clear()
            detector.make_detector("yunet", str(tmp_path / "x.onnx"))


def test_a_misspelled_detector_is_told():
    with pytest.raises(InputError, match="unknown detector 'yunett'; did you mean 'yunet'"):
        detector.make_detector("yunett", "")


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


# What was measured on these photos: (faces found of 23, false alarms).
@pytest.mark.parametrize(
    ("name", "size", "recalled", "false_alarms"),
    [
        ("yunet", faces.LARGE_FACES, 23, 0),
        ("yunet", faces.ALL_FACES, 23, 0),
        ("haar", faces.ALL_FACES, 22, 1),
    ],
)
def test_faces_of_real_photos_are_found(
    shared: Path, yunet_model: Path, name: str, size: int, recalled: int, false_alarms: int
):
    photos = shared / "data" / "photos"
    truth = faces.read_boxes(photos / "boxes.csv")
    detect = detector.make_detector(name, str(yunet_model))
    hits = alarms = 0
    for (file, _), true in truth.items():
        picture = cv2.imread(str(photos / file))
        assert picture is not None
        found = detect(picture, size)
        hits += sum(any(overlap(t.box, f.box) >= 0.3 for f in found) for t in true)
        alarms += sum(all(overlap(t.box, f.box) < 0.3 for t in true) for f in found)
    assert sum(map(len, truth.values())) == 23
    assert hits >= recalled and alarms <= false_alarms


def test_faces_are_found_in_small_and_in_large_pictures(shared: Path, yunet_model: Path):
    """Boxes and landmarks are in pixels of the picture that was given."""
    detect, size = detector.make_detector("yunet", str(yunet_model)), faces.ALL_FACES
    picture = cv2.imread(str(shared / "data" / "photos" / "photo_28.jpg"))
    assert picture is not None
    before = sorted(detect(picture, size), key=lambda face: face.box[0])
    assert len(before) == 3
    for scale in (0.4, 4.0):
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        other = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how)
        after = sorted(detect(other, size), key=lambda face: face.box[0])
        assert len(after) == 3
        for one, two in zip(before, after, strict=True):
            assert one.landmarks is not None and two.landmarks is not None
            assert overlap(one.box, tuple(v / scale for v in two.box)) > 0.8
            eyes = np.linalg.norm(one.landmarks[0] - one.landmarks[1])
            moved = np.linalg.norm(two.landmarks / scale - one.landmarks, axis=1).mean()
            assert moved < 0.2 * eyes  # 0.16 is the detector's own noise at 200 px
    with zipfile.ZipFile(shared / "data" / "faces" / "fer2013.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".png", ".jpg")))
        crops = [images.decode(archive.read(name)) for name in names[::800][:40]]
    found = [bool(detect(crop, size)) for crop in crops]
    # At their 48 pixels a quarter of them is missed.
    assert len(found) == 40 and sum(found) >= 38


def test_aligned_faces_look_alike_to_the_detector(shared: Path, yunet_model: Path):
    """Faces of photos, aligned, have their eyes where the tight crops of the sets have them."""
    detect = detector.make_detector("yunet", str(yunet_model))
    eyes = []
    with (shared / "data" / "photos" / "manifest.csv").open(newline="") as text:
        single = [row["file"] for row in csv.DictReader(text) if row["yunet_count_at_0.6"] == "1"]
    for file in single[:12]:
        picture = cv2.imread(str(shared / "data" / "photos" / file))
        assert picture is not None
        crop = faces.align(picture, detect(picture, faces.LARGE_FACES)[0])
        again = max(detect(crop, faces.LARGE_FACES), key=lambda face: face.score)
        assert again.landmarks is not None
        eyes.append(again.landmarks[:2] / len(crop))
    middle = np.median(eyes, axis=0)
    np.testing.assert_allclose(middle, EYES_AND_NOSE[:2], atol=0.03)


def test_a_cut_to_another_person_in_the_same_place_ends_the_track():
    random = np.random.default_rng(0)
    people = [random.integers(0, 256, (3, 3, 3)).astype(np.uint8) for _ in range(2)]
    box = faces.Face((40.0, 40.0, 60.0, 60.0), 1.0, None)
    frames = []
    for person in (0, 0, 0, 1, 1, 0):
        scene = cv2.resize(people[person], (160, 160), interpolation=cv2.INTER_CUBIC)
        scene = cv2.add(scene, random.integers(0, 5, scene.shape, dtype=np.uint8))
        frames.append(faces.add_looks(scene, [box]))
    # Where the first person is shown again, the track goes on.
    assert faces.track(frames) == [0, 0, 0, None, None, 0]
    assert faces.track([[box]] * 6) == [0] * 6


def test_no_track_holds_two_real_people(shared: Path, yunet_model: Path):
    find = detector.make_detector("yunet", str(yunet_model))
    frames = []
    for name in ("clip_33.mp4", "clip_12.mp4", "clip_34.mp4"):
        with Video(shared / "data" / "videos" / name) as video:
            for frame in video.frames(count=5):
                assert frame.image is not None
                (face, *_) = faces.largest_first(find(frame.image, faces.LARGE_FACES))
                (face,) = faces.add_looks(frame.image, [face])
                frames.append([face._replace(box=(0.0, 0.0, 90.0, 90.0))])
    followed = faces.track(frames)
    assert followed in ([0] * 5 + [None] * 10, [None] * 5 + [0] * 5 + [None] * 5)
