"""What the JSON files that fer_jax reads back must hold, so that no use of them has to check it.

A form is a type or a union of types; [form], a list of any length; (form, form), a list of as many;
{name: form}, an object with these names and maybe others, of which one that ends in "?" may be
absent; {str: form}, an object with any names; or `Maybe(form)`, which may be null.
"""

import functools
import json
from typing import Any, NamedTuple, get_args

Number = int | float
Value = int | float | None  # null where a number is not defined
Text = str | None
Form = dict[Any, Any]


class Maybe(NamedTuple):
    """A form, or null."""

    form: Any


def check_form(value: Any, form: Any, name: str = "it", *, complete: bool = True) -> None:
    """Raises ValueError, which names the place, if a value that JSON was read to lacks a form.

    If it need not be `complete`, any name may be absent.
    """
    check = functools.partial(check_form, complete=complete)
    if isinstance(form, Maybe):
        if value is not None:
            check(value, form.form, name)
    elif isinstance(form, dict) and isinstance(value, dict):
        for key, inner in form.items():
            if key is str:
                for own, held in value.items():
                    check(held, inner, f"{name}.{own}")
            elif (own := key.removesuffix("?")) in value:
                check(value[own], inner, f"{name}.{own}".removeprefix("it."))
            elif own == key and complete:
                raise ValueError(f"{name} lacks '{key}'")
    elif isinstance(form, list) and isinstance(value, list):
        for index, held in enumerate(value):
            check(held, form[0], f"{name}[{index}]")
    elif isinstance(form, tuple) and isinstance(value, list) and len(value) == len(form):
        for index, held in enumerate(value):
            check(held, form[index], f"{name}[{index}]")
    # Not isinstance: of Python, True is a whole number.
    elif isinstance(form, dict | list | tuple) or type(value) not in (get_args(form) or (form,)):
        raise ValueError(f"{name} cannot be {json.dumps(value)[:60]}")


# What each JSON file holds, by its name or the verb that writes it.
PROVENANCE = {
    "saw?": [{"dataset": str, "split": str, "fingerprint?": Text, "unnamed?": Value}],
    "subjects?": [str],
    "unknown?": [str],
}
# config.json of a folder with a generator.
NETWORK = PROVENANCE | {"task?": str, "classes?": [str]}
ENVIRONMENT = {
    "command?": Text,
    "commit?": Text,
    "versions?": {str: Text},
    "devices?": [str],
    "cpu_cores?": Value,
    "settings?": {str: bool | int | float | str | None},
    "data_dir?": str,
    "datasets?": {str: {"fingerprint?": Text, "records?": Value, "margin?": Value}},
    "test_datasets?": {str: Text},
    "start?": PROVENANCE,
    "leaks?": {str: Number},
    "seen?": [str],
    "unknown_people?": [str],
    "left_out?": {str: Number},
}
BUILD = {
    "fingerprint?": Text,
    "inputs_digest?": Text,
    "records?": Value,
    "options?": {
        "made_by?": {str: str},
        "generator?": PROVENANCE,
        "teacher?": PROVENANCE,
        "faces?": {"margin?": Number},
    },
}
AUDIT = {
    "date": str,
    "fingerprint": str,
    "parts?": [{"part": str, "fingerprint": str}],
    "findings": [
        {"kind": str, "key": str, "a": {"record_id": str}, "b": {"record_id": str}},
    ],
}
NEAR_DUPLICATES = Maybe({"found": Value, "date": Text, "fingerprint": Text})
LEAKS = {
    str: Maybe(
        {
            "counts?": {str: Number},
            "seen?": [str],
            "unknown?": [str],
            "near_duplicates?": NEAR_DUPLICATES,
        }
    )
}
ANNOTATORS = Maybe({"accuracy": Value, "balanced_accuracy": Value})
TEST_SETS = {
    str: {
        "near_duplicates?": Maybe({str: str}),
        "annotators?": ANNOTATORS,
        "relation?": Text,
        "differences?": [str],
    }
}
ORIGIN = {"step?": Value, "checksum?": Text, "chosen?": Text, "fingerprint?": Text}
METRICS_ROW = {"step": Number, str: Value}
TEST_ACCESS_ROW = {
    "dataset": str,
    "split": str,
    "checkpoint": Value,
    "checksum?": Text,
    "fingerprint?": Text,
    "time?": Text,
    "previous?": str,
}

