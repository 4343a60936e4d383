"""The verb `export`: a trained run as files for those who have no JAX, or no fer_jax.

Into one folder, which may hold several forms of one network: `model.safetensors` (the arrays,
under their names here), `model.onnx` (ONNX Runtime, OpenVINO, TensorRT), `model.stablehlo` (JAX
alone, on CPU and CUDA); and always `config.json` and a model card, `README.md`. Each form takes
uint8 RGB faces as they stand in the records, at the network's size, and is run on real
validation crops before it is written: one that answers otherwise than the run is refused.

`--quantize=int8` writes the network rounded: safetensors with int8 kernels, and an ONNX graph
that computes in int8, calibrated on training faces. Both are scored beside the network in
float32 on the whole validation part.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from fer_jax import compilations
from fer_jax.config import OneLineParser
from fer_jax.data.experiment import Experiment, as_source, open_trained, training_data_dir
from fer_jax.data.records import labelled_rows
from fer_jax.errors import InputError, did_you_mean
from fer_jax.evaluation import compare, results
from fer_jax.evaluation.evaluate import INT8
from fer_jax.evaluation.predict import predictions_table
from fer_jax.export.quantize import NUM_CALIBRATION, crops_of, quantized_graph, quantized_weights
from fer_jax.inference import runtime
from fer_jax.inference.load import ARRAYS, CONFIG, Network, dequantized_weights, load
from fer_jax.inference.network import model_arguments, predict_step
from fer_jax.inference.onnx_graph import to_onnx
from fer_jax.models import xception

FILES = {"safetensors": ARRAYS, "onnx": runtime.ONNX, "stablehlo": "model.stablehlo"}
CARD = "README.md"
SCORES = "results.json"  # of the test sets, for the page of an export
# The largest difference of a probability from the run's own, computed in float32.
BOUNDS = {"safetensors": 0.0, "onnx": 1e-4, "stablehlo": 1e-4}
# Of a rounded form: that of one face may be large where two classes are close, so it is the mean
# over faces of the largest difference.
INT8_BOUNDS = {"safetensors": 0.03, "onnx": 0.06}
NUM_CROPS = 64
TIMED = 5

Run = runtime.Run


class FloatNetwork(NamedTuple):
    """What the forms are written of.

    Attributes:
      arrays: {"params", "batch_stats"}, nested dicts of float32 arrays; an average's, where the
        run keeps one.
      arguments: of `xception.Xception`, in float32.
      about: what every form says of itself, as JSON has it.
      calibration: uint8 [n, s, s, 3], training faces that int8 ranges come from; None for float.
    """

    arrays: dict[str, Any]
    arguments: dict[str, Any]
    about: dict[str, Any]
    calibration: np.ndarray | None = None

    def probabilities(self, arrays: dict[str, Any]) -> Run:
        """Class probabilities, with some arrays of the same shapes, in JAX."""
        step = jax.jit(self.step)
        return runtime.in_batches(lambda crops: np.asarray(step(arrays, crops)))

    def step(self, arrays: dict[str, Any], images: jax.Array) -> jax.Array:
        """The same, traced."""
        graphdef = xception.graphdef(**self.arguments)
        return predict_step(arrays | {"ema": {}}, images, graphdef=graphdef)


def export(
    model: Network,
    out: Path,
    formats: tuple[str, ...],
    crops: np.ndarray,
    *,
    trained: Experiment | None = None,
) -> dict[str, Any]:
    """Writes a network in some forms.

    Args:
      model: from `load`.
      out: the folder; made if it is not there.
      formats: of `FILES`.
      crops: uint8 [n, s, s, 3], real faces that each form is tried on.
      trained: what the run was trained and validated on: the forms are in int8, calibrated on
        its training parts and scored on its validation parts. None: in float32.

    Returns:
      {form: {"difference": the largest of a probability on the crops, "mean_difference": the mean
      over the crops of their largest, "bytes"; of an int8 form also "float_bytes", "compared":
      `compare.compare_on` with side a int8, and of ONNX "images_per_second" and
      "float_images_per_second"}}.

    Raises:
      InputError: a form whose package is missing or that answers otherwise than the run, or a
        folder that holds something else.
    """
    arrays = jax.tree.map(lambda array: np.asarray(array, np.float32), model.arrays)
    arguments = model_arguments(model.config) | {"dtype": "float32"}
    about, calibration = model.about | {"fingerprint": model.fingerprint()}, None
    if trained is not None:
        calibration = crops_of(trained.train, trained.task, model.image_size, NUM_CALIBRATION)
        about["quantization"] = INT8
    network = FloatNetwork(arrays, arguments, about, calibration)
    check_folder(out, about, formats)
    in_float = network.probabilities(arrays)
    expected = in_float(crops)
    write = {"safetensors": _safetensors, "onnx": _onnx, "stablehlo": _stablehlo}
    bounds = BOUNDS if trained is None else INT8_BOUNDS
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix=".exporting_", dir=out) as name:
        folder = Path(name)
        forms: dict[str, Run] = {}
        for form in formats:
            forms[form] = write[form](folder / FILES[form], network)
            apart = np.abs(forms[form](crops) - expected).max(axis=1)
            report[form] = {
                "difference": float(apart.max()),
                "mean_difference": float(apart.mean()),
                "bytes": (folder / FILES[form]).stat().st_size,
            }
            seen = report[form]["difference" if trained is None else "mean_difference"]
            if not seen <= bounds[form]:
                raise InputError(
                    f"{form}: a probability differs by {seen:.2g}"
                    f"{'' if trained is None else ' on average'}, more than {bounds[form]:g}; "
                    "not written"
                )
        if trained is not None:
            compared = _scored(model, trained, {"float32": in_float} | forms)
            for form in formats:
                report[form] |= {"compared": compared[form]}
                report[form] |= _beside_float(form, forms[form], network, crops, folder)
        (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n")
        (folder / CARD).write_text(_card(model, about, trained, report))
        # The config comes last: what was cut short is no export.
        (out / CONFIG).unlink(missing_ok=True)
        (out / SCORES).unlink(missing_ok=True)
        scores = _scores(model.folder) if trained is None else None
        if scores is not None:
            (folder / SCORES).write_text(json.dumps(scores, indent=2) + "\n")
        written = [FILES[form] for form in formats] + ([SCORES] if scores is not None else [])
        for file in (*written, CARD, CONFIG):
            os.replace(folder / file, out / file)
    return report


def _scores(workdir: Path) -> dict[str, Any] | None:
    """What the run's results.json says of its test sets, without the records that it names."""
    file = workdir / SCORES
    if not file.is_file():
        return None
    scored = json.loads(file.read_text())
    sets = [{k: v for k, v in one.items() if k != "errors"} for one in scored["sets"]]
    return {"task": scored["task"], "classes": scored["classes"], "sets": sets}


