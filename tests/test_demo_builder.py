"""The rendered faces: deterministic, balanced as documented, expressions where they belong."""

import collections

import numpy as np
import pytest

from data_builders.demo import demo_dataset_builder as demo
from data_builders.demo import draw
from fer_jax.media import images


@pytest.fixture(scope="module")
def plans() -> dict[str, list[dict]]:
    return {source: demo.list_rows(source) for source in demo.SOURCES}


def test_people_are_in_one_source_one_content_and_one_split(plans: dict[str, list[dict]]):
    rows = [row for source in plans.values() for row in source]
    assert len({row["record_id"] for row in rows}) == len(rows)
    for key in ("source", "content", "split"):
        sides = collections.defaultdict(set)
        for row in rows:
            sides[row["subject_id"]].add(row[key])
        assert all(len(side) == 1 for side in sides.values())
    for source in plans.values():
        assert len({row["subject_id"] for row in source}) >= 60
        for split in ("train", "validation", "test"):
            part = [row for row in source if row["split"] == split]
            assert {row["content"] for row in part} == set(draw.CONTENTS)
            assert len(set(collections.Counter(row["emotion"] for row in part).values())) == 1


def test_interest_is_as_frequent_as_published(plans: dict[str, list[dict]]):
    for content, share in demo.INTERESTED.items():
        shown = [row["interest"] for p in plans.values() for row in p if row["content"] == content]
        assert np.mean(shown) == pytest.approx(share, abs=0.04)


def rendered(row: dict) -> np.ndarray:
    (found,) = demo.render(row)
    return images.decode(found.faces[0]["image"])


def test_rendering_is_deterministic_and_rows_differ(plans: dict[str, list[dict]]):
    for rows in plans.values():
        first, again, other = (rendered(row) for row in (rows[0], rows[0], rows[1]))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        assert (first.shape, first.dtype) == ((128, 128, 3), np.uint8)


def test_sources_differ_at_a_glance(plans: dict[str, list[dict]]):
    def look(source: str) -> tuple[float, float]:
        pictures = np.stack([rendered(row) for row in plans[source][::60]])
        saturation = np.ptp(pictures.astype(int), axis=-1).mean()
        clutter = pictures[:, :40, :16].std(axis=(1, 2)).mean()
        return float(saturation), float(clutter)

    controlled, social = (look(source) for source in demo.SOURCES)
    assert social[1] > 2 * controlled[1]
    assert social[0] > controlled[0]


def face(emotion: str, interested: bool = True) -> np.ndarray:
    who = draw.identity(np.random.default_rng(3))
    shown = draw.expression(emotion, interested, 1.0, np.random.default_rng(4))
    still = draw.Expression(shown.actions, shown.gaze, 0.0, 1.0)
    picture = draw.draw_face(who, still, "controlled", "car_tech", np.random.default_rng(5))
    return picture.astype(int)


def changed(a: np.ndarray, b: np.ndarray, rows: slice) -> float:
    return float((np.abs(a - b).max(axis=-1) > 24)[rows, 32:96].mean())


def test_expressions_move_what_they_should():
    hair, brows, mouth = slice(0, 22), slice(38, 56), slice(76, 104)
    calm = face("neutral")
    for emotion in ("happiness", "sadness", "surprise", "fear", "disgust"):
        assert changed(calm, face(emotion), mouth) > 0.04, emotion
        assert changed(calm, face(emotion), hair) < 0.01, emotion
    for emotion in ("anger", "surprise", "fear", "sadness"):
        assert changed(calm, face(emotion), brows) > 0.03, emotion
    eyes = slice(52, 66)
    assert changed(calm, face("neutral", interested=False), eyes) > 0.02
