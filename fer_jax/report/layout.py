"""What the pages share: how a template is filled in and how numbers are written."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fer_jax import figures, results
from fer_jax.media import images

ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
CELL = re.compile(r"(?P<open><(?P<tag>t[hd])\b[^>]*>)(?P<content>.*?)</(?P=tag)>", re.DOTALL)


def render(template: str, **values: Any) -> str:
    """Fills in a template of this folder; a value that it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "number": number,
        "interval": interval,
        "count": count,
        "p_value": results.p_value,
        "position": position,
        "figure": figures.svg,
        "metric_names": results.METRIC_NAMES,
        "headline": results.HEADLINE,
        "style": figures.css(),
    }
    page = environment.get_template(template).render(**values)
    return re.sub(r"(?s)<table.*?</table>", lambda table: without_empty_columns(table[0]), page)


def without_empty_columns(table: str) -> str:
    """Returns an HTML table without the columns in which every row has "n/a"."""

    def columns_of(row: str) -> list[tuple[range, re.Match[str]]]:
        found, start = [], 0
        for cell in CELL.finditer(row):
            span = int((re.search(r'colspan="(\d+)"', cell["open"]) or [0, 1])[1])
            found.append((range(start, start + span), cell))
            start += span
        return found

    texts: dict[int, set[str]] = {}
    for row in ROW.findall(table.partition("</thead>")[2]):
        for columns, cell in columns_of(row):
            if len(columns) == 1:
                texts.setdefault(columns[0], set()).add(Markup(cell["content"]).striptags())
    empty = {column for column, found in texts.items() if "n/a" in found <= {"n/a", ""}}

    def shrink(row: re.Match[str]) -> str:
        kept = row[0]
        for columns, cell in reversed(columns_of(row[0])):
            left = len(set(columns) - empty)
            start, end = cell.span()
            resized = re.sub(r'colspan="\d+"', f'colspan="{left}"', cell[0], count=1)
            kept = kept[:start] + (resized if left else "") + kept[end:]
        return kept

    return ROW.sub(shrink, table) if empty else table


def number(value: float | None, *, signed: bool = False) -> str:
    """Writes three decimals with a true minus sign, or "n/a"."""
    return results.number(value, signed=signed).replace("-", "−")


def interval(bounds: Sequence[float | None] | None, *, signed: bool = False) -> str:
    """Writes an interval as "[low, high]", or "n/a"."""
    return results.interval(bounds or (None, None), signed=signed).replace("-", "−")


def count(value: float | None) -> str:
    """Writes a whole number, or "n/a" where there is nothing to count."""
    return f"{value:,.0f}" if value else "n/a"


def data_uri(file: Path) -> str:
    """Returns an image file as a data URI; its suffix is .png or .jpg."""
    kind = "png" if file.suffix == ".png" else "jpeg"
    return images.data_uri(file.read_bytes(), kind)


def position(
    value: float | None,
    bounds: Sequence[float | None] | None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    mark: float | None = None,
    kind: str = "",
) -> Markup:
    """Shows a value and its interval on a line from `low` to `high`, next to the numbers in text.

    None as the value leaves the line empty; there is no interval without both bounds. `mark` is
    where a dashed tick is, such as at the chance level or at no difference, `kind` a CSS class for
    the colour.
    """

    def percent(x: float) -> float:
        return 100 * (min(max(x, low), high) - low) / (high - low)

    parts = [f'<span class="track {kind}" aria-hidden="true">']
    if mark is not None:
        parts.append(f'<i class="mark" style="left:{percent(mark):.1f}%"></i>')
    ends = [bound for bound in bounds or () if bound is not None]
    if len(ends) == 2:
        left, width = percent(ends[0]), percent(ends[1]) - percent(ends[0])
        parts.append(f'<i class="reach" style="left:{left:.1f}%;width:{width:.1f}%"></i>')
    if value is not None:
        parts.append(f'<i class="dot" style="left:{percent(value):.1f}%"></i>')
    return Markup("".join(parts) + "</span>")
