"""Export a trained run for programs without JAX, or without fer_jax.

One folder may have several forms of one network: model.safetensors (the arrays), model.onnx (ONNX
Runtime, OpenVINO, TensorRT) and model.stablehlo (JAX alone, on CPU and CUDA); and always
config.json and a model card, README.md. Each form takes uint8 RGB faces at the network's size. A
form is written only if its predictions on real validation faces agree with the run's.

--quantize=int8 writes the network in int8: safetensors with int8 kernels, and an ONNX graph that
computes in int8, calibrated on training faces. Both are compared with float32 on the whole
validation split.
"""

import contextlib
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from tqdm import tqdm

from fer_jax import compilations, results, storage
from fer_jax.config import OneLineParser, output_path
from fer_jax.data.experiment import Experiment, open_trained, training_data_dir
from fer_jax.data.records import labelled_rows
from fer_jax.errors import InputError, did_you_mean
from fer_jax.evaluation import compare, predictions, scoring
from fer_jax.evaluation.evaluate import INT8
from fer_jax.export.card import SCORES, card, cost, public_scores
from fer_jax.export.quantize import NUM_CALIBRATION, quantize_graph, quantize_weights, sample_crops
from fer_jax.inference import runtime
from fer_jax.inference.network import (
    ARRAYS,
    CONFIG,
    Network,
    dequantize_weights,
    load,
    model_arguments,
    predict_step,
)
from fer_jax.inference.runtime import Run, to_onnx
from fer_jax.models import kernels, xception

FILES = {"safetensors": ARRAYS, "onnx": runtime.ONNX, "stablehlo": "model.stablehlo"}
CARD = "README.md"
# The largest difference of a probability from the run's own, computed in float32.
BOUNDS = {"safetensors": 0.0, "onnx": 1e-4, "stablehlo": 1e-4}
# In int8 the difference of one face may be large if two classes are close, so these are of the
# mean over faces of the largest difference.
INT8_BOUNDS = {"safetensors": 0.03, "onnx": 0.06}
NUM_CROPS = 64
TIMED = 5


class Exportable(NamedTuple):
    """A network as it is exported."""

    arrays: dict[str, Any]  # {"params", "batch_stats"} in float32; of the average if there is one
    arguments: dict[str, Any]  # of `xception.Xception`, in float32
    about: dict[str, Any]  # the metadata that every form stores, for JSON
    calibration: np.ndarray | None = None  # uint8 [n, s, s, 3], training faces; None: no int8

    def step(self, arrays: dict[str, Any], images: jax.Array) -> jax.Array:
        """Computes probabilities with arrays of these shapes, to be traced."""
        graphdef = xception.graphdef(**self.arguments)
        return predict_step(arrays | {"ema": {}}, images, graphdef=graphdef)

    def run(self, arrays: dict[str, Any]) -> Run:
        """Returns the compiled step for any number of images."""
        step = jax.jit(self.step)
        return runtime.in_batches(lambda crops: np.asarray(step(arrays, crops)))


def export(
    model: Network,
    out: Path,
    formats: Sequence[str],
    crops: np.ndarray,
    *,
    trained: Experiment | None = None,
) -> dict[str, Any]:
    """Writes a network from `load` in some forms (of `FILES`), checked on real faces.

    `crops` is uint8 [n, s, s, 3]. With `trained`, the run's data, the forms are in int8, calibrated
    on its training parts and scored on its validation parts; else in float32. Returns {form:
    {"difference": the largest of a probability on the crops, "mean_difference": the mean over the
    crops of their largest, "bytes"}}; of int8 forms also "float_bytes", "compared"
    (`compare.compare_on`, int8 first) and, of ONNX, both "images_per_second". Raises InputError,
    and writes nothing, if a form's package is missing or its predictions differ from the run's, or
    the folder has files of something else.
    """
    arrays = jax.tree.map(lambda array: np.asarray(array, np.float32), model.arrays)
    arguments = model_arguments(model.config) | {"dtype": "float32"}
    about, calibration = model.about | {"fingerprint": model.fingerprint()}, None
    if trained is not None:
        calibration = sample_crops(trained.train, trained.task, model.image_size, NUM_CALIBRATION)
        about["quantization"] = INT8
    network = Exportable(arrays, arguments, about, calibration)
    check_folder(out, about, formats)
    run_float = network.run(arrays)
    expected = run_float(crops)
    files: dict[str, bytes] = {}
    forms: dict[str, Run] = {}
    report: dict[str, Any] = {}
    for form in formats:
        files[FILES[form]], forms[form] = WRITERS[form](network)
        report[form] = _check_form(form, forms[form](crops), expected, int8=trained is not None)
        report[form]["bytes"] = len(files[FILES[form]])
    if trained is not None:
        compared = _compare_with_float(model, trained, {"float32": run_float} | forms)
        for form in formats:
            report[form] |= {"compared": compared[form]}
            report[form] |= _size_and_speed(form, forms[form], network, crops)
    scores = public_scores(model) if trained is None else None
    texts = {CONFIG: json.dumps(about, indent=2) + "\n", CARD: card(model, about, trained, report)}
    texts |= {SCORES: scores} if scores else {}
    _write(out, {name: text.encode() for name, text in texts.items()} | files)
    return report


