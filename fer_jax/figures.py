"""Charts as SVG and HTML; those of the reports take the page's colours, dark ones too.

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

# Of a file of bands, which is shown wider than a panel.
BANDS_WIDTH, BAND_HEIGHT, BAND_STEP = 720, 56, 84
BANDS_STYLE = (
    ".bands text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#3d454d}"
    ".bands .name{font-weight:600}.bands .end{text-anchor:end}.bands .middle{text-anchor:middle}"
    ".bands .empty{fill:#eceff2}.bands .rule{stroke:#8a949e;fill:none}"
    "@media (prefers-color-scheme:dark){.bands text{fill:#c3cad1}.bands .empty{fill:#262c32}}"
)


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


class Band(NamedTuple):
    """Shares over time.

    Attributes:
      name: what they are of.
      note: at the band's right end.
      shares: float [n, k], rows sum to 1; NaN where there are none. Each row holds for an n-th
        of the time.
    """

    name: str
    note: str
    shares: np.ndarray


def bands(
    drawn: Sequence[Band],
    *,
    classes: Sequence[str],
    colours: Sequence[str],
    start_s: float,
    end_s: float,
    title: str,
    caption: str,
) -> Markup:
    """Shares over time, stacked, one band under the other: an SVG that can stand alone.

    Args:
      drawn: the bands, all of the same classes and stretch of time.
      classes: k names.
      colours: k of them, as CSS says them.
      start_s: the left end, in seconds.
      end_s: the right end.
      title: above everything, and what a screen reader says.
      caption: below everything.
    """
    x_ticks = [x for x in ticks(start_s, max(end_s, start_s + 0.1), 7) if start_s <= x <= end_s]
    scale = BANDS_WIDTH / max(end_s - start_s, 1e-9)
    legend_top, top = 34, 62
    bottom = top + BAND_STEP * len(drawn)
    height = bottom + 48
    parts = [f'<text class="name" x="0" y="16">{escape(title)}</text>']
    x = 0
    for name, colour in zip(classes, colours, strict=True):
        parts.append(
            f'<rect x="{x}" y="{legend_top - 10}" width="11" height="11" fill="{colour}"/>'
        )
        parts.append(f'<text x="{x + 16}" y="{legend_top}">{escape(name.replace("_", " "))}</text>')
        x += 34 + 7 * len(name)
    for number, band in enumerate(drawn):
        y = top + BAND_STEP * number
        parts.append(f'<text class="name" x="0" y="{y}">{escape(band.name)}</text>')
        parts.append(f'<text class="end" x="{BANDS_WIDTH}" y="{y}">{escape(band.note)}</text>')
        place = f'x="0" y="{y + 6}" width="{BANDS_WIDTH}" height="{BAND_HEIGHT}"'
        parts.append(f'<rect class="empty" {place}/>')
        for path, colour in zip(_stacked(band.shares, y + 6), colours, strict=True):
            if path:
                parts.append(f'<path fill="{colour}" d="{path}"/>')
    parts.append(f'<path class="rule" d="M0 {bottom - 14}H{BANDS_WIDTH}"/>')
    for tick in x_ticks:
        across = (tick - start_s) * scale
        where = "end" if across > BANDS_WIDTH - 12 else "middle" if across > 8 else ""
        parts.append(f'<path class="rule" d="M{across:.1f} {bottom - 14}v5"/>')
        said = f'class="{where}" x="{across:.1f}" y="{bottom + 6}"'
        parts.append(f"<text {said}>{tick:g} s</text>")
    parts.append(f'<text x="0" y="{height - 12}">{escape(caption)}</text>')
    frame = (
        '<svg xmlns="http://www.w3.org/2000/svg" class="bands" role="img" '
        f'viewBox="-8 -4 {BANDS_WIDTH + 16} {height + 4}" aria-label="{escape(title)}">'
    )
    return Markup(f"{frame}<style>{BANDS_STYLE}</style>{''.join(parts)}</svg>")


def _stacked(shares: np.ndarray, top: float) -> list[str]:
    """For each class the outline of its area, interrupted where there are no shares."""
    num, classes = shares.shape
    step = BANDS_WIDTH / num
    there = np.isfinite(shares).all(axis=1)
    # The numbers at which a stretch begins, and at which it has ended.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(int)))
    reach = np.concatenate([np.zeros((num, 1)), np.cumsum(shares, axis=1)], axis=1)
    heights = top + BAND_HEIGHT * (1 - np.clip(reach, 0, 1))
    paths = []
    for index in range(classes):
        path = ""
        for start, end in edges.reshape(-1, 2):
            # From the left edge of the first to the right edge of the last, through the middles.
            x = [start * step, *((np.arange(start, end) + 0.5) * step), end * step]
            rows = [start, *range(start, end), end - 1]
            upper = [
                f"{a:.1f} {heights[row, index + 1]:.1f}" for a, row in zip(x, rows, strict=True)
            ]
            lower = [f"{a:.1f} {heights[row, index]:.1f}" for a, row in zip(x, rows, strict=True)]
            path += f"M{'L'.join([*upper, *reversed(lower)])}Z"
        paths.append(path)
    return paths


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