def check_folder(out: Path, about: dict[str, Any], formats: Sequence[str]) -> None:
    """Refuses a folder whose files would then be of two networks, or are somebody else's.

    Raises:
      InputError: names what is there.
    """
    try:
        before = json.loads((out / CONFIG).read_text())
        ours = isinstance(before, dict) and before.get("format") == runtime.FORMAT
    except (OSError, ValueError):
        before, ours = {}, False
    others = [name for name in (CONFIG, CARD) if (out / name).exists() and not ours]
    if others:
        raise InputError(f"'{out}' holds somebody else's {others[0]}; name another folder")
    left = [FILES[form] for form in FILES if form not in formats and (out / FILES[form]).exists()]
    same = all(before.get(key) == about.get(key) for key in ("fingerprint", "quantization"))
    if left and not same:
        raise InputError(
            f"'{out}' holds {' and '.join(left)} of another network (step {before.get('step')}); "
            "name another folder, or export those forms, too"
        )


def _safetensors(file: Path, network: FloatNetwork) -> Run:
    flat: Any = traverse_util.flatten_dict(network.arrays, sep="/")
    if network.calibration is not None:
        flat = quantized_weights(flat)
    save_file({name: np.ascontiguousarray(array) for name, array in flat.items()}, file)
    back: Any = traverse_util.unflatten_dict(dequantized_weights(load_file(file)), sep="/")
    return network.probabilities(back)


def _onnx(file: Path, network: FloatNetwork) -> Run:
    graph = _graph(network)
    if network.calibration is not None:
        graph = quantized_graph(graph, network.calibration)
    file.write_bytes(graph.SerializeToString())
    return _in_onnxruntime(file.read_bytes())


def _graph(network: FloatNetwork) -> Any:
    arrays = network.arrays
    return to_onnx(arrays["params"], arrays["batch_stats"], network.arguments, network.about)


def _in_onnxruntime(model: bytes) -> Run:
    return runtime.open_onnx(model, "onnxruntime", FILES["onnx"], flip=False)[1]


def _stablehlo(file: Path, network: FloatNetwork) -> Run:
    size = network.arguments["image_size"]
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    exported = jax.export.export(
        jax.jit(lambda images: network.step(network.arrays, images)), platforms=("cpu", "cuda")
    )(images)
    file.write_bytes(exported.serialize())
    back = jax.export.deserialize(bytearray(file.read_bytes()))
    return lambda crops: np.asarray(back.call(crops))


