"""What the model says, drawn onto the picture: a box, a label and a bar of probabilities a face."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from fer_jax.schema import TASKS

# Told apart also by brightness, so that those who do not see all colours can tell most.
COLOURS = {
    "anger": "#d1495b",
    "disgust": "#5f9e4a",
    "fear": "#7b5ea7",
    "happiness": "#f2b705",
    "neutral": "#9aa5b1",
    "sadness": "#2f6db5",
    "surprise": "#ee8434",
    "not_interested": "#9aa5b1",
    "interested": "#2f6db5",
}
INK, PAPER = (36, 31, 27), (255, 255, 255)  # BGR, as everything here
FONT = cv2.FONT_HERSHEY_DUPLEX
SMALLEST_TEXT, LARGEST_TEXT = 0.36, 1.1  # of the font's size
LEGEND_TEXT = 0.45


class Shown(NamedTuple):
    """A face as it is drawn.

    Attributes:
      box: (x, y, width, height) in pixels.
      name: before the label, such as the number that a face keeps; may be empty.
      probabilities: float [classes].
    """

    box: Sequence[float]
    name: str
    probabilities: np.ndarray


def colours(task: str) -> list[str]:
    """The classes' colours, in their order, as CSS says them."""
    return [COLOURS[name] for name in TASKS[task]]


def annotate(picture: np.ndarray, shown: Sequence[Shown], task: str) -> np.ndarray:
    """A copy of a picture with its faces marked, and below it what the colours mean.

    Args:
      picture: uint8 BGR [height, width, 3].
      shown: the faces, the largest first.
      task: "emotion" or "interest".

    Returns:
      uint8 BGR [height + the legend's, width, 3].
    """
    bgr = [_bgr(colour) for colour in colours(task)]
    names = [name.replace("_", " ") for name in TASKS[task]]
    legend = _legend(names, bgr, picture.shape[1])
    out = np.concatenate([picture, legend])
    inside = out[: len(picture)]
    # The smallest first: what is written of a face in front is not covered.
    for one in reversed(shown):
        _mark(inside, one, names, bgr)
    return out


def legend_height(width: int, task: str) -> int:
    """Pixels that `annotate` adds below a picture of a width."""
    names = [name.replace("_", " ") for name in TASKS[task]]
    return len(_legend(names, [PAPER] * len(names), width))


def _mark(
    picture: np.ndarray, one: Shown, names: Sequence[str], bgr: Sequence[tuple[int, ...]]
) -> None:
    height, width = picture.shape[:2]
    x, y, box_width, box_height = one.box
    left, top = round(max(x, 0)), round(max(y, 0))
    right, bottom = round(min(x + box_width, width - 1)), round(min(y + box_height, height - 1))
    best = int(np.argmax(one.probabilities))
    thick = 1 + (right - left) // 90
    cv2.rectangle(picture, (left, top), (right, bottom), PAPER, thick + 2)
    cv2.rectangle(picture, (left, top), (right, bottom), bgr[best], thick)
    # As wide as the box, where that can be read.
    text = " ".join(filter(None, [one.name, names[best], f"{one.probabilities[best]:.0%}"]))
    scale = float(np.clip((right - left) / _text_size(text, 1)[0], SMALLEST_TEXT, LARGEST_TEXT))
    text_width, text_height = _text_size(text, scale)
    pad = 2 + text_height // 3
    bar = max(4, (right - left) // 24)
    tag_height = text_height + 2 * pad
    tag_width = max(text_width + 2 * pad, right - left)
    tag_left = max(0, min(left, width - tag_width))
    # Above the face; below it where there is no room.
    tag_top = top - tag_height - bar if top - tag_height - bar >= 0 else bottom
    tag_top = max(0, min(tag_top, height - tag_height - bar))
    tag_right, text_bottom = min(tag_left + tag_width, width - 1), tag_top + tag_height
    cv2.rectangle(picture, (tag_left, tag_top), (tag_right, text_bottom), PAPER, cv2.FILLED)
    place = (tag_left + pad, tag_top + pad + text_height)
    cv2.putText(picture, text, place, FONT, scale, INK, 1, cv2.LINE_AA)
    edges = tag_left + np.round((tag_right - tag_left) * np.cumsum([0, *one.probabilities]))
    for index, colour in enumerate(bgr):
        start, end = int(edges[index]), int(edges[index + 1])
        if end > start:
            cv2.rectangle(
                picture, (start, text_bottom), (end, text_bottom + bar), colour, cv2.FILLED
            )


def _legend(names: Sequence[str], bgr: Sequence[tuple[int, ...]], width: int) -> np.ndarray:
    """A strip that says which colour is which class, in as many lines as it takes."""
    _, text_height = _text_size("Ag", LEGEND_TEXT)
    line, gap = text_height * 2 + 4, text_height
    places: list[tuple[int, int]] = []
    x, y = gap, 0
    for name in names:
        needed = text_height + gap // 2 + _text_size(name, LEGEND_TEXT)[0]
        if x + needed > width and x > gap:
            x, y = gap, y + line
        places.append((x, y))
        x += needed + gap
    # An even number of lines of pixels, which the video formats ask for.
    strip = np.full(((y + line + 1) // 2 * 2, width, 3), PAPER, np.uint8)
    for name, colour, (x, y) in zip(names, bgr, places, strict=True):
        top = y + (line - text_height) // 2
        corner = (x + text_height, top + text_height)
        cv2.rectangle(strip, (x, top), corner, colour, cv2.FILLED)
        place = (x + text_height + gap // 2, top + text_height)
        cv2.putText(strip, name, place, FONT, LEGEND_TEXT, INK, 1, cv2.LINE_AA)
    return strip


def _text_size(text: str, scale: float) -> tuple[int, int]:
    """(width, height) in pixels."""
    width, height = cv2.getTextSize(text, FONT, scale, 1)[0]
    return width, height


def _bgr(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return blue, green, red
