"""The verb `study`: train every scenario, test each on the same sets, say which one holds.

A scenario is a mixture of sources; a run is a scenario with a seed, in an ordinary workdir of
`train` and `evaluate`. What is finished is not done again, so the same command continues a study
that was stopped, and retrains exactly the runs whose folders were deleted.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from fer_jax import checkpoints, compilations, distributed
from fer_jax.config import (
    Config,
    OneLineParser,
    default_data_dir,
    default_study,
    parse_with_config,
    to_json,
)
from fer_jax.data.audit.audit import audit
from fer_jax.data.audit.exclusions import exclusions_to_fixed_point, write_exclusions
from fer_jax.data.audit.findings import leaks_in_words
from fer_jax.data.records import Records, build_summary, read_exclusions
from fer_jax.errors import InputError, did_you_mean
from fer_jax.evaluation import predictions, results
from fer_jax.evaluation.evaluate import evaluate
from fer_jax.report.report import report
from fer_jax.study import matrix
from fer_jax.study.scenarios import (
    VARIANTS,
    Run,
    Scenario,
    check_leaks,
    check_runs,
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


def sets_to_predict(run: Run, config: Config, data_dir: Path) -> list[tuple[str, str]]:
    """Test sets without a table that the run's best checkpoint made of the present data."""
    metric = run.config.selection_metric
    best = checkpoints.chosen_step(
        history_of(run.workdir, metric),
        metric,
        averaged=run.config.weight_average == "swad",
        last=steps_done(run.workdir),
    )
    made = {
        (row["dataset"], row["split"]): (row["checkpoint"], row["fingerprint"])
        for row in results.openings(run.workdir)
    }
    missing = []
    for source in tested_on(config):
        pair = (source.name, source.test)
        now = (best, build_summary(source.name, data_dir).get("fingerprint"))
        names = [predictions.file_name(*pair, variant) for variant in ("", *config.variants)]
        there = all((run.workdir / "predictions" / name).is_file() for name in names)
        if not there or made.get(pair) != now:
            missing.append(pair)
    return missing


def train_missing(runs: Sequence[Run], data_dir: Path) -> None:
    """Trains what is not finished, one run after the other."""
    todo = [run for run in runs if not is_finished(run)]
    left = sum(run.scenario.num_steps - steps_done(run.workdir) for run in todo)
    done, started = 0, time.monotonic()
    for number, run in enumerate(todo, 1):
        eta = duration((time.monotonic() - started) / done * (left - done)) if done else "--:--"
        print(f"\nrun {number} of {len(todo)}: {run.name} (of the study: ETA {eta})", flush=True)
        before = steps_done(run.workdir)
        train(run.config, run.workdir, data_dir)
        done += run.scenario.num_steps - before


def predict_missing(config: Config, runs: Sequence[Run], data_dir: Path) -> None:
    """Opens every test set once for every run whose table of it is not there."""
    todo = [(run, sets) for run in runs if (sets := sets_to_predict(run, config, data_dir))]
    options = {
        name: value for variant in config.variants for name, value in VARIANTS[variant].items()
    }
    for number, (run, sets) in enumerate(todo, 1):
        print(f"predicting {number} of {len(todo)}: {run.name}", flush=True)
        evaluate(run.workdir, data_dir, sets, **options)


def opened_study(config: Config, workdir: Path, data_dir: Path) -> tuple[list[Scenario], list[Run]]:
    """A study's scenarios and runs, looked at and found fit to go on.

    Raises:
      InputError: anything that a person must change first; nothing was written.
    """
    kept = workdir / "config.json"
    if kept.is_file() and "scenarios" not in json.loads(kept.read_text()):
        raise InputError(f"'{workdir}' holds a run, not a study; choose another workdir")
    scenarios = open_scenarios(config, data_dir)
    runs = runs_of(config, scenarios, workdir)
    check_runs(runs, data_dir)
    return scenarios, runs


def keep_config(config: Config, workdir: Path) -> None:
    """Writes config.json whole or not at all: jobs beside each other read it as they start."""
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / f".config.{os.getpid()}.tmp"
    temporary.write_text(to_json(config))
    temporary.replace(workdir / "config.json")


def do_runs(config: Config, runs: Sequence[Run], workdir: Path, data_dir: Path) -> None:
    """Trains and predicts some of a study's runs."""
    keep_config(config, workdir)
    train_missing(runs, data_dir)
    predict_missing(config, runs, data_dir)