# results.json: of a run, and below it of a study.
_INTERVAL = (Value, Value)
_HEADLINE = dict.fromkeys(
    ("accuracy", "balanced_accuracy", "macro_f1", "pr_auc", "roc_auc", "ece"), Value
)
_METRICS = _HEADLINE | dict.fromkeys(
    ("loss", "weighted_f1", "kappa", "mcc", "brier", "class_ece"), Value
)
_BY_CLASS = ("recall", "precision", "f1", "prevalence", "class_pr_auc", "class_roc_auc")
_MAJORITY = {"accuracy": Value, "balanced_accuracy": Value}
# Scores of images, clips, subjects, or of those with one value of a column.
_UNIT = _HEADLINE | {
    "n_clusters": Value,
    "intervals": dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), _INTERVAL),
}
_GAP = {"n_classes": Value, "high": str, "low": str, "difference": Value, "interval": _INTERVAL}
_TABLE = {"dataset": str, "split": str}
_ACCESS = _TABLE | {"times": Number, "time?": Text}
# Certainty: where its thresholds come from, and how it does on a test set.
CERTAINTY = Maybe(
    {
        "groups": Number,
        "of": str,
        "most": Number,
        "levels": {str: (Maybe(Number), Maybe(Number))},
    }
)
_CERTAIN = {
    **dict.fromkeys(("promise", "groups", "most", "coverage", "size"), Value),
    **dict.fromkeys(("answered", "right", "area"), Value),
    "of": str,
    "curve": {"answered": [Value], "right": [Value]},
    "intervals": dict.fromkeys(("coverage", "size", "answered", "right"), _INTERVAL),
}
_SET = {
    **(_UNIT | _METRICS | _TABLE),
    **dict.fromkeys(_BY_CLASS, [Value]),
    **dict.fromkeys(("n", "n_clips", "n_subjects", "n_unlabelled", "step", "chance"), Value),
    **dict.fromkeys(("pr_auc_classes", "roc_auc_classes", "min_people"), Value),
    "variant": str,
    "table": str,
    "cluster": str,
    "relation": Text,
    "n_by_class": [Number],
    "confusion": [[Number]],
    "intervals": dict.fromkeys(_METRICS, _INTERVAL) | {"recall": [_INTERVAL]},
    "majority": _MAJORITY | {"pr_auc": Value},
    "pixel_free": Maybe({"balanced_accuracy": Value}),
    "calibrated": Maybe({"ece": Value}),
    "annotators": ANNOTATORS,
    "certainty?": Maybe({str: _CERTAIN}),
    "reliability": {"weight": [Number], "confidence": [Value], "accuracy": [Value]},
    "by_clip": Maybe(
        _UNIT | dict.fromkeys(("n", "n_clips_of_several_labels", "n_images_without_clip"), Value)
    ),
    "by_subject": Maybe(
        _UNIT
        | {"accuracies": [Value], "accuracy_quartiles": [Value], "n_images_without_subject": Value}
    ),
    "slices": {str: [_UNIT | {"value": str, "n": Value}]},
    "gaps": {str: Maybe(_GAP | {"n_pairs": Number})},
    "curves": [Maybe(dict.fromkeys(("recall", "precision", "false_positive_rate"), [Value]))],
    "errors": [
        {
            **dict.fromkeys(("record_id", "label", "given"), str),
            "probability": Value,
            "face": Text,
            "heatmap": Text,
        }
    ],
    "no_pictures": Text,
    "caveats": [str],
    "leaks": Maybe({str: Number}),
    "near_duplicates": NEAR_DUPLICATES,
}
_MEAN = {"value": Value, "interval": _INTERVAL}
RUN_RESULTS = {
    "task": str,
    "classes": [str],
    "seed": Value,
    "commit": Text,
    "checkpoint": {"step": Value, "chosen": Text},
    "datasets": {str: {"records?": Value, "fingerprint?": Text}},
    "warnings": [str],
    "looked_for": str,
    "unknown_people": [str],
    "left_out": {str: Number},
    "sets": [_SET],
    "validation": [_SET],
    "apart": [_SET],
    "calibration": Maybe({"temperature": Value}),
    "certainty?": {str: CERTAINTY},
    "means": {str: _HEADLINE},
    "generalization": {
        "chance": Value,
        "classes": [str],
        "why": Text,
        **dict.fromkeys(
            ("within", "cross_content", "cross_domain"), _MEAN | {"sets": [str], "loss": _MEAN}
        ),
    },
    "test_access": [_ACCESS],
    "test_access_hash?": Text,
    "best_step": Value,
    "reproduce": {
        "command": Text,
        "config": {"selection_metric": str},
        "versions": {str: Text},
        "devices": [str],
        "cpu_cores": Value,
    },
}
_DIFFERENCE = {
    "scenario": str,
    "against": str,
    "difference": Value,
    "interval": Maybe(_INTERVAL),
    "p": Value,
    "p_corrected": Value,
}
_DISTANCE = Maybe(
    {
        "value": Value,
        "interval": Maybe(_INTERVAL),
        "n_sets?": Value,
        "n_shared?": Value,
        "of?": Text,
        "why?": Text,
    }
)
STUDY_RESULTS = {
    **dict.fromkeys(("question", "answer", "task", "baseline"), str),
    "protocol": Text,
    "classes": [str],
    "common_classes": [str],
    "scenarios": [
        {
            "name": str,
            "sources": [str],
            "n_images": Value,
            "n_subjects": Value,
            "seeds": [Value],
            "runs": [str],
            "steps": [Value],
            "oracle": bool,
        }
    ],
    "test_sets": [
        _TABLE
        | dict.fromkeys(("n", "n_subjects", "n_clips"), Value)
        | {"source": Text, "faces?": Text, "classes_present": Number}
    ],
    "cells": [
        _TABLE
        | dict.fromkeys(("n", "n_subjects", "n_clips", "n_clusters", "prevalence"), Value)
        | dict.fromkeys(("relation", "empty", "warning"), Text)
        | dict.fromkeys(("scenario", "variant", "cluster"), str)
        | {
            "oracle": bool,
            "metrics": {str: _MEAN | {"by_seed": [Value]}},  # none where it is empty
            "majority": _MAJORITY,
            "pixel_free": Maybe(_MAJORITY),
        }
    ],
    "differences": [_DIFFERENCE | _TABLE | {"metric": str}],
    "n_compared": Value,
    "over_sets": [_DIFFERENCE | {"n_sets": Number, "without": [str]}],
    "distances": [
        {
            "scenario": str,
            **dict.fromkeys(
                ("within_domain", "cross_domain", "cross_content", "new_people", "new_content"),
                _DISTANCE,
            ),
        }
    ],
    "audit": {
        "leaks": {str: Number},
        "warnings": [str],
        "allowed": bool,
        "looked_for": str,
        "near_duplicates": NEAR_DUPLICATES,
        "unknown_people": [str],
        "left_out": {str: Value},
    },
    "test_access": [_ACCESS | {"run": str}],
    "published": Maybe(
        {"accuracy": Value, "pr_auc": Value, "roc_auc?": Value, "source": str},
    ),
    "reproduce": {
        "command": Text,
        "config": {},
        "seeds": [Value],
        "commit": Text,
        "hardware": Text,
        "datasets": {str: Text},
        "versions": {str: Text},
    },
}
