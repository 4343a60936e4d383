"""Evaluate a trained run: predict each split once, then write results.json from the predictions."""

import argparse
import datetime
import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fer_jax import access_log, checkpoints, compilations, distributed, results, storage
from fer_jax.config import Config, OneLineParser, default_data_dir, read_config
from fer_jax.data.audit.findings import near_duplicate_groups, pool_records
from fer_jax.data.experiment import (
    Experiment,
    as_source,
    leaks_into,
    open_trained,
    training_data_dir,
)
from fer_jax.data.records import Records, build_summary, labelled_rows, open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import baselines, calibration, compare, predictions, relations, run_scores
from fer_jax.inference import features, runtime
from fer_jax.inference.network import (
    PredictStep,
    compile_network,
    compile_predict_step,
    load,
    model_arguments,
    network_shapes,
)
from fer_jax.inference.recognizer import overlay
from fer_jax.media.detector import SAMPLED, framing
from fer_jax.media.images import encode, is_grey, resized
from fer_jax.methods import adaptation
from fer_jax.models import xception
from fer_jax.schema import TASKS
from fer_jax.sharding import make_mesh

INT8 = "int8"
EXPLANATIONS = "explanations"  # in a workdir
JPEG_QUALITY = 80  # of the faces there
# A larger difference means that the table is of another checkpoint, or of another image.
SAME_PROBABILITY = 0.02
# Of the two shares of `_look`, between training and test images.
MAX_DIFFERENCES = (0.5, 0.1)
DIFFERENCES = (
    "{:.0%} of the training images are grey, {:.0%} of this set's",
    "faces take {:.0%} of the side of a training image, {:.0%} of an image of this set",
)

