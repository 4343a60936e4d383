"""YuNet in the engines finds what it finds in OpenCV."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_jax.errors import InputError
from fer_jax.inference.detector import make_detector
from fer_jax.media import faces

ENGINES = ("onnxruntime", "openvino")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_faces_as_in_opencv(engine: str, shared: Path, yunet_model: Path):
    pytest.importorskip(engine)
    ours, theirs = make_detector(engine, str(yunet_model)), faces.yunet(yunet_model)
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


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_is_no_yunet_is_refused(engine: str, tmp_path: Path):
    pytest.importorskip(engine)
    (tmp_path / "other.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"other.onnx' is not the YuNet detector"):
        make_detector(engine, str(tmp_path / "other.onnx"))
    with pytest.raises(InputError, match=r"--detector_model .*none.onnx' does not exist"):
        make_detector(engine, str(tmp_path / "none.onnx"))
