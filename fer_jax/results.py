"""results.json of a run or a study: written, read, and its numbers as text."""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import forms, storage
from fer_jax.errors import InputError

FILE = "results.json"
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "pr_auc", "roc_auc", "ece")
METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "pr_auc": "PR-AUC",
    "roc_auc": "ROC-AUC",
    "ece": "ECE",
    "loss": "loss",
    "weighted_f1": "weighted F1",
    "kappa": "Cohen's kappa",
    "mcc": "MCC",
    "brier": "Brier score",
    "class_ece": "class-wise ECE",
}
LOWER_IS_BETTER = ("ece", "loss", "brier", "class_ece")


def write(workdir: Path, content: dict[str, Any]) -> Path:
    """Writes workdir/results.json, with NaN as null, and returns its path."""
    path = workdir / FILE
    storage.write_atomically(path, json.dumps(plain(content), indent=2) + "\n")
    return path


def read(workdir: Path) -> dict[str, Any] | None:
    """Returns what workdir/results.json says; None without it, InputError if it cannot be used."""
    file = workdir / FILE
    if not file.is_file():
        return None
    content = storage.read_json(file, "remove it and evaluate again")
    is_study = "scenarios" in content
    rerun = f"rerun `fer-jax {'study' if is_study else 'evaluate'}`"
    if "test_access" not in content or not (is_study or "checkpoint" in content):
        raise InputError(f"'{file}' was written by another version; {rerun}")
    try:
        # What an earlier version lacks is said where it is needed.
        form = forms.STUDY_RESULTS if is_study else forms.RUN_RESULTS
        forms.check_form(content, form, complete=False)
    except ValueError as error:
        raise InputError(f"'{file}' was changed ({error}); {rerun}") from error
    return content


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: arrays as lists, NaN as None."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and math.isnan(value) else value


def number(value: float | None, *, signed: bool = False) -> str:
    """Writes three decimals, or "n/a" for None and NaN."""
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def interval(bounds: Sequence[float | None], *, signed: bool = False) -> str:
    """Writes an interval as "[0.421, 0.533]", or "n/a" if a bound is None or NaN."""
    low, high = (number(bound, signed=signed) for bound in bounds)
    return "n/a" if "n/a" in (low, high) else f"[{low}, {high}]"


def loss_in_words(loss: float | None, bounds: Sequence[float | None]) -> str:
    """Names a difference (within less unseen) a loss where its interval says that it is one."""
    shown = interval(bounds, signed=True)
    if shown == "n/a":
        return f"a difference of {number(loss, signed=True)} (no interval)"
    low, high = (bound or 0.0 for bound in bounds)
    if low > 0:
        return f"a loss of {number(loss)} {interval(bounds)}"
    text = f"a difference of {number(loss, signed=True)} {shown}"
    return text if high < 0 else f"{text}, which is not significant"


def p_value(p: float | None) -> str:
    """Writes three decimals, "<0.001" or "n/a"."""
    return "<0.001" if p is not None and p < 0.001 else number(p)


def set_name(scored: dict[str, Any]) -> str:
    """Returns "DATASET SPLIT", followed by the variant if it is one."""
    return f"{scored['dataset']} {scored['split']} {scored.get('variant', '')}".strip()


def align(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Lays out rows of cells, the first of which is the header, as a text table.

    The columns `left` are aligned to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
