"""Draws figures with matplotlib: SVG in the colours of a page, and files for papers.

matplotlib is imported where a figure is drawn, without pyplot. Its settings are global, so one
figure is drawn at a time.
"""

import html
import io
import re
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from fer_jax.schema import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of every page, as CSS variables; figures for papers use the light ones. A timeline's
# class colours are not among them, because they are the same in both modes.
LIGHT = {
    **{"paper": "#ffffff", "ink": "#1b1f24", "soft": "#59636e", "line": "#d9dee3"},
    **{"faint": "#f3f5f7", "within": "#0a66a3", "cross": "#b34700", "heat": "#6db1e3"},
    **{"bad": "#a4161a", "bar": "#cfd6dd", "c0": "#0072b3", "c1": "#b84a00", "c2": "#007a5a"},
    **{"c3": "#a8447f", "c4": "#7a6000", "c5": "#3b3f9e", "c6": "#444b52"},
}
DARK = {
    **{"paper": "#14171a", "ink": "#e4e7ea", "soft": "#9ba6b1", "line": "#30373e"},
    **{"faint": "#1d2226", "within": "#5db0ea", "cross": "#f0935a", "heat": "#1d5f94"},
    **{"bad": "#8c1d18", "bar": "#39424a", "c0": "#56b4e9", "c1": "#f0935a", "c2": "#3fbf96"},
    **{"c3": "#dd8fbb", "c4": "#d9b44a", "c5": "#9da4ff", "c6": "#c3cad1"},
}
# Of classes; they differ in brightness, too, for readers who do not see all colours.
CLASS_COLOURS = {
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
NUM_COLOURS = 7
# Lines also differ by their dashes, for readers and printers without colours.
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), "-", (0, (5, 1.5)), (0, (1.5, 1.5)), "-.")
FORMATS = ("pdf", "svg", "png")
COLUMN_INCHES = 3.4  # the width of a column of a paper
SETTINGS: dict[Any, Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "fer_jax", "pdf.fonttype": 42},
    **{"text.parse_math": False, "font.size": 9, "legend.fontsize": 8, "savefig.dpi": 300},
    **{"text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["soft"], "axes.axisbelow": True},
    **{"xtick.color": LIGHT["soft"], "ytick.color": LIGHT["soft"], "grid.color": LIGHT["line"]},
    **{"axes.edgecolor": LIGHT["soft"], "legend.frameon": False, "lines.linewidth": 1.3},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False},
    **{"xtick.bottom": False, "ytick.left": False, "axes.grid": True, "axes.grid.axis": "y"},
}
_LOCK = threading.RLock()


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


class Line(NamedTuple):
    """One line of a chart."""

    name: str  # in the legend and in the tooltip
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray  # NaN interrupts the line
    colour: str  # a key of `LIGHT`; c0 to c6 have dashes of their own
    points: bool = False  # whether each value is marked


