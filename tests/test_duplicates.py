"""One picture is found again, however it was saved; two people are not taken for one."""

import csv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders.demo import demo_dataset_builder as demo
from fer_jax.data.audit import duplicates
from fer_jax.media import images


def apart(groups: np.ndarray) -> duplicates.Wanted:
    """Only pairs of different groups."""
    return lambda i, j, _: groups[i] != groups[j]


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    """Forty drawn people, RGB."""
    rows = demo.list_rows("social")[::31][:40]
    return [images.decode(demo.render(row)[0].faces[0]["image"]) for row in rows]


def changed(face: np.ndarray, how: str) -> np.ndarray:
    if how == "saved again":
        data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
        return images.decode(data.tobytes())[..., ::-1]
    if how == "brighter":
        return np.clip(face.astype(int) + 10, 0, 255).astype(np.uint8)
    if how == "darker":
        return np.clip(face.astype(int) - 10, 0, 255).astype(np.uint8)
    if how == "shifted":
        return np.pad(face, ((2, 0), (0, 2), (0, 0)), mode="edge")[:-2, 2:]
    if how == "cropped":
        edge = len(face) // 24
        return np.ascontiguousarray(face[edge:-edge, edge:-edge])
    if how == "turned":
        turn = cv2.getRotationMatrix2D((face.shape[1] / 2, face.shape[0] / 2), 3, 1)
        return cv2.warpAffine(face, turn, face.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    if how == "smaller":
        return cv2.resize(face, (48, 48), interpolation=cv2.INTER_AREA)
    assert how == "mirrored"
    return np.ascontiguousarray(face[:, ::-1])


def copies_found(faces: list[np.ndarray], how: str, likeness: float) -> tuple[int, int]:
    """How many of the copies are found, and how many other pairs are taken for copies."""
    everything = [*faces, *(changed(face, how) for face in faces)]
    thumbnails = np.stack([duplicates.thumbnail(face) for face in everything])
    side = np.repeat([0, 1], len(faces))
    found = duplicates.same_pictures(
        thumbnails, apart(side), lambda i, _: np.full(len(i), likeness)
    )
    assert found.num_candidates >= len(found.pairs)
    right = sum(j == i + len(faces) for i, j, _ in found.pairs)
    return right, len(found.pairs) - right


CHANGES = (
    *("saved again", "brighter", "darker", "shifted", "cropped", "turned", "smaller", "mirrored"),
)
# Of 800 pictures each of fer2013 and lfw_gray 0.98 to 1 were found, turned by 3 degrees 0.94.
LEAST, LEAST_TURNED = 0.95, 0.8


@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_drawing_is_found_and_nothing_else(faces: list[np.ndarray], how: str):
    # Drawn people differ less than photographed ones: what they need is stricter.
    found, wrong = copies_found(faces, how, 0.985)
    assert wrong == 0
    assert found >= (LEAST_TURNED if how == "turned" else LEAST) * len(faces)


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", ["lfw_gray", "fer2013"])
def test_a_changed_photograph_is_found_and_nothing_else(shared: Path, name: str, how: str):
    with zipfile.ZipFile(shared / "data" / "faces" / f"{name}.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith((".png", ".jpg")))
        # In the published order neighbours in these sets are no copies of each other.
        chosen = names[:: len(names) // 60][:60]
        photographs = [images.square(images.decode(archive.read(n)))[0] for n in chosen]
    found, wrong = copies_found(photographs, how, duplicates.SAME_LIKENESS)
    assert wrong == 0
    assert found >= (LEAST_TURNED if how == "turned" else LEAST) * len(photographs)


@pytest.mark.parametrize("name", ["ck48", "jaffe"])
def test_tight_crops_of_two_people_are_not_one_picture(shared: Path, name: str):
    with (
        zipfile.ZipFile(shared / "data" / "faces" / f"{name}.zip") as archive,
        (shared / "data" / "faces" / "manifest.csv").open() as file,
    ):
        rows = [row for row in csv.DictReader(file) if row["dataset"] == name]
        thumbnails = np.stack(
            [
                duplicates.thumbnail(images.square(images.decode(archive.read(row["path"])))[0])
                for row in rows
            ]
        )
    people = np.unique([row["subject_id"] for row in rows], return_inverse=True)[1]
    found = duplicates.same_pictures(thumbnails, apart(people))
    assert found.pairs == []
    assert found.num_candidates > 500


def test_only_wanted_pairs_are_looked_at(faces: list[np.ndarray]):
    thumbnails = np.stack([duplicates.thumbnail(faces[0])] * 3)
    found = duplicates.same_pictures(thumbnails, apart(np.asarray([5, 5, 6])))
    assert [(i, j) for i, j, _ in found.pairs] == [(0, 2), (1, 2)]
    assert found.num_candidates == 2


def test_blank_pictures_are_counted_and_not_compared(faces: list[np.ndarray]):
    blank = np.zeros((48, 48), np.uint8)
    face = duplicates.thumbnail(faces[0])
    found = duplicates.same_pictures(np.stack([blank, face, blank + 200, face]))
    assert [(i, j) for i, j, _ in found.pairs] == [(1, 3)]
    assert (found.num_candidates, found.num_blank) == (1, 2)
    assert duplicates.same_pictures(np.stack([blank, blank])).pairs == []


def test_the_second_half_of_the_hashes_is_of_the_mirror_image(faces: list[np.ndarray]):
    thumbnails = np.stack([duplicates.thumbnail(face) for face in faces])
    hashes = duplicates.perceptual_hashes(thumbnails)
    turned = duplicates.perceptual_hashes(thumbnails[:, :, ::-1])
    own, mirrored = 0, hashes.shape[1] // 2
    # A coefficient that is nearly zero may fall on either side.
    assert np.bitwise_count(hashes[:, mirrored] ^ turned[:, own]).max() <= 1
    assert np.bitwise_count(hashes[:, own] ^ turned[:, mirrored]).max() <= 1


def test_copies_are_near_where_all_pictures_are_copies(
    faces: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    """What is usual in many pictures must not be split by their noise."""
    monkeypatch.setattr(duplicates, "_FEW", 10)
    rng = np.random.default_rng(0)
    one = duplicates.thumbnail(faces[0]).astype(float)
    noisy = np.clip(one + rng.normal(0, 2, (60, 48, 48)), 0, 255).astype(np.uint8)
    assert len(duplicates.neighbours(duplicates.perceptual_hashes(noisy))) == 60 * 59 / 2


def test_bits_tell_pictures_apart_that_have_much_in_common(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    coarse, fine = (cv2.resize(rng.normal(size=(s, s)), (48, 48)) for s in (4, 16))
    own = [cv2.resize(rng.normal(size=(16, 16)), (48, 48)) for _ in range(80)]
    pictures = np.stack([128 + 60 * coarse + 20 * fine + 20 * x for x in own])
    thumbnails = np.clip(pictures, 0, 255).astype(np.uint8)

    def num_telling() -> int:
        hashes = duplicates.perceptual_hashes(thumbnails)[:, :1].view(np.uint8)
        shares = np.unpackbits(hashes, axis=1).mean(axis=0)
        return int(np.sum((shares > 0.25) & (shares < 0.75)))

    before = num_telling()
    monkeypatch.setattr(duplicates, "_FEW", 10)
    assert num_telling() >= 1.5 * before


@pytest.mark.parametrize("size", [0, 32_000, 100_000])
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
@settings(max_examples=25, deadline=None)
def test_neighbours_are_all_pairs_within_the_distance(
    size: int, words: list[int], num_columns: int, distance: int, random
):
    """With the bands that `size` pictures would have, 0 for as many as there are."""

    def near(word: int) -> int:
        count = random.randrange(12)
        # Spread evenly, differences fall into as many bands as they can.
        first = random.randrange(64)
        spread = [(first + 64 * k // count) % 64 for k in range(count)]
        bits = random.choice([spread, random.sample(range(64), count)])
        return word ^ sum(1 << bit for bit in set(bits))

    rows = [[near(random.choice(words)) for _ in range(num_columns)] for _ in range(2 * len(words))]
    hashes = np.asarray(rows, np.uint64)
    expected = {}
    for i in range(len(rows)):
        for j in range(i):
            bits = [(rows[i][c] ^ rows[j][0]).bit_count() for c in range(num_columns)]
            bits += [(rows[j][c] ^ rows[i][0]).bit_count() for c in range(num_columns)]
            if min(bits) <= distance:
                expected[j, i] = min(bits)
    bands = duplicates._bands
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_bands", lambda d, n: bands(d, size or n))
        found = duplicates.neighbours(hashes, distance)
    assert {(i, j): bits for i, j, bits, _ in found.tolist()} == expected
    assert found.tolist() == sorted(found.tolist())


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_products_of_ranges_are_whole_across_chunks(sizes: list[tuple[int, int]]):
    sizes = [(one, other) for one, other in sizes if other]
    counts, others = np.asarray(sizes, np.int64).reshape(-1, 2).T
    starts, other_starts = 100 * np.arange(len(sizes)), 1000 * np.arange(len(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_CHUNK", 7)
        chunks = list(duplicates._products(starts, counts, other_starts, others))
    found = [pair for one, other in chunks for pair in zip(one, other, strict=True)]
    assert found == [
        (100 * k + i, 1000 * k + j)
        for k, (one, other) in enumerate(sizes)
        for i in range(one)
        for j in range(other)
    ]


def test_likeness_ignores_brightness_and_knows_nothing_of_noise(faces: list[np.ndarray]):
    thumbnail = duplicates.thumbnail(faces[0])
    assert duplicates.likeness(thumbnail, thumbnail) == pytest.approx(1, abs=1e-4)
    darker = (thumbnail * 0.6 + 10).astype(np.uint8)
    assert duplicates.likeness(thumbnail, darker) > 0.97
    noise = np.random.default_rng(0).integers(0, 256, thumbnail.shape, dtype=np.uint8)
    assert duplicates.likeness(thumbnail, noise) < 0.5


def test_what_cannot_be_aligned_is_nothing_alike(faces: list[np.ndarray]):
    details = duplicates._details(duplicates.thumbnail(faces[0]))
    flat = np.zeros_like(details)
    assert duplicates._aligned_likeness(details, flat, 1.0, 4, 4) == -1
    # Onto the far corner only a motion that is no copy's could bring it.
    far = np.roll(details, (20, 20), axis=(0, 1))
    assert duplicates._aligned_likeness(details, far, 1.0, 4, 4) < duplicates.SAME_LIKENESS