# Records to their probabilities, float64 [n, classes].
Predictor = Callable[[Records], np.ndarray]
Explain = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def evaluate(
    workdir: Path,
    data_dir: Path,
    test_sets: list[tuple[str, str]],
    *,
    checkpoint: str = "best",
    label_shift: bool = False,
    adapt: bool = False,
    int8: bool = False,
    explain: bool = False,
) -> Path:
    """Evaluates a run on test sets, and on its validation parts, which calibrate it.

    `test_sets` are (dataset, split expression) pairs; `checkpoint` is "best" by the run's selection
    metric, "last", or a step. Further variants are those of `calibration.write_label_shift`, of
    `adaptation.adapted`, and of the workdir's `int8` export of this checkpoint. `explain` writes
    the faces of the most confident errors to workdir/explanations. Returns the path of
    results.json, which covers every table in workdir/predictions. Raises InputError without a run,
    a checkpoint or an int8 export of it, and for a test set that is not built or has no labels, or
    if none is large enough to be adapted to.
    """
    if int8 and jax.process_count() > 1:
        raise InputError("--int8 runs in one process; evaluate it without a launcher")
    config = read_config(workdir)
    # All sets are read before anything is computed, so that a misspelled one fails at once.
    tests = [open_records(name, split, data_dir) for name, split in test_sets]
    if adapt:
        adaptation.check_sizes(tests)
    trained = open_trained(config, data_dir, workdir)
    validation = _validation_records(trained, besides=test_sets, needed=label_shift)
    for records in (*tests, *validation):
        labelled_rows(records, config.task)
    mesh = make_mesh()
    if config.features:
        if adapt or int8 or checkpoint != "best":
            raise InputError("a linear head has no --checkpoint, --adapt or --int8; leave them out")
        predictor, origin = features.open_head(workdir, config.features)
        predictors, step, network = {"": predictor}, origin["step"], None
    else:
        step, network = checkpoints.restore_network(
            workdir, checkpoint, network_shapes(config, mesh), config.selection_metric
        )
        print(f"checkpoint of step {step}")
        origin = {"step": step, "checksum": checkpoints.checksum(workdir, step)}
        rounded = _open_int8(workdir, network) if int8 else None
        predictors = _predictors(config, network, mesh, adapt=adapt, int8=rounded)
    origin["chosen"] = "step" if checkpoint.isdecimal() else checkpoint
    # Every process predicts its part of each batch and has all predictions; one writes them.
    writes = distributed.is_first()
    training = _describe_training(trained, config, data_dir) if writes and trained else None
    leaks = run_scores.read_leaks(workdir)
    about_sets = predictions.read_test_sets(workdir)
    for records in tests:
        fitting = {
            variant: predictor
            for variant, predictor in predictors.items()
            if variant != adaptation.ADAPTED or len(records) >= adaptation.MIN_IMAGES
        }
        origin["fingerprint"] = build_summary(records.name, data_dir).get("fingerprint")
        _predict_set(workdir, config, records, fitting, origin if writes else None)
        if writes:
            found = leaks_into(trained, records, data_dir, workdir) if trained else None
            for variant in fitting:
                leaks[predictions.file_name(records.name, records.split, variant)] = found
            about = describe_set(records, config.task, training, data_dir)
            about_sets[predictions.file_name(records.name, records.split)] = about
            log_test_access(workdir, records, origin)
    for records in validation:
        origin["fingerprint"] = build_summary(records.name, data_dir).get("fingerprint")
        own = {"": predictors[""]}
        _predict_set(workdir, config, records, own, origin if writes else None)
    if writes:
        for name, content in (
            (run_scores.LEAKS_FILE, leaks),
            (predictions.TEST_SETS, about_sets),
        ):
            storage.write_atomically(workdir / name, json.dumps(content, indent=1) + "\n")
        fitted = calibration.of_run(workdir, config)
        if label_shift and fitted is not None:
            for name, split in test_sets:
                file = workdir / "predictions" / predictions.file_name(name, split)
                shifted = calibration.write_label_shift(file, fitted)
                print(f"  {name} {split}, label shift -> {shifted}")
        scored = run_scores.score_run(workdir)
        if explain and network:
            # On one device of this process, because the other processes do not take part.
            local = make_mesh(jax.local_devices()[:1])
            arrays = jax.device_get(checkpoints.inference_arrays(network))
            arrays = jax.device_put(arrays, local.devices[0])
            *_, heatmaps = compile_network(config, arrays, local, sizes=(1,))
            explain_errors(workdir, scored, data_dir, heatmaps, config.model.image_size, step)
        results.write(workdir, scored)
    distributed.wait_for_all("evaluated")
    return workdir / results.FILE


