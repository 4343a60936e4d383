"""YuNet in ONNX Runtime finds what it finds in OpenCV."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_jax.errors import InputError
from fer_jax.media import detector, faces
from fer_jax.media.detector import make_detector


@pytest.fixture(autouse=True)
def no_cache() -> Iterator[None]:
    make_detector.cache_clear()
    yield
    make_detector.cache_clear()


def test_the_same_faces_as_in_opencv(shared: Path, yunet_model: Path):
    pytest.importorskip("onnxruntime")
    ours, theirs = (make_detector("yunet", str(yunet_model), fast=fast) for fast in (True, False))
    num_faces = 0
    # Sizes of all kinds: 640 and 1,024 px are reduced, a crop of 100 px is enlarged.
    for name, crop in (("photo_01", 1), ("photo_06", 1), ("photo_28", 1), ("photo_28", 0.3)):
        picture = cv2.imread(str(shared / "data" / "photos" / f"{name}.jpg"))
        assert picture is not None
        picture = picture[: round(crop * len(picture))]
        for size in (faces.LARGE_FACES, faces.ALL_FACES):
            found, expected = ours(picture, size), theirs(picture, size)
            assert len(found) == len(expected)
            num_faces += len(found)
            for one, other in zip(found, expected, strict=True):
                assert one.landmarks is not None and other.landmarks is not None
                np.testing.assert_allclose(one.box, other.box, atol=0.05)
                np.testing.assert_allclose(one.landmarks, other.landmarks, atol=0.05)
                assert one.score == pytest.approx(other.score, abs=1e-4)
    assert num_faces > 40


def test_a_file_that_is_not_yunet_is_refused(tmp_path: Path):
    (tmp_path / "other.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"other.onnx' is not the YuNet detector; get it from"):
        make_detector("yunet", str(tmp_path / "other.onnx"), fast=True)
    with pytest.raises(InputError, match=r"--detector_model .*none.onnx' does not exist; get it"):
        make_detector("yunet", str(tmp_path / "none.onnx"), fast=True)


def test_opencv_runs_it_for_builds_and_without_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, yunet_model: Path
):
    def no_onnxruntime(file: Path) -> None:
        raise AssertionError("ONNX Runtime was used")

    monkeypatch.setattr(detector, "_yunet_onnxruntime", no_onnxruntime)
    blank = np.zeros((90, 90, 3), np.uint8)
    assert make_detector("yunet", str(yunet_model))(blank, 640) == []
    monkeypatch.setattr(detector, "find_spec", lambda name: None)
    assert make_detector("yunet", str(yunet_model), fast=True)(blank, 640) == []