def _scored(
    model: Network, trained: Experiment, forms: dict[str, Run]
) -> dict[str, dict[str, Any]]:
    """Each form beside "float32" on the validation parts: `compare.compare_on` by form."""
    tables, answers = [], {form: [] for form in forms}
    flip = model.config.test_time_flip
    total = sum(len(labelled_rows(part, trained.task)) for part in trained.validation)
    with tqdm(total=total, desc="validation", unit="image", leave=False, disable=None) as progress:
        for part in trained.validation:
            rows = labelled_rows(part, trained.task)
            for start in range(0, len(rows), runtime.BATCH_SIZE):
                chosen = rows[start : start + runtime.BATCH_SIZE]
                images = part.images(chosen, model.image_size)
                for form, run in forms.items():
                    seen = np.asarray(run(images), np.float64)
                    if flip:
                        seen = (seen + run(np.ascontiguousarray(images[:, :, ::-1]))) / 2
                    answers[form].append(seen)
                progress.update(len(chosen))
            nothing = np.zeros((len(rows), len(model.classes)))
            tables.append(predictions_table(part, rows, trained.task, nothing))
    table = {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}
    sides = {form: np.concatenate(parts) for form, parts in answers.items()}
    in_float = sides.pop("float32")
    return {form: compare.compare_on(table, [side], [in_float]) for form, side in sides.items()}


def _beside_float(
    form: str, run: Run, network: FloatNetwork, crops: np.ndarray, folder: Path
) -> dict[str, Any]:
    """The size of the float32 form, and of ONNX how fast both are, in turn."""
    float_file = folder / f"float.{form}"
    writers = {"safetensors": _safetensors, "onnx": _onnx}
    in_float = writers[form](float_file, network._replace(calibration=None))
    found: dict[str, Any] = {"float_bytes": float_file.stat().st_size}
    float_file.unlink()
    if form != "onnx":  # the arrays are float32 again when they are used
        return found
    seconds: dict[Run, list[float]] = {run: [], in_float: []}
    for _ in range(1 + TIMED):
        for side, times in seconds.items():
            started = time.perf_counter()
            side(crops)
            times.append(time.perf_counter() - started)
    names = ("images_per_second", "float_images_per_second")
    for name, times in zip(names, seconds.values(), strict=True):
        found[name] = len(crops) / statistics.median(times[1:])
    return found


