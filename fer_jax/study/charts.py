"""Charts of the reports, as inline SVG and HTML: they take the page's colours, dark ones too.

A panel is drawn at the width of a phone, so that its letters keep their size there; wider
screens set panels side by side. Colours and dashes are the page's classes c0, c1, ...
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 320, 250
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 38
NUM_COLOURS = 7


class Line(NamedTuple):
    """One line of a panel.

    Attributes:
      name: what it is of, shown when pointed at.
      x: float [n].
      y: float [n]; NaN interrupts the line.
      style: classes of the page, such as "c0" or "soft points".
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    style: str


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `num` of them."""
    rough = max(high - low, 1e-9) / (num - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Rounded, so that 3 * 0.1 reads as 0.3.
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def panel(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] = (0, 0.5, 1),
    y_ticks: Sequence[float] = (0, 0.5, 1),
    diagonal: bool = False,
    bars: Sequence[float] | np.ndarray = (),
    upright: float | None = None,
) -> Markup:
    """A line chart.

    Args:
      lines: what is drawn.
      label: what a screen reader says.
      x_label: under the axis.
      y_label: beside the axis.
      x_ticks: rising; the first and last are the axis' ends.
      y_ticks: likewise.
      diagonal: a dotted line from corner to corner.
      bars: float [n], shares of 1, as n equal bars from the left end to the right.
      upright: where a dashed vertical line stands.
    """
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(x: float) -> float:
        return LEFT + inner_width * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def down(y: float) -> float:
        return TOP + inner_height * (1 - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]))

    bottom, right = TOP + inner_height, LEFT + inner_width
    parts = []
    for y in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {down(y):.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{down(y) + 4:.1f}">{y:g}</text>')
    for x in x_ticks:
        place = f'x="{across(x):.1f}" y="{bottom + 15}"'
        parts.append(f'<text class="tick under" {place}>{x:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    for number, share in enumerate(bars):
        step = inner_width / len(bars)
        top = TOP + inner_height * (1 - share)
        parts.append(
            f'<rect class="bar" x="{LEFT + step * number + 1:.1f}" y="{top:.1f}" '
            f'width="{step - 2:.1f}" height="{bottom - top:.1f}"/>'
        )
    if diagonal:
        parts.append(f'<path class="chance" d="M{LEFT} {bottom}L{right} {TOP}"/>')
    if upright is not None:
        parts.append(f'<path class="upright" d="M{across(upright):.1f} {TOP}V{bottom}"/>')
    for line in lines:
        points = [
            f"{across(float(x)):.1f} {down(float(y)):.1f}" if math.isfinite(y) else None
            for x, y in zip(line.x, line.y, strict=True)
        ]
        path, pen = "", "M"
        for point in points:
            path, pen = (path, "M") if point is None else (path + pen + point, "L")
        title = f"<title>{escape(line.name)}</title>"
        parts.append(f'<path class="line {line.style}" d="{path}">{title}</path>')
        if "points" in line.style.split():
            for point in filter(None, points):
                x, y = point.split()
                parts.append(f'<circle class="{line.style}" cx="{x}" cy="{y}" r="2.5"/>')
    middle = TOP + inner_height / 2
    parts.append(f'<text class="label" x="{LEFT + inner_width / 2}" y="{HEIGHT - 5}">')
    parts.append(f"{escape(x_label)}</text>")
    parts.append(f'<text class="label" transform="translate(11 {middle}) rotate(-90)">')
    parts.append(f"{escape(y_label)}</text>")
    frame = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return Markup(frame + "".join(parts) + "</svg>")


def track(
    value: float | None,
    bounds: Sequence[float | None] | None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    mark: float | None = None,
    kind: str = "",
) -> Markup:
    """A value and its interval on a line from `low` to `high`; the numbers stand beside it.

    Args:
      value: where the dot is; None leaves the line empty.
      bounds: ends of the interval; None, or a pair with a None, draws none.
      low: the line's left end.
      high: its right end.
      mark: where a tick stands, such as chance or no difference.
      kind: class of the page that colours it, such as "within".
    """

    def place(x: float) -> float:
        return 100 * (min(max(x, low), high) - low) / (high - low)

    parts = [f'<span class="track {kind}" aria-hidden="true">']
    if mark is not None:
        parts.append(f'<i class="mark" style="left:{place(mark):.1f}%"></i>')
    ends = [bound for bound in bounds or () if bound is not None]
    if len(ends) == 2:
        left, width = place(ends[0]), place(ends[1]) - place(ends[0])
        parts.append(f'<i class="reach" style="left:{left:.1f}%;width:{width:.1f}%"></i>')
    if value is not None:
        parts.append(f'<i class="dot" style="left:{place(value):.1f}%"></i>')
    return Markup("".join(parts) + "</span>")
