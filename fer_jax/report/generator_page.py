"""The page and the figures of a generator's training, from its metrics.jsonl and samples."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_jax import figures, schema, storage
from fer_jax.report.layout import count, data_uri, number, render
from fer_jax.report.run_page import logged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("kid", "frechet", "precision", "recall", "near_duplicates")
FIGURES = (
    ("loss", ("discriminator_loss", "generator_loss"), None),
    ("share", ("precision", "recall", "augment_p"), 1),
    ("class accuracy", ("real_class_accuracy", "made_class_accuracy"), 1),
    ("kernel distance", ("kid",), None),
)


def generator_page(workdir: Path) -> str:
    """Returns the HTML of a generator's page."""
    config = storage.read_json(workdir / "config.json")
    environment = storage.read_json(workdir / "environment.json")
    rows = storage.read_json_lines(workdir / "metrics.jsonl")
    measured = [row for row in rows if row.get("kid") is not None]
    best = _best(rows)
    answer = "No step was measured yet."
    if best is not None:
        chosen = next(row for row in measured if row["step"] == best)
        answer = (
            f"The best network, at step {best} ({count(chosen['images'])} images), has a kernel "
            f"distance of {number(chosen['kid'])} to the real faces. {chosen['precision']:.0%} of "
            f"the synthetic faces lie within the real ones (precision) and {chosen['recall']:.0%} "
            "of the real faces within the synthetic ones (recall)."
        )
    images = {row["step"]: row["images"] for row in measured}
    grids = [
        (step, images[step], data_uri(file))
        for file in sorted((workdir / "samples").glob("*.png"), reverse=True)
        if (step := int(file.stem)) in images
    ]
    features = config["measure"]["features"]
    classes = schema.TASKS[config["task"]] if config["model"]["conditional"] else ()
    return render(
        "generator.html",
        config=config,
        config_text=json.dumps(config, indent=2),
        environment=environment,
        answer=answer,
        trained_on=list(environment["datasets"]),
        unknown_people=storage.read_json(workdir / "generator" / "config.json").get("unknown", []),
        features="pixels" if features == "pixels" else f"features of the run {features}",
        classes=classes,
        names=MEASURES,
        measured=measured,
        best=best,
        # The last step, then 1, 3, 7, 15 and 31 steps before it, to keep the page small.
        grids=[grids[i] for i in sorted({0, *(2**n - 1 for n in range(6))}) if i < len(grids)],
        figures=list(generator_figures(workdir).values()),
    )


def generator_figures(workdir: Path) -> dict[str, "Figure"]:
    """Returns {name: figure} of what the training logged, by step."""
    rows = storage.read_json_lines(workdir / "metrics.jsonl")
    best = _best(rows)
    found = {}
    for title, keys, y_end in FIGURES:
        lines = [
            line
            for index, key in enumerate(keys)
            if (line := logged(rows, key, key.replace("_", " "), f"c{index}"))
        ]
        if lines:
            found[f"training.{title.replace(' ', '_')}"] = figures.chart(
                lines,
                f"{title.capitalize()} during training",
                "step",
                title,
                x_end=rows[-1]["step"],
                y_end=y_end,
                vertical=None if best is None else ("lowest kernel distance", best),
            )
    return found


def _best(rows: list[dict[str, Any]]) -> int | None:
    """Returns the step with the lowest kernel distance, the latest of equals."""
    measured = [(row["kid"], -row["step"]) for row in rows if row.get("kid") is not None]
    return -min(measured)[1] if measured else None