def _predictors(
    config: Config, network: dict[str, Any], mesh: Mesh, *, adapt: bool, int8: PredictStep | None
) -> dict[str, Predictor]:
    """Returns the network's predictor, as "", and those of the variants."""
    sharding = jax.tree.map(lambda shape: shape.sharding, network_shapes(config, mesh))
    model = model_arguments(config)
    reading: dict[str, Any] = {
        "batch_size": -(-config.batch_size // mesh.size) * mesh.size,
        "image_size": config.model.image_size,
        "mesh": mesh,
    }

    def run(step: PredictStep, network: dict[str, Any], records: Records) -> np.ndarray:
        return predictions.predict(step, network, records, np.arange(len(records)), **reading)

    score = compile_predict_step(
        xception.graphdef(**model), sharding, mesh, flip=config.test_time_flip
    )
    found: dict[str, Predictor] = {"": functools.partial(run, score, network)}
    if adapt:
        moments = adaptation.compile_moments_step(model, sharding, mesh)
        found[adaptation.ADAPTED] = lambda records: run(
            score, adaptation.adapted(moments, network, records, **reading), records
        )
    if int8:
        found[INT8] = functools.partial(run, int8, {})
    return found


def _predict_set(
    workdir: Path,
    config: Config,
    records: Records,
    predictors: dict[str, Predictor],
    origin: dict[str, Any] | None,
) -> None:
    """Writes a table for each predictor; without an `origin` another process writes them."""
    rows = np.arange(len(records))
    unlabelled = len(records) - len(labelled_rows(records, config.task))
    plain = np.zeros(0)
    for variant, predictor in predictors.items():
        table = predictions.from_records(records, rows, config.task, predictor(records))
        name = predictions.file_name(records.name, records.split, variant)
        file = workdir / "predictions" / name
        if origin is not None:
            # If the evaluation is interrupted, no results remain that contradict the tables.
            (workdir / results.FILE).unlink(missing_ok=True)
            predictions.write(file, table, TASKS[config.task], origin)
        what = f", {variant}" if variant else f": {len(records)} images"
        if not variant:
            plain = table["probabilities"]
            what += f" ({unlabelled} without a label: not scored)" if unlabelled else ""
        print(f"  {records.name} {records.split}{what} -> {file}")
        if variant == INT8:
            compared, _ = compare.compare_on(table, [table["probabilities"]], [plain])
            text = results.align([compare.ROUNDING_COLUMNS, *compare.rounding_rows(compared)])
            print("    " + text.replace("\n", "\n    "))


class _Training(NamedTuple):
    """What test sets are compared with."""

    learned: relations.Learned
    looks: tuple[float, float]  # of `_look`


def _describe_training(trained: Experiment, config: Config, data_dir: Path) -> _Training:
    whole = relations.open_whole(config, data_dir)
    return _Training(
        relations.describe_training(trained.train, trained.validation, config.task, whole),
        _look([part for part in trained.parts if part[0] == "train"]),
    )


def describe_set(
    records: Records, task: str, training: _Training | None, data_dir: Path
) -> dict[str, Any]:
    """Returns what `predictions.TEST_SETS` says of a test set; less without the training data."""
    fingerprint = build_summary(records.name, data_dir).get("fingerprint")
    groups = _near_duplicates(records.name, records.split, data_dir, fingerprint)
    about = {"near_duplicates": groups, "annotators": baselines.annotators(records, task)}
    if training is None:
        return about
    tested = relations.as_trained(training.learned, records)
    return about | {
        "relation": relations.relation(training.learned, tested),
        "differences": _differences(training.looks, _look([("test", records)])),
    }


@functools.lru_cache
def _near_duplicates(
    name: str, split: str, data_dir: Path, fingerprint: str | None
) -> dict[str, str] | None:
    """Returns the group of each image without person and clip that has near-duplicates.

    None if there is no such image. Kept, because the runs of a study have the same test sets;
    `fingerprint` is the dataset's.
    """
    del fingerprint  # another build is another result
    records = open_records(name, split, data_dir)
    named = (records.columns["subject_id"] != "") | (records.columns["clip_id"] != "")
    if named.all():
        return None
    unnamed = records.select(np.flatnonzero(~named))
    groups = near_duplicate_groups(unnamed).tolist()
    sizes = Counter(groups)
    ids = unnamed.columns["record_id"].tolist()
    return {one: group for one, group in zip(ids, groups, strict=True) if sizes[group] > 1}


def _look(parts: Sequence[tuple[str, Records]]) -> tuple[float, float]:
    """Returns the share of grey images, and of their sides that faces take (NaN if not found)."""
    pool = pool_records(parts)
    rows = np.linspace(0, len(pool) - 1, min(SAMPLED, len(pool))).astype(int)
    sample = [pool.image(row) for row in rows]
    grey = float(np.mean(list(map(is_grey, sample))))
    return grey, framing(sample)


def _differences(training: tuple[float, float], own: tuple[float, float]) -> list[str]:
    """Says how a set looks unlike the training images, which alone may lower its scores."""
    return [
        says.format(*shares)
        for says, most, *shares in zip(DIFFERENCES, MAX_DIFFERENCES, training, own, strict=True)
        if abs(shares[0] - shares[1]) > most
    ]


def _open_int8(workdir: Path, network: dict[str, Any]) -> PredictStep:
    """Opens the int8 export of this very checkpoint as a step of `predict`."""
    file = workdir / runtime.INT8_FOLDER / runtime.ONNX
    again = f"run `fer-jax export --workdir={workdir} --quantize=int8` first"
    if not file.is_file():
        raise InputError(f"there is no {file}; {again}")
    int8 = load(file, engine="onnxruntime")
    arrays = checkpoints.inference_arrays(network)
    if int8.about.get("fingerprint") != checkpoints.fingerprint(arrays):
        raise InputError(f"{file} is of another checkpoint; {again}")
    return lambda _, images: jnp.asarray(int8.probabilities(np.asarray(images)), jnp.float32)


def log_test_access(workdir: Path, records: Records, origin: dict[str, Any]) -> None:
    """Logs a test access: a model that is chosen by repeated evaluation fits the test set."""
    access = {
        "dataset": records.name,
        "split": records.split,
        "checkpoint": origin["step"],
        "checksum": origin["checksum"],
        "fingerprint": origin["fingerprint"],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    access_log.append(workdir, access)


def _validation_records(
    trained: Experiment | None, *, besides: list[tuple[str, str]], needed: bool
) -> list[Records]:
    """Returns the parts that the checkpoint was selected on; [] where they are not built here."""
    if trained is None:
        if needed:
            raise InputError(
                "--label_shift calibrates on the validation parts, which are not here; "
                "point --data_dir at them"
            )
        print("not calibrated: the validation parts cannot be opened either")
        return []
    parts = {(records.name, records.split): records for records in trained.validation}
    return [records for part, records in parts.items() if part not in besides]


def explain_errors(
    workdir: Path,
    scored: dict[str, Any],
    data_dir: Path,
    explain: Explain,
    image_size: int,
    step: int,
) -> None:
    """Explains the errors of each test set and adds the names of the pictures to `scored`.

    For the error of rank R in predictions/NAME.csv it writes NAME.R.face.jpg and, with a heatmap
    of the regions that support the wrong class (Grad-CAM), NAME.R.jpg; NAME.json has the heatmaps
    as numbers. These become the error's "face" and "heatmap"; the set's "no_pictures" says why
    one is missing. Variants have no pictures.

    `scored` is from `score_run`; `explain` is that of a `Network` with this image size and step.
    """
    plain = [one for one in scored["sets"] if not one["variant"]]
    found = [(one, error, face) for one in plain for error, face in _faces(one, data_dir)]
    if not found:
        return
    folder = workdir / EXPLANATIONS
    folder.mkdir(exist_ok=True)
    given = np.asarray([scored["classes"].index(error["given"]) for _, error, _ in found])
    faces = np.stack([resized(face, image_size) for _, _, face in found])
    maps, probabilities = explain(faces, given)
    kept: dict[str, list[dict[str, Any]]] = {one["table"]: [] for one, _, _ in found}
    for name in kept:
        # Pictures of an earlier evaluation may be of images that are no longer errors.
        for file in folder.glob(f"{Path(name).stem}.[0-9]*.jpg"):
            file.unlink()
    for (one, error, face), heat, row, index in zip(found, maps, probabilities, given, strict=True):
        stem = f"{Path(one['table']).stem}.{one['errors'].index(error) + 1}"
        error["face"] = _write_jpeg(folder / f"{stem}.face.jpg", face)
        if abs(row[index] - error["probability"]) > SAME_PROBABILITY:
            one["no_pictures"] = (
                f"the checkpoint of step {step} predicts otherwise than this table; evaluate again"
            )
            continue
        error["heatmap"] = _write_jpeg(folder / f"{stem}.jpg", overlay(face, heat))
        kept[one["table"]].append(error | {"checkpoint": step, "map": heat.tolist()})
    for name, rows in kept.items():
        text = json.dumps(rows, indent=1) + "\n"
        storage.write_atomically((folder / name).with_suffix(".json"), text)


def _faces(one: dict[str, Any], data_dir: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Returns the set's errors whose images are in the dataset, with the images."""
    try:
        records = open_records(one["dataset"], one["split"], data_dir)
    except InputError as error:
        one["no_pictures"] = str(error)
        return []
    rows = {str(key): row for row, key in enumerate(records.columns["record_id"])}
    found = [error for error in one["errors"] if error["record_id"] in rows]
    if len(found) < len(one["errors"]):
        one["no_pictures"] = "some of these records are no longer in the dataset"
    return [(error, records.image(rows[error["record_id"]])) for error in found]


def _write_jpeg(file: Path, image: np.ndarray) -> str:
    data = encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    storage.write_atomically(file, data, durable=False)
    return file.name


def main(argv: list[str]) -> None:
    """Runs the verb `evaluate`."""
    parser = OneLineParser("fer-jax evaluate", __doc__, show_defaults=True)
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--data", help="one built dataset instead of the config's test_sets")
    parser.add_argument("--split", help="of --data; 'all' is every split it has")
    parser.add_argument(
        "--predictions",
        type=Path,
        help="score a CSV of record_id and probabilities of --data, whoever made it, instead of a "
        "network; WORKDIR is a new folder",
    )
    parser.add_argument("--task", choices=list(TASKS), help="of --predictions; default: emotion")
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step")
    for flag, text in (
        ("--label_shift", "also correct for the class shares of each test set, as a variant"),
        ("--adapt", "also use the BatchNorm statistics of each test set, as a variant"),
        ("--int8", "also evaluate what export --quantize=int8 wrote, as a variant"),
        ("--no_faces", "write no faces of errors to WORKDIR/explanations"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument("--data_dir", type=Path, help="default: where the run trained from")
    arguments = parser.parse_args(argv)
    if arguments.split and not arguments.data:
        raise InputError("--split needs --data; name the dataset too")
    if arguments.predictions:
        _score_outside(arguments)
        return
    if arguments.task:
        raise InputError("--task is of --predictions; a run has its own")
    if arguments.data:
        test_sets = [(arguments.data, arguments.split or "test")]
    else:
        entries = [as_source(entry) for entry in read_config(arguments.workdir).test_sets]
        test_sets = [(source.name, source.test) for source in entries]
    if not test_sets:
        raise InputError("the run's config has no test_sets; name one with --data=NAME")
    compilations.enable_compilation_cache()
    data_dir = arguments.data_dir or training_data_dir(arguments.workdir)
    # Not the workdir itself: a run may be evaluated while it is trained.
    with distributed.lock(arguments.workdir / "predictions"):
        file = evaluate(
            arguments.workdir,
            data_dir,
            test_sets,
            checkpoint=arguments.checkpoint,
            label_shift=arguments.label_shift,
            adapt=arguments.adapt,
            int8=arguments.int8,
            explain=not arguments.no_faces,
        )
    _print_summary(file)


def _score_outside(arguments: argparse.Namespace) -> None:
    from fer_jax.evaluation import outside  # it uses this module

    if not arguments.data:
        raise InputError("--predictions needs --data: the dataset whose records it is about")
    variants = ("label_shift", "adapt", "int8")
    if given := [name for name in variants if getattr(arguments, name)]:
        raise InputError(f"--{given[0]} needs a network, and --predictions is a table")
    data_dir = arguments.data_dir or default_data_dir()
    with distributed.lock(arguments.workdir / "predictions"):
        file = outside.score(
            arguments.workdir,
            arguments.predictions,
            arguments.data,
            arguments.split or "test",
            data_dir,
            task=arguments.task or "emotion",
        )
    _print_summary(file)


def _print_summary(file: Path) -> None:
    print(run_scores.summary(json.loads(file.read_text())))
    print(f"{file}; write the report with:\n  fer-jax report --workdir={file.parent}")
