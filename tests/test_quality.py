"""The filter: each gate by itself, near-duplicates, and the table of reasons."""

import collections
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_runs import picture

from fer_jax import results
from fer_jax.errors import InputError
from fer_jax.media import faces, images
from fer_jax.media.detector import YUNET_FILE, make_detector
from fer_jax.media.faces import Face
from fer_jax.synthesis import quality
from fer_jax.synthesis.quality import FaceQuality, Gates

GOOD = FaceQuality(256, 40.0, 300.0, 1, 0.3, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"size": 255}, "size below 256"),
        ({"contrast": 19.9}, "contrast below 20"),
        ({"sharpness": 99.0}, "sharpness below 100"),
        ({"num_faces": 0}, "no face"),
        ({"num_faces": 2}, "several faces"),
        ({"face_share": 0.09}, "face below 10% of the picture"),
        ({"face_share": 0.91}, "face above 90% of the picture"),
        ({"face_share": 0.1}, None),
        ({"num_faces": -1, "face_share": np.nan}, None),
        ({"num_faces": -1, "contrast": 1.0}, "contrast below 20"),
    ],
)
def test_each_gate_has_its_reason(change: dict, reason: str | None):
    assert quality.rejection_reason(GOOD._replace(**change), Gates()) == reason


def test_gates_of_zero_let_everything_through():
    bad = FaceQuality(8, 0.0, 0.0, 3, 1.0, None)
    assert quality.rejection_reason(bad, Gates(0, 0, 0, (0, 1), one_face=False)) is None


def test_a_picture_is_measured_as_a_whole_and_its_largest_face_cut_out():
    image = np.full((200, 160, 3), 90, np.uint8)
    image[20:100, 30:110] = picture(0, 80)
    found = [Face((120.0, 150.0, 80.0, 40.0), 0.9, None), Face((30.0, 20.0, 80.0, 80.0), 0.8, None)]
    one = quality.assess(image, lambda *_: found)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert (one.size, one.num_faces) == (160, 2)
    assert one.contrast == pytest.approx(grey.std())
    assert one.sharpness == pytest.approx(cv2.Laplacian(grey, cv2.CV_64F).var())
    assert one.face_share == pytest.approx(6400 / 32000)
    expected = faces.align(np.ascontiguousarray(image[..., ::-1]), found[1])[..., ::-1]
    np.testing.assert_array_equal(one.crop, expected)
    # Of a box that leaves the picture the part inside counts.
    out = quality.assess(image, lambda *_: found[:1])
    assert out.face_share == pytest.approx(40 * 40 / 32000)


def test_the_detector_gets_bgr():
    seen = []
    quality.assess(picture(0), lambda image, _: seen.append(image) or [])
    np.testing.assert_array_equal(seen[0][..., ::-1], picture(0))


def test_gates_that_nothing_can_pass_are_refused():
    quality.check_gates(Gates(), 256)
    with pytest.raises(InputError, match="images of 128 px and --min_size is 256"):
        quality.check_gates(Gates(), 128)
    for wrong in ({"contrast": float("nan")}, {"sharpness": -1}, {"face_share": (0.9, 0.1)}):
        with pytest.raises(InputError, match="--min_|--face_share"):
            quality.check_gates(Gates()._replace(**wrong), 256)


def reencoded(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return images.decode(images.encode_jpeg(small))


def test_near_duplicates_are_found():
    kept = quality.DuplicateIndex()
    for seed in range(40):
        assert not kept.has_duplicate(picture(seed, 128), seed)
        kept.add(picture(seed, 128), seed)
    shifted = cv2.warpAffine(
        picture(5, 128),
        np.array([[1.0, 0, 3], [0, 1, 2]]),
        (128, 128),
        borderMode=cv2.BORDER_REPLICATE,
    )
    for copy in (picture(5, 128), reencoded(picture(5, 128)), picture(5, 128)[:, ::-1], shifted):
        assert kept.has_duplicate(np.ascontiguousarray(copy), 1000)
    # Of one seed only the same picture is a copy: its face may wear two expressions.
    other = cv2.addWeighted(picture(5, 128), 0.8, picture(99, 128), 0.2, 0)
    assert kept.has_duplicate(other, 1000) and not kept.has_duplicate(other, 5)
    assert kept.has_duplicate(picture(5, 128), 5)
    assert not kept.has_duplicate(np.full((64, 64, 3), 7, np.uint8), 0)


def test_the_table_adds_up():
    tally = collections.Counter(
        {
            ("anger", ""): 3,
            ("anger", "no face"): 2,
            ("fear", "near-duplicate"): 5,
            ("", "no face"): 4,
        }
    )
    lines = quality.filter_table(tally, ["anger", "fear", "joy"])
    assert lines == [
        ["class", "judged", "kept", "no face", "near-duplicate"],
        ["anger", "5", "3", "2", "0"],
        ["fear", "5", "0", "0", "5"],
        ["joy", "0", "0", "0", "0"],
        ["(none)", "4", "0", "4", "0"],
        ["all", "14", "3", "6", "5"],
    ]
    assert "(none)       4     0" in results.align(lines)


def portraits(shared: Path, count: int) -> list[np.ndarray]:
    with zipfile.ZipFile(shared / "data" / "faces" / "synth_sd.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        step = len(names) // count
        return [images.decode(archive.read(name)) for name in names[::step][:count]]


def test_real_portraits_pass_and_their_damaged_copies_do_not(shared: Path):
    detector = make_detector("yunet", str(shared / "models" / YUNET_FILE))
    kept, reasons = quality.DuplicateIndex(), collections.Counter()
    originals = portraits(shared, 40)
    for number, image in enumerate(originals):
        found = quality.assess(image, detector)
        reason = quality.rejection_reason(found, Gates())
        reasons[reason] += 1
        if reason is None:
            assert not kept.has_duplicate(image, number)
            kept.add(image, number)
        blurred = quality.assess(cv2.GaussianBlur(image, (0, 0), 6), detector)
        assert quality.rejection_reason(blurred, Gates()) == "sharpness below 100"
        faded = quality.assess((image // 8 + 100).astype(np.uint8), detector)
        assert quality.rejection_reason(faded, Gates()) == "contrast below 20"
        two = np.concatenate([image, image[:, ::-1]], axis=1)
        assert quality.rejection_reason(quality.assess(two, detector), Gates()) == "several faces"
        if reason is None:
            mirrored = np.ascontiguousarray(image[:, ::-1])
            for copy in (images.decode(images.encode_jpeg(mirrored)), reencoded(image)):
                assert kept.has_duplicate(copy, 1000 + number)
    # Portraits of one face each: nearly all of them are good.
    assert reasons[None] >= 36, reasons


def test_a_png_with_alpha_is_read():
    data = cv2.imencode(".png", np.dstack([picture(0), picture(0)[..., :1]]))[1].tobytes()
    crop = quality.assess(images.decode(data), None).crop
    assert crop is not None and crop.shape == (32, 32, 3)
