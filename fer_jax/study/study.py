"""Train every scenario, evaluate each on the same test sets, and compare them.

A scenario is a mixture of datasets; a run is a scenario with a seed, in an ordinary workdir of
`train` and `evaluate`. Finished runs are kept: rerun the same command to resume a study, which
also retrains the runs whose folders were deleted.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fer_jax import checkpoints, compilations, distributed, results, storage
from fer_jax.config import (
    Config,
    OneLineParser,
    default_data_dir,
    default_study,
    output_path,
    parse_with_config,
    to_json,
)
from fer_jax.data.audit.exclusions import exclusions_to_fixed_point, write_exclusions
from fer_jax.data.audit.findings import AUDIT_FILE, LOOKED_FOR
from fer_jax.data.audit.leakage import audit
from fer_jax.data.records import Records, build_summary, read_exclusions
from fer_jax.errors import InputError, did_you_mean
from fer_jax.evaluation import predictions, run_scores
from fer_jax.evaluation.evaluate import evaluate
from fer_jax.media.images import encode_jpeg, resized
from fer_jax.report.report import report
from fer_jax.study import matrix
from fer_jax.study.scenarios import (
    VARIANTS,
    Scenario,
    ScenarioRun,
    check_leaks,
    check_study,
    history_of,
    is_finished,
    open_scenarios,
    runs_of,
    steps_done,
    tested_on,
)
from fer_jax.training.classifier import train
from fer_jax.training.log import duration
from fer_jax.training.start import check_continues

FACES, FACE_SIZE = 6, 96  # on the page, of each test set; pixels a side


def sets_to_predict(run: ScenarioRun, config: Config, data_dir: Path) -> list[tuple[str, str]]:
    """Returns the test sets without predictions by the best checkpoint of the current data."""
    metric = run.config.selection_metric
    best = checkpoints.chosen_step(
        history_of(run.workdir, metric),
        metric,
        averaged=run.config.weight_average == "swad",
        last=steps_done(run.workdir),
    )
    made_by = {"step": best, "checksum": checkpoints.checksum(run.workdir, best)}
    missing: list[tuple[str, str]] = []
    for source in tested_on(config):
        pair = (source.name, source.test)
        now = made_by | {"fingerprint": build_summary(source.name, data_dir).get("fingerprint")}
        names = [predictions.file_name(*pair, variant) for variant in ("", *config.variants)]
        for file in (run.workdir / "predictions" / name for name in names):
            if not file.is_file() or not now.items() <= predictions.read_origin(file).items():
                missing.append(pair)
                break
    return missing


def train_missing(runs: Sequence[ScenarioRun], data_dir: Path) -> None:
    """Trains the runs that are not finished, one after the other."""
    todo = [run for run in runs if not is_finished(run)]
    left = sum(run.scenario.num_steps - steps_done(run.workdir) for run in todo)
    done, started = 0, time.monotonic()
    for number, run in enumerate(todo, 1):
        eta = duration((time.monotonic() - started) / done * (left - done)) if done else "--:--"
        print(f"\nrun {number} of {len(todo)}: {run.name} (study ETA {eta})", flush=True)
        before = steps_done(run.workdir)
        train(run.config, run.workdir, data_dir)
        done += run.scenario.num_steps - before


def predict_missing(config: Config, runs: Sequence[ScenarioRun], data_dir: Path) -> None:
    """Evaluates every run on the test sets that it lacks predictions of."""
    todo = [(run, sets) for run in runs if (sets := sets_to_predict(run, config, data_dir))]
    options = {
        name: value for variant in config.variants for name, value in VARIANTS[variant].items()
    }
    for number, (run, sets) in enumerate(todo, 1):
        print(f"predicting {number} of {len(todo)}: {run.name}", flush=True)
        evaluate(run.workdir, data_dir, sets, **options)
    for run in runs:
        # An evaluation that was stopped after its predictions has no results.
        if not (run.workdir / results.FILE).is_file():
            results.write(run.workdir, run_scores.score_run(run.workdir))


def open_study(
    config: Config, workdir: Path, data_dir: Path
) -> tuple[list[Scenario], list[ScenarioRun]]:
    """Opens and checks a study's scenarios and runs; writes nothing."""
    kept = storage.read_json(workdir / "config.json")
    if kept and "scenarios" not in kept:
        raise InputError(f"'{workdir}' holds a run, not a study; choose another workdir")
    scenarios = open_scenarios(config, data_dir)
    runs = runs_of(config, scenarios, workdir)
    for run in runs:
        check_continues(run.config, run.workdir, data_dir)
    return scenarios, runs


def write_config(config: Config, workdir: Path) -> None:
    """Writes the study's config.json, which concurrent jobs read when they start."""
    storage.write_atomically(workdir / "config.json", to_json(config))