def _card(
    model: Network, about: dict[str, Any], trained: Experiment | None, report: dict[str, Any]
) -> str:
    """A model card (Mitchell et al. 2019) from what the run knows of itself."""
    config = model.config
    lines = [
        f"# Xception, {about['task']}",
        "",
        f"Classes, in the order of the outputs: {', '.join(about['classes'])}. Input: aligned "
        f"faces, uint8 RGB, {about['image_size']} x {about['image_size']} pixels, any number; the "
        "network scales them itself.",
        "",
        "## Data",
        "",
        f"Trained with fer_jax (checkpoint of step {about['step']}, seed {config.seed}) on the "
        "training parts below, selected on the validation parts.",
        "",
        "| dataset | training | validation | records in all | fingerprint |",
        "| --- | --- | --- | --- | --- |",
    ]
    environment = model.folder / "environment.json"
    known = json.loads(environment.read_text()).get("datasets", {}) if environment.is_file() else {}
    for source in map(as_source, config.sources):
        of = known.get(source.name, {})
        fingerprint = str(of.get("fingerprint") or "n/a")[:12]
        cells = [
            source.name,
            source.train,
            source.validation,
            of.get("records", "n/a"),
            fingerprint,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "## Scores", ""]
    scores = model.folder / SCORES
    if scores.is_file():
        scored = json.loads(scores.read_text())
        names = ("accuracy", "balanced_accuracy", "macro_f1", "ece")
        lines += [
            "Of the network in float32 on test sets, with 95 % intervals that resample whole "
            f"people (else clips). A balanced accuracy of {1 / len(about['classes']):.3f} is "
            "chance.",
            "",
            "| test set | images | subjects | accuracy | balanced accuracy | macro F1 | ECE |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        doubts = []
        for one in scored["sets"]:
            name = f"{one['dataset']} {one['split']} {one['variant']}".strip()
            cells = [name, f"{one['n']:.0f}", str(one["n_subjects"] or "n/a")]
            cells += [
                f"{results.number(one[metric])} {results.interval(one['intervals'][metric])}"
                for metric in names
            ]
            lines.append(f"| {' | '.join(cells)} |")
            doubts += [f"- {name}: {doubt}" for doubt in results.doubts(one, scored["classes"])]
        lines += ["", *doubts] if doubts else []
        if config.test_time_flip:
            lines += ["", "Each score is of the mean over a face and its mirror image."]
    else:
        lines.append("Not scored on any test set.")
    if trained is not None:
        lines += ["", "## Int8", "", *_int8_lines(trained, report)]
    lines += [
        "",
        "## Intended use and limits",
        "",
        "For research on how recognition generalizes. An output is a guess about an expression, "
        "not about what a person feels; it must not decide anything about anybody. The network "
        "inherits the gaps of its data: read the scores by set before trusting it elsewhere. "
        "Faces that are framed otherwise than the records (tight crops, eyes level) are answered "
        "worse, and a picture without a face is answered, too.",
        "",
    ]
    return "\n".join(lines)


def _int8_lines(trained: Experiment, report: dict[str, Any]) -> list[str]:
    """What rounding changed, in Markdown."""
    parts = ", ".join(f"{part.name} {part.split}" for part in trained.train)
    of_validation = ", ".join(f"{part.name} {part.split}" for part in trained.validation)
    one = next(iter(report.values()))["compared"]
    columns = ["form", "metric", *compare.ROUNDING_COLUMNS[1:]]
    lines = [
        f"Calibrated on faces of {parts}. Beside float32 on {one['n']} validation images "
        f"({of_validation}; {one['n_clusters']} clusters by {one['cluster']}):",
        "",
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
    ]
    for form, of in report.items():
        lines += [f"| {form} | {' | '.join(c)} |" for c in compare.rounding_rows(of["compared"])]
    lines += ["", *(f"- {form}: {_cost(of)}" for form, of in report.items())]
    return lines


def _cost(of: dict[str, Any]) -> str:
    """Size, difference and speed of an int8 form."""
    text = (
        f"{of['bytes'] / 1e6:.1f} MB (float32 {of['float_bytes'] / 1e6:.1f}), largest difference "
        f"of a face's probabilities {of['mean_difference']:.2g} on average, "
        f"{of['difference']:.2g} at most"
    )
    if "images_per_second" in of:
        text += (
            f"; {of['images_per_second']:.0f} images a second in ONNX Runtime "
            f"(float32 {of['float_images_per_second']:.0f})"
        )
    return text


def trained_on(model: Network, data_dir: Path) -> Experiment:
    """What the run was trained and validated on; test sets are not among it.

    Raises:
      InputError: the data are not there.
    """
    trained = open_trained(model.config, data_dir, model.folder)
    if trained is None:
        raise InputError(
            "an export is checked on validation faces, which are not here; point --data_dir at them"
        )
    return trained


def main(argv: list[str]) -> None:
    """The verb `export`."""
    parser = OneLineParser(
        prog="fer-jax export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--out", type=Path, help="the folder [WORKDIR/export, or export_int8]")
    parser.add_argument(
        "--format", default="", help="safetensors, onnx, stablehlo, by commas [all there are]"
    )
    parser.add_argument("--quantize", choices=[INT8], help="round the network")
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step [best]")
    parser.add_argument("--data_dir", type=Path, help="[where the run trained from]")
    arguments = parser.parse_args(argv)
    known = INT8_BOUNDS if arguments.quantize else BOUNDS
    formats = tuple(dict.fromkeys(arguments.format.split(","))) if arguments.format else (*known,)
    for form in formats:
        if form not in FILES:
            raise InputError(f"--format cannot be '{form}'{did_you_mean(form, FILES)}")
        if form not in known:
            raise InputError(f"--quantize has no {form}; its forms are {', '.join(known)}")
    compilations.enable_compilation_cache()
    model = load(arguments.workdir, arguments.checkpoint)
    data_dir = arguments.data_dir or training_data_dir(arguments.workdir)
    trained = trained_on(model, data_dir)
    crops = crops_of(trained.validation, trained.task, model.image_size, NUM_CROPS)
    out = arguments.out or arguments.workdir / (
        runtime.INT8_FOLDER if arguments.quantize else "export"
    )
    report = export(model, out, formats, crops, trained=trained if arguments.quantize else None)
    print(f"checkpoint of step {model.step}, tried on {len(crops)} validation faces:")
    for form, of in report.items():
        if not arguments.quantize:
            said = (
                f"{of['bytes'] / 1e6:.1f} MB, largest difference of a probability "
                f"{of['difference']:.2g} (at most {BOUNDS[form]:g})"
            )
        else:
            said = f"{_cost(of)} (on average at most {INT8_BOUNDS[form]:g})"
        print(f"  {out / FILES[form]}: {said}")
    if arguments.quantize:
        one = next(iter(report.values()))["compared"]
        print(
            f"on {one['n']} validation images ({one['n_clusters']} clusters by {one['cluster']}):"
        )
        rows = [["form", *compare.ROUNDING_COLUMNS]]
        for form, of in report.items():
            rows += [[form, *cells] for cells in compare.rounding_rows(of["compared"])]
        print("\n".join(results.aligned(rows, num_left=2)))
        for doubt in results.doubts_of_interval(one, one["metrics"]["accuracy"]["interval"]):
            print(doubt)
