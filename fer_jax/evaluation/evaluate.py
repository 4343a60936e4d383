"""A trained run to scores: predictions once per split, then results.json from the tables."""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax import checkpoints, compilations, distributed
from fer_jax.config import OneLineParser, read_config
from fer_jax.data.experiment import (
    Experiment,
    as_source,
    leaks_into,
    open_trained,
    training_data_dir,
)
from fer_jax.data.records import Records, build_summary, labelled_rows, open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import calibration, compare, predictions, results
from fer_jax.evaluation.predict import predict, predictions_table
from fer_jax.inference import runtime
from fer_jax.inference.load import load
from fer_jax.inference.network import (
    PredictStep,
    compile_predict_step,
    model_arguments,
    network_shapes,
)
from fer_jax.methods import adaptation
from fer_jax.models import xception
from fer_jax.schema import TASKS
from fer_jax.sharding import make_mesh

INT8 = "int8"


def evaluate(
    workdir: Path,
    data_dir: Path,
    test_sets: list[tuple[str, str]],
    *,
    checkpoint: str = "best",
    label_shift: bool = False,
    adapt: bool = False,
    int8: bool = False,
) -> Path:
    """Scores a run on test sets, and on its validation parts, which calibrate it.

    Args:
      workdir: of the run.
      data_dir: where the datasets were built.
      test_sets: (dataset, split expression) pairs.
      checkpoint: "best" by the run's selection metric, "last", or a step.
      label_shift: also writes each test set's variant that is corrected for the shares of its
        classes, as `calibration.write_label_shift` says.
      adapt: also writes each test set's variant of a network with BatchNorm's statistics of that
        set, as `adaptation.adapted` says.
      int8: also writes each test set's variant of what `export --quantize=int8` made of this
        checkpoint in the workdir, and prints what the rounding changed.

    Returns:
      The path of results.json, which covers every table in workdir/predictions.

    Raises:
      InputError: no run, no checkpoint, a test set that is not built, has no labels, or is too
        small to be adapted to, or no int8 export of this checkpoint.
    """
    if int8 and jax.process_count() > 1:
        raise InputError("--int8 runs in one process; evaluate it without a launcher")
    config = read_config(workdir)
    # Everything is opened before anything is computed: a misspelled set costs no time.
    opened = [open_records(name, split, data_dir) for name, split in test_sets]
    for records in opened if adapt else []:
        adaptation.check_size(records)
    trained = open_trained(config, data_dir, workdir)
    opened += _validation_records(trained, besides=test_sets, needed=label_shift)
    num_labelled = [len(labelled_rows(records, config.task)) for records in opened]
    mesh = make_mesh()
    shapes = network_shapes(config, mesh)
    step, network = checkpoints.restore_network(
        workdir, checkpoint, shapes, config.selection_metric
    )
    print(f"checkpoint of step {step}")
    rounded = _open_int8(workdir, network) if int8 else None
    sharding = jax.tree.map(lambda shape: shape.sharding, shapes)
    model = model_arguments(config)
    graphdef = xception.graphdef(**model)
    score = compile_predict_step(graphdef, sharding, mesh, flip=config.test_time_flip)
    moments = adaptation.compile_moments_step(model, sharding, mesh) if adapt else None
    reading: dict[str, Any] = {
        "batch_size": -(-config.batch_size // mesh.size) * mesh.size,
        "image_size": config.model.image_size,
        "mesh": mesh,
    }
    # Every process answers for its part of each batch and has all answers; one writes them.
    writes = distributed.is_first()
    if writes:
        (workdir / "predictions").mkdir(exist_ok=True)
    leaks = results.read_leaks(workdir)
    for records, labelled in zip(opened, num_labelled, strict=True):
        # Every image is in the table; those without a label are in no score.
        rows = np.arange(len(records))
        probabilities = predict(score, network, records, rows, **reading)
        table = predictions_table(records, rows, config.task, probabilities)
        file = workdir / "predictions" / predictions.file_name(records.name, records.split)
        tested = (records.name, records.split) in test_sets
        if writes:
            predictions.write(file, table, TASKS[config.task])
        # What the checkpoint was selected on is no test set, that anything could leak into.
        if writes and tested:
            leaks[file.name] = leaks_into(trained, records) if trained else None
            _log_opening(workdir, records, step, data_dir)
        unlabelled = len(records) - labelled
        unscored = f" ({unlabelled} without a label: not scored)" if unlabelled else ""
        print(f"  {records.name} {records.split}: {len(records)} images{unscored} -> {file}")
        if moments and tested:
            here = adaptation.adapted(moments, network, records, **reading)
            table["probabilities"] = predict(score, here, records, rows, **reading)
            name = predictions.file_name(records.name, records.split, adaptation.ADAPTED)
            print(f"  {records.name} {records.split}, adapted -> {file.with_name(name)}")
            if writes:
                predictions.write(file.with_name(name), table, TASKS[config.task])
                leaks[name] = leaks[file.name]
        if rounded and tested:
            table["probabilities"] = predict(rounded, {}, records, rows, **reading)
            name = predictions.file_name(records.name, records.split, INT8)
            predictions.write(file.with_name(name), table, TASKS[config.task])
            leaks[name] = leaks[file.name]
            print(f"  {records.name} {records.split}, int8 -> {file.with_name(name)}")
            compared = compare.compare_on(table, [table["probabilities"]], [probabilities])
            lines = [compare.ROUNDING_COLUMNS, *compare.rounding_rows(compared)]
            print("\n".join(f"    {line}" for line in results.aligned(lines, num_left=1)))
    if writes:
        (workdir / results.LEAKS_FILE).write_text(json.dumps(leaks, indent=1) + "\n")
        fitted = results.read_calibration(workdir, config)
        if label_shift and fitted is not None:
            for name, split in test_sets:
                file = workdir / "predictions" / predictions.file_name(name, split)
                shifted = calibration.write_label_shift(file, fitted)
                print(f"  {name} {split}, label shift -> {shifted}")
        results.write(workdir)
    distributed.wait_for_all("evaluated")
    return workdir / "results.json"


def _open_int8(workdir: Path, network: dict[str, Any]) -> PredictStep:
    """The int8 export of a checkpoint, as a step of `predict`.

    Raises:
      InputError: it is not there, or is of another checkpoint.
    """
    file = workdir / runtime.INT8_FOLDER / runtime.ONNX
    again = f"run `fer-jax export --workdir={workdir} --quantize=int8` first"
    if not file.is_file():
        raise InputError(f"there is no {file}; {again}")
    int8 = load(file, engine="onnxruntime")
    arrays = checkpoints.inference_arrays(network)
    if int8.about.get("fingerprint") != checkpoints.fingerprint(arrays):
        raise InputError(f"{file} is of another checkpoint; {again}")
    return lambda _, images: jnp.asarray(int8.probabilities(np.asarray(images)), jnp.float32)


def _log_opening(workdir: Path, records: Records, step: int, data_dir: Path) -> None:
    """Whoever looks at a test set again and again chooses by it: each time is written down."""
    opening = {
        "dataset": records.name,
        "split": records.split,
        "checkpoint": step,
        "fingerprint": build_summary(records.name, data_dir).get("fingerprint"),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with (workdir / results.OPENINGS_FILE).open("a") as file:
        file.write(json.dumps(opening) + "\n")


def _validation_records(
    trained: Experiment | None, *, besides: list[tuple[str, str]], needed: bool
) -> list[Records]:
    """The parts that the checkpoint was selected on; none where the data are elsewhere.

    Raises:
      InputError: they are elsewhere and needed.
    """
    if trained is None:
        if needed:
            raise InputError(
                "--label_shift calibrates on the validation parts, which are not here; "
                "point --data_dir at them"
            )
        print("not calibrated, for the same reason")
        return []
    parts = {(records.name, records.split): records for records in trained.validation}
    return [records for part, records in parts.items() if part not in besides]


def main(argv: list[str]) -> None:
    """The verb `evaluate`."""
    parser = OneLineParser(
        prog="fer-jax evaluate",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--data", help="one built dataset instead of the config's test_sets")
    parser.add_argument("--split", help="of --data; 'all' is every split it has")
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step")
    parser.add_argument(
        "--label_shift",
        action="store_true",
        help="also correct for the shares of the classes, as a variant of each table",
    )
    parser.add_argument(
        "--adapt",
        action="store_true",
        help="also with BatchNorm's statistics of each test set, as a variant of its table",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also with what export --quantize=int8 wrote, as a variant of each table",
    )
    parser.add_argument("--data_dir", type=Path, help="default: where the run trained from")
    arguments = parser.parse_args(argv)
    if arguments.split and not arguments.data:
        raise InputError("--split belongs to --data; name the dataset too")
    if arguments.data:
        test_sets = [(arguments.data, arguments.split or "test")]
    else:
        entries = [as_source(entry) for entry in read_config(arguments.workdir).test_sets]
        test_sets = [(source.name, source.test) for source in entries]
    if not test_sets:
        raise InputError("the run's config has no test_sets; name one with --data=NAME")
    compilations.enable_compilation_cache()
    data_dir = arguments.data_dir or training_data_dir(arguments.workdir)
    file = evaluate(
        arguments.workdir,
        data_dir,
        test_sets,
        checkpoint=arguments.checkpoint,
        label_shift=arguments.label_shift,
        adapt=arguments.adapt,
        int8=arguments.int8,
    )
    print(results.summary(json.loads(file.read_text())))
    print(f"{file}; write the report with:\n  fer-jax report --workdir={arguments.workdir}")