def overview(config: Config, scenarios: Sequence[Scenario], runs: Sequence[ScenarioRun]) -> str:
    """Lists a study's runs, test sets and leaks as text."""
    rows = [["", "run", "images", "subjects", "steps", "state"]]
    for number, run in enumerate(runs, 1):
        done = steps_done(run.workdir)
        state = "finished" if is_finished(run) else f"at step {done}" if done else "to train"
        sizes = (run.scenario.num_images, len(run.scenario.learned.subjects) or "n/a")
        rows.append([str(number), run.name, *map(str, sizes), str(run.scenario.num_steps), state])
    lines = [results.align(rows, left=(0, 1))]
    for part in scenarios[0].experiment.test:
        labels = part.labels(config.run.task)
        people = predictions.count_named(part.columns, "subject_id")
        classes = len(set(labels.tolist()) - {-1})
        lines.append(
            f"tested on {part.name} {part.split}: {int((labels >= 0).sum())} images, "
            f"{people or 'no named'} subjects, {classes} classes"
        )
    for scenario in scenarios:
        for where, count in scenario.experiment.left_out.items():
            lines.append(f"{scenario.name}: {count} records of {where} excluded")
        if scenario.leaks.counts:
            allowed = " (allowed)" if scenario.config.allow_leaks else ""
            lines.append(f"{scenario.name} LEAKS: {scenario.leaks.in_words()}{allowed}")
        for what in scenario.leaks.unknown:
            lines.append(f"{scenario.name}: unknown whose faces are behind: {what}")
    if not any(scenario.leaks.counts for scenario in scenarios):
        lines.append(f"no leaks found among {LOOKED_FOR}")
    return "\n".join(lines)


def exclusions(scenarios: Sequence[Scenario], workdir: Path) -> list[tuple[str, str, str]]:
    """Returns the records to exclude so that no scenario leaks, near-duplicate images included.

    Writes audit.json, from which the page knows which images were compared.
    """
    parts: dict[tuple[str, str, str], Records] = {}
    for scenario in scenarios:
        for part, records in scenario.experiment.parts:
            parts.setdefault((part, records.name, records.split), records)
    pool, findings, found = audit([(part, records) for (part, _, _), records in parts.items()])
    storage.write_atomically(workdir / AUDIT_FILE, json.dumps(found, indent=1) + "\n")
    return exclusions_to_fixed_point(pool, findings)


def sample_faces(records: Records) -> list[np.ndarray]:
    """Returns six faces of a test set, evenly chosen: uint8 RGB [96, 96, 3] each."""
    rows = np.linspace(0, len(records) - 1, FACES).astype(int)
    return [resized(records.image(int(row)), FACE_SIZE) for row in rows]


def write_faces(workdir: Path, tests: Sequence[Records]) -> None:
    """Writes a strip of faces of each test set, for the study's page."""
    for records in tests:
        strip = encode_jpeg(np.hstack(sample_faces(records)))
        file = workdir / matrix.faces_file(records)
        storage.write_atomically(file, strip, durable=False)


def write_report(workdir: Path, runs: Sequence[ScenarioRun]) -> Path:
    """Writes the study's page, which it returns, and one without faces for each run."""
    for run in runs:
        report(run.workdir, faces=False)
    return report(workdir)


def _chosen_runs(
    arguments: argparse.Namespace, scenarios: Sequence[Scenario], runs: Sequence[ScenarioRun]
) -> Sequence[ScenarioRun]:
    if arguments.only is not None:
        chosen = [run for run in runs if run.scenario.name == arguments.only]
        if not chosen:
            hint = did_you_mean(arguments.only, [scenario.name for scenario in scenarios])
            raise InputError(f"--only: unknown scenario '{arguments.only}'{hint}")
        return chosen
    if arguments.run is not None:
        if not 1 <= arguments.run <= len(runs):
            raise InputError(f"--run must be 1 to {len(runs)}, got {arguments.run}")
        return [runs[arguments.run - 1]]
    return runs


def main(argv: list[str]) -> None:
    """Runs the verb `study`."""
    parser = OneLineParser("fer-jax study", __doc__)
    parser.add_argument("--workdir", type=output_path, required=True, help="of the study")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    parser.add_argument("--dry_run", action="store_true", help="only print what would be done")
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--only", metavar="SCENARIO", help="train and evaluate the runs of this scenario"
    )
    part.add_argument(
        "--run",
        type=int,
        metavar="N",
        help="train and evaluate the N-th run of the list that --dry_run prints: one per job",
    )
    parser.add_argument(
        "--write_exclusions",
        type=output_path,
        metavar="FILE",
        help="compare all images, write the records to exclude to FILE, and stop",
    )
    arguments, config = parse_with_config(parser, argv, defaults=default_study, check=check_study)
    distributed.check_alone("study")
    workdir, data_dir = arguments.workdir, arguments.data_dir
    scenarios, runs = open_study(config, workdir, data_dir)
    chosen = _chosen_runs(arguments, scenarios, runs)
    print(overview(config, scenarios, runs))
    if arguments.write_exclusions is not None:
        file = arguments.write_exclusions
        file.parent.mkdir(parents=True, exist_ok=True)
        before = read_exclusions(config.run.exclusions)
        count = write_exclusions(file, exclusions(scenarios, workdir), before)
        print(f"{count} records to exclude -> {file}")
        return
    if arguments.dry_run:
        return
    check_leaks(scenarios)
    compilations.enable_compilation_cache()
    write_config(config, workdir)
    train_missing(chosen, data_dir)
    predict_missing(config, chosen, data_dir)
    if chosen is not runs:
        # Concurrent jobs would write the same files, so that the whole study writes them once.
        finished = sum(map(is_finished, runs))
        print(
            f"{finished} of {len(runs)} runs are finished; rerun the command without --only and "
            "--run to write the matrix"
        )
        return
    found = matrix.write(config, scenarios, runs, workdir, data_dir)
    write_faces(workdir, scenarios[0].experiment.test)
    print(f"\n{matrix.summary(found)}\n{found['answer']}")
    print(f"{workdir / results.FILE}, {write_report(workdir, runs)}")
