"""Train a run again, into a new folder, and say whether the same numbers come out.

Versions, commit, machine and datasets are compared first; no dataset is built again. The exit code
is 1 if a number differs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from fer_jax import checkpoints, compilations, distributed, forms, results, storage
from fer_jax.config import (
    Config,
    OneLineParser,
    from_dict,
    is_generator,
    output_path,
    read_config,
    read_environment,
)
from fer_jax.data.experiment import EXCLUSIONS_FILE, training_data_dir
from fer_jax.data.records import build_summary
from fer_jax.errors import InputError
from fer_jax.evaluation import metrics, predictions, run_scores
from fer_jax.evaluation.compare import same_images
from fer_jax.evaluation.evaluate import evaluate
from fer_jax.inference.features import HEAD, open_head
from fer_jax.inference.network import network_shapes
from fer_jax.results import number
from fer_jax.sharding import make_mesh
from fer_jax.training import classifier, gan, start

# Logged figures that are about time.
SPEED = ("images_per_second", "data_wait_share", "model_flop_per_second", "model_flop_utilisation")
# Of a new run that this verb started: a copy of the run itself would prove nothing.
MARK = "reproduces.json"


def reproduce(run: Path, workdir: Path, data_dir: Path) -> bool:
    """Trains and evaluates a run again and prints what differs; returns whether nothing does."""
    of_generator = is_generator(from_dict(storage.read_json(run / "config.json")))
    config = read_config(run, of_generator=of_generator)
    if "scenarios" in config:
        raise InputError(f"'{run}' holds a study; reproduce one of its runs, in {run / 'runs'}")
    environment = read_environment(run)
    if "versions" not in environment:
        raise InputError(f"'{run}' has no environment.json that says what it was trained with")
    accessed = run_scores.read_test_access(run)
    check_datasets(environment, accessed, data_dir)
    print("the datasets are the same, by their fingerprints")
    for difference in machine_differences(environment) or ["versions, commit, machine: the same"]:
        print(difference)
    if (run / EXCLUSIONS_FILE).is_file():
        config.exclusions = str(run / EXCLUSIONS_FILE)
    _mark(workdir, run)
    (gan if of_generator else classifier).train(config, workdir, data_dir)
    largest, first = compare_logs(run, workdir)
    print(f"logged figures: {_apart(largest)}" + (f", first at step {first}" if first else ""))
    found = [largest]
    if not of_generator:
        step, largest = compare_networks(run, workdir, config)
        print(f"parameters of the best network: {_apart(largest)}")
        found.append(largest)
        sets = [(row["dataset"], row["split"]) for row in accessed if row["checkpoint"] == step]
        if sets:
            evaluate(workdir, data_dir, sets)
            compared = compare_predictions(run, workdir)
            rows = [["", "balanced accuracy", "now", "largest difference of a probability"]]
            rows += [[name, *map(number, both), _apart(apart)] for name, both, apart in compared]
            print(results.align(rows))
            found += [apart for *_, apart in compared]
    equal = not any(found)
    print(
        f"'{workdir}' reproduces '{run}' bit for bit"
        if equal
        else f"'{workdir}' does not have the same numbers as '{run}'"
    )
    return equal


def _apart(largest: float) -> str:
    return f"up to {largest:.2g} apart" if largest else "equal bit for bit"


def _mark(workdir: Path, run: Path) -> None:
    """Marks a new folder, so that an interrupted reproduction resumes in it."""
    if storage.read_json(workdir / MARK).get("run") == str(run.resolve()):
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise InputError(f"'{workdir}' is not empty; choose a new folder with --workdir")
    storage.write_atomically(workdir / MARK, json.dumps({"run": str(run.resolve())}) + "\n")


def check_datasets(
    environment: Mapping[str, Any], accessed: list[dict[str, Any]], data_dir: Path
) -> None:
    """Refuses other builds of a run's training, validation and test data, by fingerprint."""
    were = {name: one.get("fingerprint") for name, one in environment["datasets"].items()}
    were |= environment.get("test_datasets", {})
    were |= {row["dataset"]: row.get("fingerprint") for row in accessed}
    for name, was in were.items():
        now = build_summary(name, data_dir).get("fingerprint")
        if was != now:
            raise InputError(
                f"'{name}' in {data_dir} is another build than the run's (fingerprint was {was}, "
                f"now {now}); name the folder of the run's with --data_dir"
            )


