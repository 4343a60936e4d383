"""Faces over time: tracking, averages, the summary, and the plot of clips of any length."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fer_jax.media.faces import Face, follow
from fer_jax.predict import timeline
from fer_jax.predict.timeline import NUM_BINS, PLOTTED, Timeline
from fer_jax.schema import EMOTIONS


def face(x: float, y: float = 0.0, size: float = 10.0, score: float = 0.9) -> Face:
    return Face((x, y, size, size), score, None)


def shares(best: str, share: float = 0.7) -> np.ndarray:
    row = np.full(len(EMOTIONS), (1 - share) / (len(EMOTIONS) - 1))
    row[EMOTIONS.index(best)] = share
    return row


def test_the_nearest_face_of_about_the_same_size_is_followed():
    before = [face(0), face(30)]
    assert follow(before, [face(31), face(2)]) == {0: 1, 1: 0}
    assert follow(before, [face(11), face(30, size=25)]) == {}
    # Two match one: the nearer is followed, and the other is new.
    assert follow([face(0)], [face(4), face(1)]) == {1: 0}


def test_people_keep_their_numbers_when_they_cross_and_when_they_blink():
    watched = Timeline("emotion", start_s=0.0, smooth_s=0.0)
    numbers = []
    for frame in range(20):
        left, right = face(2.0 * frame), face(100 - 2.0 * frame, y=15.0)
        here = [right, left] if frame % 2 else [left, right]
        here = here if frame != 7 else [left]
        tracks = watched.add(frame / 10, here, np.stack([shares("fear")] * len(here)))
        numbers.append({track.number: track.face.box[1] for track in tracks})
    assert all(set(ids.values()) <= {0.0, 15.0} for ids in numbers)
    assert all(ids.get(1, 0.0) == 0.0 and ids.get(2, 15.0) == 15.0 for ids in numbers)
    assert [row["frames"] for row in watched.finish()] == [20, 19]


def test_a_face_that_returns_late_is_a_new_one():
    watched = Timeline("emotion", start_s=0.0, smooth_s=0.0)
    for time_s in (0.0, 0.5, 1.0, 3.0, 3.5):
        here = [] if 0.4 < time_s < 3.2 else [face(0)]
        watched.add(time_s, here, np.array([shares("fear") for _ in here]))
    assert [row["face"] for row in watched.finish()] == [1, 2]


def test_smoothing_is_an_exponential_average_in_seconds():
    watched = Timeline("emotion", start_s=0.0, smooth_s=0.5)
    first, second = shares("anger"), shares("sadness")
    (track,) = watched.add(0.0, [face(0)], first[None])
    np.testing.assert_allclose(track.smoothed, first)
    (track,) = watched.add(0.25, [face(0)], second[None])
    kept = np.exp(-0.5)
    np.testing.assert_allclose(track.smoothed, kept * first + (1 - kept) * second)
    assert track.smoothed.sum() == pytest.approx(1)


def test_the_summary_has_means_and_shares():
    watched = Timeline("emotion", start_s=0.0, smooth_s=0.0)
    for frame, word in enumerate(["happiness"] * 3 + ["fear"]):
        watched.add(frame / 10, [face(0)], shares(word)[None])
    (row,) = watched.finish()
    assert (row["first_s"], row["last_s"], row["frames"]) == (0.0, pytest.approx(0.3), 4)
    assert row["emotion"] == "happiness"
    assert (row["share_happiness"], row["share_fear"], row["share_anger"]) == (0.75, 0.25, 0.0)
    assert row["mean_happiness"] == pytest.approx((3 * 0.7 + 0.05) / 4)


def test_a_long_clip_takes_no_more_memory_and_keeps_every_frame():
    watched = Timeline("emotion", start_s=5.0, smooth_s=0.0)
    for frame in range(5000):
        word = "anger" if frame < 2500 else "surprise"
        watched.add(5 + frame / 10, [face(0)], shares(word)[None])
    watched.finish()
    (track,) = watched.plotted
    assert track.sums.shape == (NUM_BINS, len(EMOTIONS) + 1)
    assert track.sums[:, -1].sum() == 5000
    np.testing.assert_allclose(track.sums[:, :-1].sum(axis=0), track.total)
    first, last = track.sums[0, :-1], track.sums[track.sums[:, -1] > 0][-1, :-1]
    assert (EMOTIONS[first.argmax()], EMOTIONS[last.argmax()]) == ("anger", "surprise")


def test_the_plot_draws_the_longest_and_counts_the_others():
    watched = Timeline("emotion", start_s=0.0, smooth_s=0.5)
    for frame in range(8):
        here = [face(100 * number) for number in range(PLOTTED + 2) if frame >= number - 1]
        watched.add(frame / 10, here, np.stack([shares("disgust")] * len(here)))
    watched.finish()
    assert [track.number for track in watched.plotted] == list(range(1, PLOTTED + 1))
    drawn = watched.plot("<clip> & more")
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"] == "<clip> & more"
    said = " ".join(root.itertext())
    assert "time constant of 0.5 s" in said and "2 faces that appear for less time" in said
    assert "face 1 8 of 8 frames, most likely disgust" in " ".join(said.split())


def test_a_gap_is_not_painted_over():
    means = np.full((20, 7), np.nan)
    # Processed frames are three bins apart; of 9 to 18 two are without the face.
    means[[0, 3, 6, 9, 18]] = 1 / 7
    there = np.isfinite(timeline._filled(means)[:, 0])
    assert there.tolist() == [True] * 12 + [False] * 6 + [True] * 2
