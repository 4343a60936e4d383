"""YuNet in ONNX Runtime finds what it finds in OpenCV."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_jax.errors import InputError
from fer_jax.media import detector, faces


def test_the_same_faces_as_in_opencv(shared: Path, yunet_model: Path):
    pytest.importorskip("onnxruntime")
    ours, theirs = detector.in_onnxruntime(yunet_model), faces.yunet(yunet_model)
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


def test_a_file_that_is_no_yunet_is_refused(tmp_path: Path):
    (tmp_path / "other.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"other.onnx' is not the YuNet detector"):
        detector.make_detector(str(tmp_path / "other.onnx"))
    with pytest.raises(InputError, match=r"--detector_model .*none.onnx' does not exist"):
        detector.make_detector(str(tmp_path / "none.onnx"))


def test_without_onnx_runtime_opencv_finds_them(monkeypatch: pytest.MonkeyPatch, yunet_model: Path):
    monkeypatch.setattr(detector, "find_spec", lambda name: None)
    made = detector.make_detector(str(yunet_model))
    assert made is faces.make_detector("yunet", str(yunet_model))
