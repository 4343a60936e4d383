"""A clip's faces over time: who is who from frame to frame, what each showed, and the plot of it.

Memory does not grow with the clip's length: a face that is gone is summed up, and the plot keeps
a fixed number of stretches of time, which become longer as the clip does.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from fer_jax import figures
from fer_jax.media.faces import Face, follow
from fer_jax.predict.drawing import colours
from fer_jax.schema import TASKS

# A face that has not been seen for so long, and for so many frames that were looked at, is gone.
LOST_S, LOST_FRAMES = 1.0, 2
NUM_STRETCHES = 240
PLOTTED = 6  # the faces that are there longest


@dataclasses.dataclass
class Track:
    """One face through a clip.

    Attributes:
      number: it keeps, from 1.
      face: where it was last.
      first_s: when it was seen first, seconds.
      last_s: when it was seen last.
      unseen: frames looked at since.
      frames: in which it was seen.
      smoothed: float64 [classes], at its last frame.
      total: float64 [classes], the sum over its frames.
      likeliest: int64 [classes], the frames in which each class was the likeliest.
      sums: float64 [stretches, classes + 1], as `total` for each stretch of time; the last
        column counts.
      clearest: (the detector's highest score, what was kept of that face).
    """

    number: int
    face: Face
    first_s: float
    last_s: float
    smoothed: np.ndarray
    sums: np.ndarray
    total: np.ndarray
    likeliest: np.ndarray
    unseen: int = 0
    frames: int = 0
    clearest: tuple[float, Any] | None = None


class Timeline:
    """The faces of a clip, while it is being watched."""

    def __init__(self, task: str, *, start_s: float, smooth_s: float) -> None:
        """Begins a clip.

        Args:
          task: "emotion" or "interest".
          start_s: where it begins.
          smooth_s: the time constant of an exponential average of each face's probabilities over
            the frames so far: what was so many seconds ago counts for 1 / e. 0: none.
        """
        self.task, self.start_s, self.smooth_s = task, start_s, smooth_s
        self.end_s = start_s
        self.frames = 0
        self.rows: list[dict[str, Any]] = []  # of the faces that are gone
        self._tracks: list[Track] = []
        self._plotted: list[Track] = []
        self._stretch_s = 0.01
        self._begun = 0

    def add(
        self,
        timestamp_s: float,
        found: Sequence[Face],
        probabilities: np.ndarray,
        keep: Sequence[Any] = (),
    ) -> list[Track]:
        """Takes in a frame; frames come in order.

        Args:
          timestamp_s: when it is shown, seconds.
          found: its faces.
          probabilities: float [faces, classes].
          keep: something of each face, which is kept of the clearest of each person's; or nothing.

        Returns:
          The track of each face.
        """
        self.frames += 1
        self.end_s = max(self.end_s, timestamp_s)
        while (timestamp_s - self.start_s) / self._stretch_s >= NUM_STRETCHES:
            self._stretch_s *= 2
            for track in {id(one): one for one in [*self._tracks, *self._plotted]}.values():
                merged = track.sums[0::2] + track.sums[1::2]
                track.sums[:] = 0
                track.sums[: len(merged)] = merged
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
        self._tracks += [track for track in here if track.frames == 1]
        for track in self._tracks:
            if track.unseen > LOST_FRAMES and timestamp_s - track.last_s > LOST_S:
                self._end(track)
        self._tracks = [track for track in self._tracks if track.unseen >= 0]
        return here

    def finish(self) -> list[dict[str, Any]]:
        """Ends the clip.

        Returns:
          A row for each face, in the order of their numbers: "face", "first_s", "last_s",
          "frames", the task's likeliest class by the mean probabilities, "mean_<class>", and
          "share_<class>" of its frames in which that class was the likeliest.
        """
        for track in self._tracks:
            self._end(track)
        self._tracks = []
        self.rows.sort(key=lambda row: row["face"])
        return self.rows

    @property
    def plotted(self) -> list[Track]:
        """After the end, the faces that were there longest, in the order of their numbers."""
        return sorted(self._plotted, key=lambda track: track.number)

    def plot(self, title: str) -> Markup:
        """Returns the probabilities over time, after the end of the clip, as an SVG file's text."""
        stretches = max(1, int((self.end_s - self.start_s) / self._stretch_s) + 1)
        bands = []
        for track in self.plotted:
            sums = track.sums[:stretches]
            with np.errstate(invalid="ignore"):
                means = sums[:, :-1] / sums[:, -1:]
            best = TASKS[self.task][int(np.argmax(track.total))].replace("_", " ")
            seen = f"{track.frames} of {self.frames} frames, most likely {best}"
            bands.append(figures.Band(f"face {track.number}", seen, _filled(means)))
        said = "of each frame, not averaged"
        if self.smooth_s:
            said = f"averaged over the frames so far with a time constant of {self.smooth_s:g} s"
        caption = f"Probabilities: {said}."
        others = len(self.rows) - len(bands)
        if others:
            caption += f" {others} faces that appear for less time are not shown."
        if not bands:
            caption = "No face was found."
        figure = figures.timeline(
            bands,
            dict(zip(TASKS[self.task], colours(self.task), strict=True)),
            start_s=self.start_s,
            end_s=self.start_s + stretches * self._stretch_s,
            title=title,
            caption=caption,
        )
        return figures.svg(figure, standalone=True)

    def _begin(self, face: Face, timestamp_s: float, row: np.ndarray) -> Track:
        self._begun += 1
        return Track(
            number=self._begun,
            face=face,
            first_s=timestamp_s,
            last_s=timestamp_s,
            smoothed=row,
            sums=np.zeros((NUM_STRETCHES, len(row) + 1)),
            total=np.zeros(len(row)),
            likeliest=np.zeros(len(row), np.int64),
        )

    def _continue(self, track: Track, face: Face, timestamp_s: float, row: np.ndarray) -> None:
        kept = 0.0
        if self.smooth_s:
            kept = float(np.exp((track.last_s - timestamp_s) / self.smooth_s))
        # At its first frame both are the same.
        track.smoothed = kept * track.smoothed + (1 - kept) * row
        track.face, track.last_s, track.unseen = face, timestamp_s, 0
        track.frames += 1
        track.total += track.smoothed
        track.likeliest[np.argmax(track.smoothed)] += 1
        stretch = int((timestamp_s - self.start_s) / self._stretch_s)
        track.sums[stretch] += [*track.smoothed, 1]

    def _end(self, track: Track) -> None:
        classes = TASKS[self.task]
        mean, share = track.total / track.frames, track.likeliest / track.frames
        self.rows.append(
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
        track.unseen = -1
        self._plotted = sorted([*self._plotted, track], key=lambda one: -one.frames)[:PLOTTED]


def _filled(means: np.ndarray) -> np.ndarray:
    """Each stretch holds what was last seen, until the next frame that was looked at.

    Where frames are further apart than stretches are long, most stretches are empty, though the
    face was there. Where the face was away, they stay so.
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
