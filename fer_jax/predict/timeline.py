"""The faces of a clip over time: tracked from frame to frame, averaged, and plotted.

Memory does not grow with the clip's length: a track that has ended becomes one row, and the plot
has a fixed number of time bins, which become longer as the clip does.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from fer_jax import figures
from fer_jax.media.faces import Face, follow
from fer_jax.schema import TASKS

# A track ends when its face was missing for longer than both.
LOST_S, LOST_FRAMES = 1.0, 2
NUM_BINS = 240
FIRST_BIN_S = 0.01
PLOTTED = 6  # the tracks with the most frames


@dataclasses.dataclass
class Track:
    """One face through a clip."""

    number: int  # of the face, from 1
    face: Face  # the last detection
    first_s: float  # when it was detected first and last, in seconds
    last_s: float
    smoothed: np.ndarray  # float64 [classes], at its last frame
    sums: np.ndarray  # float64 [bins, classes + 1], `total` of each time bin; the last one counts
    total: np.ndarray  # float64 [classes], the sum of `smoothed` over its frames
    likeliest: np.ndarray  # int64 [classes], frames in which each class was the likeliest
    unseen: int = 0  # frames since the last detection
    frames: int = 0  # in which it was detected
    clearest: tuple[float, Any] | None = None  # (the highest score, what was kept of that face)


class Timeline:
    """Tracks the faces of a clip and averages their probabilities, frame by frame."""

    def __init__(self, task: str, *, start_s: float, smooth_s: float) -> None:
        """Begins a clip at `start_s`.

        `smooth_s` is the time constant, in seconds, of an exponential average of each face's
        probabilities over the frames so far; 0 for no average.
        """
        self.task, self.start_s, self.smooth_s = task, start_s, smooth_s
        self.end_s = start_s
        self.frames = 0
        self._rows: list[dict[str, Any]] = []  # of tracks that have ended
        self._tracks: list[Track] = []
        self._longest: list[Track] = []
        self._bin_s = FIRST_BIN_S
        self._num_tracks = 0

    def add(
        self,
        timestamp_s: float,
        found: Sequence[Face],
        probabilities: np.ndarray,
        keep: Sequence[Any] = (),
    ) -> list[Track]:
        """Adds a frame and returns the track of each of its faces; frames come in order.

        `probabilities` is float [faces, classes]. `keep` has an object per face, of which
        `Track.clearest` keeps the one with the highest detection score.
        """
        self.frames += 1
        self.end_s = max(self.end_s, timestamp_s)
        self._widen_bins(timestamp_s)
        for track in self._tracks:
            track.unseen += 1
        followed = follow([track.face for track in self._tracks], found)
        here = []
        for index, (face, row) in enumerate(zip(found, probabilities, strict=True)):
            row = np.asarray(row, np.float64)
            if index in followed:
                track = self._tracks[followed[index]]
            else:
                track = self._begin(face, timestamp_s, row)
            self._continue(track, face, timestamp_s, row)
            if keep and (track.clearest is None or face.score > track.clearest[0]):
                track.clearest = (face.score, keep[index])
            here.append(track)
        going_on = []
        for track in [*self._tracks, *(track for track in here if track.frames == 1)]:
            if track.unseen > LOST_FRAMES and timestamp_s - track.last_s > LOST_S:
                self._end(track)
            else:
                going_on.append(track)
        self._tracks = going_on
        return here

    def finish(self) -> list[dict[str, Any]]:
        """Ends the clip; returns a row for each tracked face, in the order of their numbers.

        It has "face", "first_s", "last_s", "frames", the task's likeliest class by the mean
        probabilities, "mean_<class>", and "share_<class>" of its frames in which that class was the
        likeliest.
        """
        for track in self._tracks:
            self._end(track)
        self._tracks = []
        return sorted(self._rows, key=lambda row: row["face"])

    @property
    def plotted(self) -> list[Track]:
        """After the end, the tracks with the most frames, in the order of their numbers."""
        return sorted(self._longest, key=lambda track: track.number)

    def plot(self, title: str) -> Markup:
        """Plots the probabilities over time, after the end of the clip, as an SVG file's text."""
        num_bins = max(1, int((self.end_s - self.start_s) / self._bin_s) + 1)
        bands = []
        for track in self.plotted:
            sums = track.sums[:num_bins]
            with np.errstate(invalid="ignore"):
                means = sums[:, :-1] / sums[:, -1:]
            best = TASKS[self.task][int(np.argmax(track.total))].replace("_", " ")
            note = f"{track.frames} of {self.frames} frames, most likely {best}"
            bands.append(figures.Band(f"face {track.number}", note, _filled(means)))
        caption = "Probabilities: of each frame, not averaged."
        if self.smooth_s:
            caption = (
                "Probabilities: averaged over the frames so far with a time constant of "
                f"{self.smooth_s:g} s."
            )
        if others := len(self._rows) - len(bands):
            caption += f" {others} faces that appear for less time are not shown."
        figure = figures.timeline(
            bands,
            dict(zip(TASKS[self.task], figures.class_colours(self.task), strict=True)),
            start_s=self.start_s,
            end_s=self.start_s + num_bins * self._bin_s,
            title=title,
            caption=caption if bands else "No face was found.",
        )
        return figures.svg(figure, standalone=True)

    def _widen_bins(self, timestamp_s: float) -> None:
        """Doubles the length of the time bins until the last one reaches this time."""
        while (timestamp_s - self.start_s) / self._bin_s >= NUM_BINS:
            self._bin_s *= 2
            for track in [*self._tracks, *self._longest]:
                merged = track.sums[0::2] + track.sums[1::2]
                track.sums[:] = 0
                track.sums[: len(merged)] = merged

    def _begin(self, face: Face, timestamp_s: float, row: np.ndarray) -> Track:
        self._num_tracks += 1
        return Track(
            number=self._num_tracks,
            face=face,
            first_s=timestamp_s,
            last_s=timestamp_s,
            smoothed=row,
            sums=np.zeros((NUM_BINS, len(row) + 1)),
            total=np.zeros(len(row)),
            likeliest=np.zeros(len(row), np.int64),
        )

    def _continue(self, track: Track, face: Face, timestamp_s: float, row: np.ndarray) -> None:
        kept = 0.0
        if self.smooth_s:
            kept = float(np.exp((track.last_s - timestamp_s) / self.smooth_s))
        track.smoothed = kept * track.smoothed + (1 - kept) * row
        track.face, track.last_s, track.unseen = face, timestamp_s, 0
        track.frames += 1
        track.total += track.smoothed
        track.likeliest[np.argmax(track.smoothed)] += 1
        index = int((timestamp_s - self.start_s) / self._bin_s)
        track.sums[index] += [*track.smoothed, 1]

    def _end(self, track: Track) -> None:
        classes = TASKS[self.task]
        mean, share = track.total / track.frames, track.likeliest / track.frames
        self._rows.append(
            {
                "face": track.number,
                "first_s": track.first_s,
                "last_s": track.last_s,
                "frames": track.frames,
                self.task: classes[int(np.argmax(mean))],
            }
            | {f"mean_{name}": float(value) for name, value in zip(classes, mean, strict=True)}
            | {f"share_{name}": float(value) for name, value in zip(classes, share, strict=True)}
        )
        self._longest = sorted([*self._longest, track], key=lambda one: -one.frames)[:PLOTTED]


def _filled(means: np.ndarray) -> np.ndarray:
    """Fills empty time bins with the bin before, but not the gaps in which the face was missing.

    If frames are further apart than bins are long, most bins are empty although the face was there.
    """
    there = np.flatnonzero(np.isfinite(means[:, 0]))
    if len(there) < 2:
        return means
    usual = int(np.median(np.diff(there)))
    filled = means.copy()
    for start, end in zip(there[:-1], there[1:], strict=True):
        filled[start : end if end - start <= 2 * usual else start + usual] = means[start]
    filled[there[-1] : there[-1] + usual] = means[there[-1]]
    return filled