def _figure(title: str, width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_label(title)
    figure.patch.set_visible(False)
    return figure


@_style()
def chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    *,
    x_end: float = 1,
    y_end: float | None = 1,
    diagonal: str | None = None,
    bars: tuple[str, Sequence[float] | np.ndarray] | None = None,
    vertical: tuple[str, float] | None = None,
) -> "Figure":
    """Draws a line chart from 0 to `x_end` and `y_end`; None: to the highest value.

    `diagonal` is the legend of a dotted line from corner to corner, `bars` (legend, float [n]) are
    n equal bars over the width, `vertical` is (legend, x) of a dashed line.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(title, COLUMN_INCHES, 2.4)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set(xlabel=x_label, ylabel=y_label)
    if bars is not None:
        name, shares = bars
        left = np.arange(len(shares)) * x_end / len(shares)
        axes.bar(left, shares, 0.9 * x_end / len(shares), align="edge", color=LIGHT["bar"])
        axes.patches[0].set_label(name)
    if diagonal is not None:
        axes.plot([0, x_end], [0, y_end or 1], ":", color=LIGHT["soft"], label=diagonal)
    if vertical is not None:
        axes.axvline(vertical[1], linestyle="--", color=LIGHT["cross"], label=vertical[0])
    for line in lines:
        number = int(line.colour[1:]) if line.colour[1:].isdigit() else 0
        axes.plot(
            np.asarray(line.x, float),
            np.asarray(line.y, float),
            color=LIGHT[line.colour],
            linestyle=DASHES[number],
            marker="o" if line.points else None,
            markersize=3.5,
            label=line.name,
            gid=f"title {line.name}",
            clip_on=False,
        )
    axes.set_xlim(0, x_end)
    axes.set_ylim(0, y_end)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    _legend(figure, axes)
    return figure


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Adds a legend below the axes and makes the figure higher by it."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    columns = 3 if max(map(len, names)) < 14 else 1
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * rows)
    names = [name.replace("_", " ") for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, columnspacing=1.2)


@_style()
def heatmap(
    shades: np.ndarray,
    texts: Sequence[Sequence[str]],
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    x_label: str = "",
    y_label: str = "",
    pictures: Sequence[np.ndarray] = (),
) -> "Figure":
    """Draws a table of texts whose cells are shaded by float [rows, columns], 0 to 1 or NaN.

    `pictures` are uint8 RGB [height, width, 3] of one size, one above each column.
    """
    from matplotlib.patches import Rectangle

    height = 1.1 + sum(0.2 + 0.14 * max(text.count("\n") for text in row) for row in texts)
    width = 1.6 if len(pictures) else 0.75  # of a column, in inches
    above = 0.0
    if len(pictures):
        above = width * pictures[0].shape[0] / pictures[0].shape[1]
    figure = _figure(title, max(COLUMN_INCHES, 1 + width * len(columns)), height + above)
    if len(pictures):
        top, bottom = figure.add_gridspec(2, 1, height_ratios=[above, height - 0.9])
        shown, axes = figure.add_subplot(top), figure.add_subplot(bottom)
        for column, picture in enumerate(pictures):
            shown.imshow(picture, extent=(column, column + 0.98, 0, 1), aspect="auto")
        shown.set(xlim=(0, len(columns)), ylim=(0, 1))
        shown.set_axis_off()
    else:
        axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, len(columns)), ylim=(len(rows), 0))
    for (row, column), shade in np.ndenumerate(shades):
        if np.isfinite(shade):
            cell = Rectangle((column, row), 0.98, 0.96, color=LIGHT["heat"], alpha=float(shade))
            axes.add_patch(cell)
        text = texts[int(row)][int(column)]
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7)
    x_names, y_names = ([name.replace("_", " ") for name in names] for names in (columns, rows))
    turned = {} if len(pictures) else {"rotation": 35, "ha": "right"}
    axes.set_xticks(np.arange(len(columns)) + 0.5, x_names, fontsize=8, **turned)
    axes.set_yticks(np.arange(len(rows)) + 0.5, y_names, fontsize=8)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


@_style()
def strip(pictures: Sequence[np.ndarray], names: Sequence[str], title: str) -> "Figure":
    """Draws pictures, uint8 RGB [height, width, 3] of any sizes, side by side with their names."""
    shares = [picture.shape[1] / picture.shape[0] for picture in pictures]
    figure = _figure(title, 1.7 * sum(shares) + 0.5, 2.0)
    for place, picture, name in zip(
        figure.subplots(1, len(pictures), width_ratios=shares), pictures, names, strict=True
    ):
        place.imshow(picture)
        place.set_title(name, fontsize=8)
        place.set_axis_off()
    return figure


@_style()
def differences(
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[Sequence[float] | None],
    title: str,
    x_label: str,
) -> "Figure":
    """Draws values with their intervals, a row each, beside a line at 0."""
    figure = _figure(title, COLUMN_INCHES, 0.7 + 0.22 * len(names))
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, loc="right")
    axes.axvline(0, linestyle="--", color=LIGHT["soft"])
    for row, (value, bounds) in enumerate(zip(values, intervals, strict=True)):
        if bounds is not None:
            axes.plot(bounds, [row, row], color=LIGHT["within"], solid_capstyle="butt")
        axes.plot([value], [row], "o", color=LIGHT["within"], markersize=4)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False)
    return figure


class Band(NamedTuple):
    """Shares over time, with a name at the left and a note at the right.

    `shares` are float [n, k], rows sum to 1; NaN where there are none. Each row is an equal part
    of the time.
    """

    name: str
    note: str
    shares: np.ndarray


@_style()
def timeline(
    bands: Sequence[Band],
    colours: Mapping[str, str],
    start_s: float,
    end_s: float,
    title: str,
    caption: str,
) -> "Figure":
    """Draws stacked shares from `start_s` to `end_s`, a band each; `colours` are {class: CSS}."""
    from matplotlib.patches import Patch

    figure = _figure(title, 7.2, 1.1 + 0.85 * len(bands))
    figure.supxlabel(textwrap.fill(caption, 120), x=0.01, ha="left", fontsize=8)
    for number, band in enumerate(bands, 1):
        axes = figure.add_subplot(len(bands), 1, number, facecolor=LIGHT["faint"])
        axes.set_title(band.name, loc="left", fontsize=8, fontweight="bold")
        axes.set_title(band.note, loc="right", fontsize=8)
        axes.set(xlim=(start_s, end_s), ylim=(0, 1), yticks=[])
        axes.xaxis.set_major_formatter("{x:g} s" if number == len(bands) else "")
        _stack(axes, band.shares, list(colours.values()), start_s, end_s)
    patches = [Patch(color=colours[name], label=name.replace("_", " ")) for name in colours]
    legend = figure.legend(
        handles=patches,
        title=title,
        loc="outside upper left",
        ncols=len(patches),
        handlelength=1,
        alignment="left",
    )
    legend.get_title().set_fontweight("bold")
    return figure


def _stack(
    axes: "Axes", shares: np.ndarray, colours: Sequence[str], start_s: float, end_s: float
) -> None:
    edges = np.linspace(start_s, end_s, len(shares) + 1)
    reach = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)], axis=1)
    # From the left edge of a run's first row to the right edge of its last, through the middles.
    for run in np.ma.clump_unmasked(np.ma.masked_invalid(reach[:, -1])):
        middles = (edges[run] + edges[run.start + 1 : run.stop + 1]) / 2
        x = np.concatenate([edges[[run.start]], middles, edges[[run.stop]]])
        y = reach[[run.start, *range(run.start, run.stop), run.stop - 1]].clip(0, 1)
        for index, colour in enumerate(colours):
            outline = np.concatenate([y[:, index + 1], y[::-1, index]])
            axes.fill(np.concatenate([x, x[::-1]]), outline, color=colour, linewidth=0)


def class_colours(task: str) -> list[str]:
    """Returns the colours of the classes, in their order, for CSS."""
    return [CLASS_COLOURS[name] for name in TASKS[task]]


def css() -> Markup:
    """Returns the style of a page: the colours as variables, light and dark, and style.css."""
    file = Path(__file__).with_name("style.css")
    return Markup(_variables("screen and ") + file.read_text())


def _variables(medium: str) -> str:
    light, dark = (
        "".join(f"--{name}:{colour};" for name, colour in colours.items())
        for colours in (LIGHT, DARK)
    )
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media {medium}(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    )


def _fix_layout(figure: "Figure") -> None:
    """Lays the figure out once: drawn again, it would change a little."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")


