"""One picture is found again, however it was saved; two people are not taken for one."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders.demo import demo_dataset_builder as demo
from fer_jax.data import duplicates
from fer_jax.media import images


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    """Forty drawn people, RGB."""
    rows = demo.plan("social", None).rows[::31][:40]  # pyright: ignore[reportArgumentType] (no options)
    return [images.decode(demo._draw(row)[0].faces[0]["image"]) for row in rows]


def changed(face: np.ndarray, how: str) -> np.ndarray:
    if how == "saved again":
        data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
        return images.decode(data.tobytes())[..., ::-1]
    if how == "brighter":
        return np.clip(face.astype(int) + 12, 0, 255).astype(np.uint8)
    if how == "shifted":
        return np.roll(face, 2, axis=0)
    if how == "smaller":
        return cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA)
    assert how == "mirrored"
    return np.ascontiguousarray(face[:, ::-1])


@pytest.mark.parametrize("how", ["saved again", "brighter", "shifted", "smaller", "mirrored"])
def test_a_changed_picture_is_found_and_nothing_else(faces: list[np.ndarray], how: str):
    everything = [*faces, *(changed(face, how) for face in faces)]
    thumbnails = np.stack([duplicates.thumbnail(face) for face in everything])
    side = np.repeat([0, 1], len(faces))[:, None]
    pairs, candidates = duplicates.same_pictures(thumbnails, side)
    assert [(i, j) for i, j, _ in pairs] == [(i, i + len(faces)) for i in range(len(faces))]
    assert candidates >= len(pairs)


def test_only_wanted_pairs_are_looked_at(faces: list[np.ndarray]):
    thumbnails = np.stack([duplicates.thumbnail(faces[0])] * 3)
    pairs, candidates = duplicates.same_pictures(thumbnails, np.array([[0, 5], [0, 5], [0, 6]]))
    assert [(i, j) for i, j, _ in pairs] == [(0, 2), (1, 2)]
    assert candidates == 2


def test_the_mirrored_hash_is_the_hash_of_the_mirrored_picture(faces: list[np.ndarray]):
    thumbnails = np.stack([duplicates.thumbnail(face) for face in faces])
    plain, mirrored = duplicates.perceptual_hashes(thumbnails)
    turned, back = duplicates.perceptual_hashes(thumbnails[:, :, ::-1])
    # A coefficient that is its own median may fall on either side.
    assert np.bitwise_count(mirrored ^ turned).max() <= 2
    assert np.bitwise_count(plain ^ back).max() <= 2


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=200),
    st.integers(0, 12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_neighbours_are_all_pairs_within_the_distance(words: list[int], distance: int, random):
    near = [word ^ sum(1 << random.randrange(64) for _ in range(8)) for word in words]
    near = [word % 2**64 for word in near]
    a, b = np.asarray(words, np.uint64), np.asarray(near, np.uint64)
    found = [
        pair
        for i, j in duplicates.neighbours(a, b, distance)
        for pair in zip(i.tolist(), j.tolist(), strict=True)
    ]
    assert len(set(found)) == len(found)
    assert set(found) == {
        (i, j)
        for i, one in enumerate(words)
        for j, other in enumerate(near)
        if (one ^ other).bit_count() <= distance
    }


def test_stretches_of_rows_and_columns_meet():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, duplicates.COLUMNS + 200, dtype=np.uint64)
    hashes[70], hashes[-1] = hashes[duplicates.COLUMNS + 1], hashes[0]
    found = {
        pair
        for i, j in duplicates.neighbours(hashes, hashes, 0)
        for pair in zip(i.tolist(), j.tolist(), strict=True)
        if pair[0] < pair[1]
    }
    assert found == {(70, duplicates.COLUMNS + 1), (0, len(hashes) - 1)}


def test_likeness_ignores_brightness_and_knows_nothing_of_grey(faces: list[np.ndarray]):
    thumbnail = duplicates.thumbnail(faces[0])
    assert duplicates.likeness(thumbnail, thumbnail) == pytest.approx(1, abs=1e-4)
    darker = (thumbnail * 0.6 + 10).astype(np.uint8)
    assert duplicates.likeness(thumbnail, darker) > 0.97
    assert duplicates.likeness(thumbnail, np.full_like(thumbnail, 90)) < 0.5