def overview(config: Config, scenarios: Sequence[Scenario], runs: Sequence[Run]) -> str:
    """What a study would do, for a terminal."""
    rows = [["", "run", "images", "subjects", "steps", "state"]]
    for number, run in enumerate(runs, 1):
        done = steps_done(run.workdir)
        state = "finished" if is_finished(run) else f"at step {done}" if done else "to train"
        subjects = len(run.scenario.learned.subjects)
        rows.append(
            [
                str(number),
                run.name,
                str(run.scenario.num_images),
                str(subjects or "n/a"),
                str(run.scenario.num_steps),
                state,
            ]
        )
    lines = results.aligned(rows, num_left=2)
    for part in scenarios[0].experiment.test:
        labels = part.labels(config.run.task)
        people = len(set(part.columns["subject_id"].tolist()) - {""})
        classes = len(set(labels.tolist()) - {-1})
        lines.append(
            f"tested on {part.name} {part.split}: {int((labels >= 0).sum())} images, "
            f"{people or 'no named'} subjects, {classes} classes"
        )
    for scenario in scenarios:
        for where, count in scenario.experiment.left_out.items():
            lines.append(f"{scenario.name}: {count} records of {where} left out")
        if scenario.leaks:
            allowed = ", as is allowed" if scenario.allows_leaks else ""
            lines.append(f"{scenario.name} LEAKS: {leaks_in_words(scenario.leaks)}{allowed}")
    if not any(scenario.leaks for scenario in scenarios):
        lines.append("no leaks by ids, or by pictures that are equal byte for byte")
    return "\n".join(lines)


def exclusions(scenarios: Sequence[Scenario]) -> list[tuple[str, str, str]]:
    """The records to leave out so that no scenario leaks, pictures looked at too."""
    parts: dict[tuple[str, str, str], Records] = {}
    for scenario in scenarios:
        for side, records in scenario.experiment.sides:
            parts.setdefault((side, records.name, records.split), records)
    everything, findings, _ = audit([(side, records) for (side, _, _), records in parts.items()])
    return exclusions_to_fixed_point(everything, findings)


def write_report(workdir: Path, runs: Sequence[Run]) -> Path:
    """Writes the study's page, which it returns, and one without faces for each run."""
    for run in runs:
        report(run.workdir, faces=False)
    return report(workdir)


def main(argv: list[str]) -> None:
    """The verb `study`."""
    parser = OneLineParser(prog="fer-jax study", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of the study")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    parser.add_argument("--dry_run", action="store_true", help="only say what would be done")
    parser.add_argument("--only", metavar="SCENARIO", help="train and predict this one's runs")
    parser.add_argument(
        "--run",
        type=int,
        metavar="N",
        help="train and predict the N-th run of the list that --dry_run prints: one a job",
    )
    parser.add_argument(
        "--write_exclusions",
        type=Path,
        metavar="FILE",
        help="look at all pictures, list the records to leave out, and stop",
    )
    arguments, config = parse_with_config(parser, argv, defaults=default_study, check=check_study)
    distributed.check_alone("study")
    workdir, data_dir = arguments.workdir, arguments.data_dir
    if arguments.only is not None and arguments.run is not None:
        raise InputError("name a scenario with --only or a run with --run, not both")
    scenarios, runs = opened_study(config, workdir, data_dir)
    chosen = runs
    if arguments.only is not None:
        chosen = [run for run in runs if run.scenario.name == arguments.only]
        if not chosen:
            names = [scenario.name for scenario in scenarios]
            hint = did_you_mean(arguments.only, names)
            raise InputError(f"--only: no scenario '{arguments.only}'{hint}")
    if arguments.run is not None:
        if not 1 <= arguments.run <= len(runs):
            raise InputError(f"--run is 1 to {len(runs)}, not {arguments.run}")
        chosen = [runs[arguments.run - 1]]
    print(overview(config, scenarios, runs))
    if arguments.write_exclusions is not None:
        arguments.write_exclusions.parent.mkdir(parents=True, exist_ok=True)
        count = write_exclusions(
            arguments.write_exclusions,
            exclusions(scenarios),
            read_exclusions(config.run.exclusions),
        )
        print(f"{count} records to leave out -> {arguments.write_exclusions}")
        return
    if arguments.dry_run:
        return
    check_leaks(scenarios)
    compilations.enable_compilation_cache()
    do_runs(config, chosen, workdir, data_dir)
    if chosen is not runs:
        # Jobs beside each other would write the same file: the whole study does it, once.
        undone = [run for run in runs if not is_finished(run)]
        print(
            f"{len(runs) - len(undone)} of {len(runs)} runs are finished; the same command without "
            "--only and --run writes the matrix"
        )
        return
    found = matrix.write(config, scenarios, runs, workdir, data_dir)
    print(f"\n{matrix.summary(found)}\n{found['answer']}")
    print(f"{workdir / 'results.json'}, {write_report(workdir, runs)}")
