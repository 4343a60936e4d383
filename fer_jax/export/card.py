"""The model card of an export (Mitchell et al. 2019), from the files of the run."""

import json
from typing import Any

from fer_jax import results
from fer_jax.config import read_environment
from fer_jax.data.experiment import Experiment, as_source
from fer_jax.evaluation import compare
from fer_jax.inference.network import Network

SCORES = "results.json"
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "ece")


def card(
    model: Network, about: dict[str, Any], trained: Experiment | None, report: dict[str, Any]
) -> str:
    """Returns the card in Markdown, with the int8 results of `export` if `trained` is given."""
    lines = [
        f"# Xception, {about['task']}",
        "",
        f"Classes, in the order of the outputs: {', '.join(about['classes'])}. Input: aligned "
        f"faces, uint8 RGB, {about['image_size']} x {about['image_size']} pixels, any number; the "
        "network scales the pixel values itself.",
        "",
        "## Data",
        "",
        f"Trained with fer_jax (checkpoint of step {about['step']}, seed {model.config.seed}) on "
        "the training parts below; the validation parts are for choosing a checkpoint.",
        "",
        *_dataset_lines(model),
        "",
        "## Scores",
        "",
        *_score_lines(model),
    ]
    if trained is not None:
        lines += ["", "## Int8", "", *_int8_lines(trained, report)]
    lines += [
        "",
        "## Intended use and limits",
        "",
        "For research on how recognition generalizes. An output estimates an expression, not what "
        "a person feels; it must not be used for decisions about people. The network inherits the "
        "gaps of its training data: read the scores by set before relying on it elsewhere. "
        "Accuracy is lower on faces that are framed differently from the records (tight crops, "
        "eyes level), and a picture without a face gets a prediction, too.",
        "",
    ]
    return "\n".join(lines)


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    rule = f"|{' --- |' * len(columns)}"
    return [f"| {' | '.join(columns)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _dataset_lines(model: Network) -> list[str]:
    known = read_environment(model.folder).get("datasets", {})
    rows = []
    for source in map(as_source, model.config.sources):
        dataset = known.get(source.name, {})
        fingerprint = str(dataset.get("fingerprint") or "n/a")[:12]
        records = str(dataset.get("records", "n/a"))
        rows.append([source.name, str(source.train), str(source.validation), records, fingerprint])
    return _table(["dataset", "training", "validation", "records in all", "fingerprint"], rows)


def _score_lines(model: Network) -> list[str]:
    scored = results.read(model.folder)
    if scored is None:
        return ["Not scored on any test set."]
    if (step := scored["checkpoint"]["step"]) != model.step:
        found = "a checkpoint that the predictions do not name" if step is None else f"step {step}"
        return [f"Not scored at step {model.step}; the scores of the run are of {found}."]
    rows, caveats = [], []
    for one in scored["sets"]:
        name = results.set_name(one)
        scores = [
            f"{results.number(one[metric])} {results.interval(one['intervals'][metric])}"
            for metric in METRICS
        ]
        about = [f"{one['n']:.0f}", str(one["n_subjects"] or "n/a")]
        rows.append([name, *about, *scores, results.number(one["chance"])])
        caveats += [f"- {name}: {caveat}" for caveat in one["caveats"]]
    names = [results.METRIC_NAMES[metric] for metric in METRICS]
    lines = [
        "Of the network in float32 on test sets, with 95 % intervals from resampling whole people "
        "(else clips). The chance level is that of the balanced accuracy.",
        "",
        *_table(["test set", "images", "subjects", *names, "chance level"], rows),
    ]
    lines += ["", *caveats] if caveats else []
    if model.config.test_time_flip:
        lines += ["", "Each score is of the mean over a face and its mirror image."]
    return lines


def _int8_lines(trained: Experiment, report: dict[str, Any]) -> list[str]:
    parts = ", ".join(f"{part.name} {part.split}" for part in trained.train)
    of_validation = ", ".join(f"{part.name} {part.split}" for part in trained.validation)
    one = next(iter(report.values()))["compared"]
    rows = [
        [form, *cells]
        for form, result in report.items()
        for cells in compare.rounding_rows(result["compared"])
    ]
    return [
        f"Calibrated on faces of {parts}. Compared with float32 on {one['n']} validation images "
        f"({of_validation}; {one['n_clusters']} clusters by {one['cluster']}):",
        "",
        *_table(["form", "metric", *compare.ROUNDING_COLUMNS[1:]], rows),
        "",
        *(f"- {form}: {cost(result)}" for form, result in report.items()),
    ]


def cost(result: dict[str, Any]) -> str:
    """Returns size, difference from float32 and speed of an int8 form, in words."""
    text = (
        f"{result['bytes'] / 1e6:.1f} MB (float32 {result['float_bytes'] / 1e6:.1f}), largest "
        f"difference of a face's probabilities {result['mean_difference']:.2g} on average, "
        f"{result['difference']:.2g} at most"
    )
    if "images_per_second" in result:
        text += (
            f"; {result['images_per_second']:.0f} images per second in ONNX Runtime "
            f"(float32 {result['float_images_per_second']:.0f})"
        )
    return text


def public_scores(model: Network) -> str | None:
    """Returns results.json without the records that it names; None if none is of this step."""
    scored = results.read(model.folder)
    if scored is None or scored["checkpoint"]["step"] != model.step:
        return None
    left_out = ("errors", "curves", "seen")
    sets = [{k: v for k, v in one.items() if k not in left_out} for one in scored["sets"]]
    kept = ("task", "classes", "checkpoint", "test_access")
    scores = {name: scored[name] for name in kept} | {"sets": sets}
    return json.dumps(scores, indent=2) + "\n"