@_style()
def save(figure: "Figure", file: Path, dpi: int = 300) -> None:
    """Writes a figure for a paper in the format of the file's suffix, with embedded fonts."""
    # Without a date the same figure is the same file.
    kind = file.suffix[1:]
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    _fix_layout(figure)
    figure.savefig(file, format=kind, dpi=dpi, metadata=undated | {"Title": figure.get_label()})


@_style()
def svg(figure: "Figure", *, standalone: bool = False) -> Markup:
    """Returns a figure as SVG that follows a page's CSS variables (`standalone`: has its own)."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    _fix_layout(figure)
    dpi, figure.dpi = figure.dpi, 300  # of pictures in it
    # As savefig does, which draws once more before, for layouts that may still change.
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    figure.dpi = dpi
    start, body = re.split(r"<metadata>.*?</metadata>", buffer.getvalue(), flags=re.DOTALL)
    viewbox = re.findall(r'viewBox="[^"]*"', start)[-1]
    # matplotlib's own style would be the whole page's.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="title ([^"]*)">', r"<g><title>\1</title>", body)
    body = re.sub(r'<g id="[xy]tick_\d+">', '<g class="tick">', body)
    body = re.sub(r'( d="[^"]*")', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    body = body.replace("xlink:href", "href")
    title = html.escape(str(figure.get_label()))
    # An identifier must be unique on a page of many figures.
    prefix = "f" + sha256((title + body).encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:url\(#|href="#)(\w+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", body)
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    head = f'<svg {viewbox} role="img" aria-label="{title}"'
    if standalone:
        head += ' xmlns="http://www.w3.org/2000/svg"'
    style = f"<style>{_variables('')}</style>" if standalone else ""
    return Markup(f"{head}><title>{title}</title>{style}{body}")