def machine_differences(environment: Mapping[str, Any]) -> list[str]:
    """Returns "NAME (was X, now Y)" for all that may change a number beside config and data."""
    now = start.describe_machine()

    def flat(values: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: values.get(name) for name in now.keys() - {"versions", "settings"}}
        return own | values["versions"] | values.get("settings", {})

    return storage.differences(flat(environment), flat(now))


def compare_logs(run: Path, again: Path) -> tuple[float, int | None]:
    """Returns the largest difference of a figure that `run` logged, and the first step of one."""
    one, other = (
        {
            (row["step"], name): float("nan") if value is None else value
            for row in storage.read_json_lines(workdir / "metrics.jsonl", forms.METRICS_ROW)
            for name, value in row.items()
            if name not in SPEED
        }
        for workdir in (run, again)
    )
    apart = {
        key: float(np.nan_to_num(abs(value - other.get(key, np.inf)), nan=np.inf))
        for key, value in one.items()
        if str(value) != str(other.get(key))  # NaN is equal to NaN
    }
    first = min((step for step, _ in apart), default=None)
    return max(apart.values(), default=0.0), first


def compare_networks(run: Path, again: Path, config: Config) -> tuple[int, float]:
    """Returns the step of the run's best network, and how far a number of the new one's is off."""
    if config.features:
        step = open_head(run, config.features)[1]["step"]
        one, other = (load_file(workdir / HEAD) for workdir in (run, again))
        if any(one[name].shape != array.shape for name, array in other.items()):
            return step, float("inf")
        return step, max(float(np.abs(one[name] - other[name]).max()) for name in one)
    shapes = network_shapes(config, make_mesh())
    (step, one), (_, other) = (
        checkpoints.restore_network(workdir, "best", shapes, config.selection_metric)
        for workdir in (run, again)
    )
    apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max(initial=0)), one, other)
    return step, max(jax.tree.leaves(apart))


def compare_predictions(run: Path, again: Path) -> list[tuple[str, tuple[float, float], float]]:
    """Returns (file, balanced accuracies, largest difference of a probability) of each table."""
    found = []
    for file in sorted((again / "predictions").glob("*.csv")):
        before = run / "predictions" / file.name
        if before.is_file():
            one, classes = predictions.read(before)
            other, _ = predictions.read(file, classes)
            both = (
                one["probabilities"],
                other["probabilities"][same_images(one, other, before, file)],
            )
            known = one["label"] >= 0
            scores = [metrics.score(one["label"][known], p[known]) for p in both]
            balanced = (scores[0]["balanced_accuracy"], scores[1]["balanced_accuracy"])
            found.append((file.name, balanced, float(np.abs(both[0] - both[1]).max())))
    return found


def main(argv: list[str]) -> int:
    """Runs the verb `reproduce`; exit code 1 if a number differs."""
    parser = OneLineParser("fer-jax reproduce", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="workdir of a trained run")
    parser.add_argument(
        "--workdir", type=output_path, help="of the new run; default: RUN.reproduced"
    )
    parser.add_argument("--data_dir", type=Path, help="default: where the run trained from")
    arguments = parser.parse_args(argv)
    distributed.check_alone("reproduce")
    run = arguments.run
    workdir = arguments.workdir or run.with_name(f"{run.name}.reproduced")
    compilations.enable_compilation_cache()
    return int(not reproduce(run, workdir, arguments.data_dir or training_data_dir(run)))
