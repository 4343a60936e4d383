"""What the pages share: how a template is filled in and how numbers are written."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fer_jax import figures
from fer_jax.data.audit.findings import leaks_in_words
from fer_jax.evaluation import results

METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "pr_auc": "PR-AUC",
    "roc_auc": "ROC-AUC",
    "ece": "ECE",
    "loss": "loss",
}


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
        "metric_names": METRIC_NAMES,
        "headline": results.HEADLINE,
        "leaks_in_words": leaks_in_words,
        "style": figures.css(),
    }
    return environment.get_template(template).render(**values)


def number(value: float | None, *, signed: bool = False) -> str:
    """Writes three decimals with a true minus sign, or "n/a"."""
    return results.number(value, signed=signed).replace("-", "−")


def interval(bounds: Sequence[float | None] | None, *, signed: bool = False) -> str:
    """Writes an interval as "[low, high]", or "n/a"."""
    return results.interval(bounds or (None, None), signed=signed).replace("-", "−")


def count(value: float | None) -> str:
    """Writes a whole number, or "n/a" where there is nothing to count."""
    return f"{value:,.0f}" if value else "n/a"


def data_uri(data: bytes, kind: str) -> str:
    """Returns an image file as a data URI; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


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

    Args:
      value: where the dot is; None leaves the line empty.
      bounds: the ends of the interval; there is none without both.
      mark: where a dashed tick is, such as at the chance level or at no difference.
      kind: the CSS class that colours it, such as "within".
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