def _check_form(
    form: str, probabilities: np.ndarray, expected: np.ndarray, *, int8: bool
) -> dict[str, float]:
    largest = np.abs(probabilities - expected).max(axis=1)
    found = {"difference": float(largest.max()), "mean_difference": float(largest.mean())}
    difference = found["mean_difference" if int8 else "difference"]
    bound = (INT8_BOUNDS if int8 else BOUNDS)[form]
    if not difference <= bound:
        raise InputError(
            f"{form}: a probability differs by {difference:.2g}"
            f"{' on average' if int8 else ''}, more than {bound:g}; not written"
        )
    return found


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Writes all files or none; without its config, which comes last, a folder is no export."""
    with contextlib.ExitStack() as stack:  # it ends in reverse order
        for name in sorted(files, key=lambda name: name != CONFIG):
            stack.enter_context(storage.replacing(out / name)).write_bytes(files[name])
        for name in (CONFIG, SCORES):
            (out / name).unlink(missing_ok=True)


def check_folder(out: Path, about: dict[str, Any], formats: Sequence[str]) -> None:
    """Refuses a folder that would then have files of two networks, or that has other files."""
    before = {}
    with contextlib.suppress(InputError):  # then it is not ours, as is said below
        before = storage.read_json(out / CONFIG)
    ours = before.get("format") == runtime.FORMAT
    if others := [name for name in (CONFIG, CARD) if (out / name).exists() and not ours]:
        raise InputError(
            f"'{out}' already has a {others[0]} that fer-jax export did not write; choose another "
            "folder"
        )
    left = [FILES[form] for form in FILES if form not in formats and (out / FILES[form]).exists()]
    same = all(before.get(key) == about.get(key) for key in ("fingerprint", "quantization"))
    if left and not same:
        raise InputError(
            f"'{out}' has {' and '.join(left)} of another network (step {before.get('step')}); "
            "choose another folder, or export those forms, too"
        )


def _safetensors(network: Exportable) -> tuple[bytes, Run]:
    flat: Any = traverse_util.flatten_dict(network.arrays, sep="/")
    if network.calibration is not None:
        flat = quantize_weights(flat)
    data = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in flat.items()})
    back = dequantize_weights(safetensors.numpy.load(data))
    arrays: Any = traverse_util.unflatten_dict(back, sep="/")
    return data, network.run(arrays)


def _onnx(network: Exportable) -> tuple[bytes, Run]:
    arrays = network.arrays
    graph = to_onnx(arrays["params"], arrays["batch_stats"], network.arguments, network.about)
    if network.calibration is not None:
        graph = quantize_graph(graph, network.calibration)
    data = graph.SerializeToString()
    return data, runtime.open_onnx(data, "onnxruntime", FILES["onnx"], flip=False)[1]


def _stablehlo(network: Exportable) -> tuple[bytes, Run]:
    size = network.arguments["image_size"]
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    with kernels.portable():
        exported = jax.export.export(
            jax.jit(lambda images: network.step(network.arrays, images)), platforms=("cpu", "cuda")
        )(images)
    data = exported.serialize()
    back = jax.export.deserialize(data)
    return bytes(data), lambda crops: np.asarray(back.call(crops))


# form: function of a network to (the file's bytes, that file's predictions)
WRITERS = {"safetensors": _safetensors, "onnx": _onnx, "stablehlo": _stablehlo}


def _compare_with_float(
    model: Network, trained: Experiment, forms: dict[str, Run]
) -> dict[str, dict[str, Any]]:
    """Compares each form with the first one on the validation parts: `compare_on` by form."""
    tables, probabilities = [], {form: [] for form in forms}
    total = sum(len(labelled_rows(part, trained.task)) for part in trained.validation)
    with tqdm(total=total, desc="validation", unit="image", leave=False, disable=None) as progress:
        for part in trained.validation:
            rows = labelled_rows(part, trained.task)
            for start in range(0, len(rows), runtime.BATCH_SIZE):
                chosen = rows[start : start + runtime.BATCH_SIZE]
                images = part.images(chosen, model.image_size)
                for form, run in forms.items():
                    found = np.asarray(run(images), np.float64)
                    if model.config.test_time_flip:
                        found = (found + run(np.ascontiguousarray(images[:, :, ::-1]))) / 2
                    probabilities[form].append(found)
                progress.update(len(chosen))
            nothing = np.zeros((len(rows), len(model.classes)))
            tables.append(predictions.from_records(part, rows, trained.task, nothing))
    table = {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}
    in_float, *others = (np.concatenate(probabilities[form]) for form in forms)
    return {
        form: compare.compare_on(table, [one], [in_float])[0]
        for form, one in zip(list(forms)[1:], others, strict=True)
    }


def _size_and_speed(form: str, run: Run, network: Exportable, crops: np.ndarray) -> dict[str, Any]:
    """Measures the size of the float32 form, and of ONNX the speed of both, in turn."""
    data, run_float = WRITERS[form](network._replace(calibration=None))
    found: dict[str, Any] = {"float_bytes": len(data)}
    if form != "onnx":  # int8 arrays are converted to float32 before they are used
        return found
    runs = {"images_per_second": run, "float_images_per_second": run_float}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + TIMED):
        for name, one in runs.items():
            started = time.perf_counter()
            one(crops)
            seconds[name].append(time.perf_counter() - started)
    return found | {n: len(crops) / statistics.median(times[1:]) for n, times in seconds.items()}


def main(argv: list[str]) -> None:
    """The verb `export`."""
    parser = OneLineParser("fer-jax export", __doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument(
        "--out", type=output_path, help="the folder [WORKDIR/export, or export_int8]"
    )
    parser.add_argument(
        "--format", default="", help="safetensors, onnx, stablehlo, separated by commas [all]"
    )
    parser.add_argument("--quantize", choices=[INT8], help="write the network in int8")
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step [best]")
    parser.add_argument("--data_dir", type=Path, help="[where the run trained from]")
    arguments = parser.parse_args(argv)
    workdir, int8 = arguments.workdir, bool(arguments.quantize)
    known = INT8_BOUNDS if int8 else BOUNDS
    formats = tuple(dict.fromkeys(arguments.format.split(","))) if arguments.format else (*known,)
    for form in formats:
        if form not in FILES:
            raise InputError(f"unknown --format '{form}'{did_you_mean(form, FILES)}")
        if form not in known:
            raise InputError(f"--quantize does not support {form}; choose {' or '.join(known)}")
    compilations.enable_compilation_cache()
    model = load(workdir, arguments.checkpoint)
    data_dir = arguments.data_dir or training_data_dir(workdir)
    trained = open_trained(model.config, data_dir, model.folder)
    if trained is None:
        raise InputError(
            f"an export is checked on validation faces, which are not in '{data_dir}'; name their "
            "folder with --data_dir"
        )
    crops = sample_crops(trained.validation, trained.task, model.image_size, NUM_CROPS)
    out = arguments.out or workdir / (runtime.INT8_FOLDER if int8 else "export")
    with storage.lock(out, keep_file=False):
        report = export(model, out, formats, crops, trained=trained if int8 else None)
    print(f"checkpoint of step {model.step}, checked on {len(crops)} validation faces:")
    for form, result in report.items():
        text = (
            f"{cost(result)} (on average at most {INT8_BOUNDS[form]:g})"
            if int8
            else f"{result['bytes'] / 1e6:.1f} MB, largest difference of a probability "
            f"{result['difference']:.2g} (at most {BOUNDS[form]:g})"
        )
        print(f"  {out / FILES[form]}: {text}")
    if int8:
        _print_comparison(report)


def _print_comparison(report: dict[str, Any]) -> None:
    one = next(iter(report.values()))["compared"]
    print(f"on {one['n']} validation images ({one['n_clusters']} clusters by {one['cluster']}):")
    rows = [["form", *compare.ROUNDING_COLUMNS]]
    for form, result in report.items():
        rows += [[form, *cells] for cells in compare.rounding_rows(result["compared"])]
    print(results.align(rows, left=(0, 1)))
    for caveat in scoring.interval_caveats(one, one["metrics"]["accuracy"]["interval"]):
        print(caveat)
