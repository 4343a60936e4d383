"""The verb `export`: a trained run as files for those who have no JAX, or no fer_jax.

Into one folder, which may hold several forms of one network: `model.safetensors` (the arrays,
under their names here), `model.onnx` (ONNX Runtime, OpenVINO, TensorRT), `model.stablehlo` (JAX
alone, on CPU and CUDA); and always `config.json` and a model card, `README.md`. Each form takes
uint8 RGB faces as they stand in the records, at the network's size, and is run on real
validation crops before it is written: one that answers otherwise than the run is refused.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from fer_jax import compilations
from fer_jax.config import OneLineParser, to_json
from fer_jax.data.audit import open_trained
from fer_jax.data.records import labelled_rows
from fer_jax.errors import InputError, did_you_mean
from fer_jax.evaluation import results
from fer_jax.evaluation.evaluate import training_data_dir
from fer_jax.evaluation.predict import model_arguments, predict_step
from fer_jax.inference.load import ARRAYS, CONFIG, FORMAT, Model, load
from fer_jax.inference.onnx_graph import INPUT, to_onnx
from fer_jax.models import xception

# The largest difference of a probability from the run's own, computed in float32.
BOUNDS = {"safetensors": 0.0, "onnx": 1e-4, "stablehlo": 1e-4}
FILES = {"safetensors": ARRAYS, "onnx": "model.onnx", "stablehlo": "model.stablehlo"}
NUM_CROPS = 64

Answers = Callable[[np.ndarray], np.ndarray]


def export(
    model: Model, out: Path, formats: tuple[str, ...], crops: np.ndarray
) -> dict[str, float]:
    """Writes a network in some forms.

    Args:
      model: from `load`.
      out: the folder; made if it is not there.
      formats: of `FILES`.
      crops: uint8 [n, s, s, 3], real faces that each form is tried on.

    Returns:
      The largest difference of a probability on the crops, by form.

    Raises:
      InputError: a form whose package is missing, or that answers otherwise than the run.
    """
    arrays = {
        "params": model.network["ema"] or model.network["params"],
        "batch_stats": model.network["batch_stats"],
    }
    arrays = jax.tree.map(lambda array: np.asarray(array, np.float32), arrays)
    arguments = model_arguments(model.config) | {"dtype": "float32"}
    graphdef = xception.graphdef(**arguments)

    def answers(network: dict[str, Any], images: jax.Array) -> jax.Array:
        return predict_step(network | {"ema": {}}, images, graphdef=graphdef)

    expected = np.asarray(jax.jit(answers)(arrays, crops))
    config = {
        "format": FORMAT,
        "task": model.config.task,
        "classes": list(model.classes),
        "image_size": model.image_size,
        "step": model.step,
        "margin": model.margin,
        "config": json.loads(to_json(model.config)),
    }
    write = {"safetensors": _safetensors, "onnx": _onnx, "stablehlo": _stablehlo}
    differences = {}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting_", dir=out) as temporary:
        for form in formats:
            file = Path(temporary) / FILES[form]
            run = write[form](file, arrays, answers, arguments, config)
            differences[form] = float(np.abs(run(crops) - expected).max())
            if not differences[form] <= BOUNDS[form]:
                raise InputError(
                    f"{form}: a probability differs by {differences[form]:.2g}, more than "
                    f"{BOUNDS[form]:g}; not written"
                )
        for form in formats:
            os.replace(Path(temporary) / FILES[form], out / FILES[form])
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (out / "README.md").write_text(_card(model, config))
    return differences


def _safetensors(file: Path, arrays: Any, answers: Any, _: Any, config: dict[str, Any]) -> Answers:
    flat = traverse_util.flatten_dict(arrays, sep="/")
    save_file({name: np.ascontiguousarray(array) for name, array in flat.items()}, file)
    back = traverse_util.unflatten_dict(load_file(file), sep="/")
    return lambda crops: np.asarray(jax.jit(answers)(back, crops))


def _onnx(
    file: Path, arrays: Any, _: Any, arguments: dict[str, Any], config: dict[str, Any]
) -> Answers:
    proto = to_onnx(arrays["params"], arrays["batch_stats"], arguments, config)
    file.write_bytes(proto.SerializeToString())
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX Runtime is not installed; pip install -e '.[export]'") from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda crops: np.asarray(session.run(["probabilities"], {INPUT: crops})[0])


def _stablehlo(
    file: Path, arrays: Any, answers: Any, arguments: dict[str, Any], _: dict[str, Any]
) -> Answers:
    size = arguments["image_size"]
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    exported = jax.export.export(
        jax.jit(lambda images: answers(arrays, images)), platforms=("cpu", "cuda")
    )(images)
    file.write_bytes(exported.serialize())
    back = jax.export.deserialize(bytearray(file.read_bytes()))
    return lambda crops: np.asarray(back.call(crops))


def _card(model: Model, config: dict[str, Any]) -> str:
    """A model card (Mitchell et al. 2019) from what the run knows of itself."""
    trained = config["config"]
    sources = [entry if isinstance(entry, str) else entry["name"] for entry in trained["sources"]]
    lines = [
        f"# Xception, {config['task']}",
        "",
        f"Classes, in the order of the outputs: {', '.join(config['classes'])}. Input: aligned "
        f"faces, uint8 RGB, {config['image_size']} x {config['image_size']} pixels; the network "
        "scales them itself.",
        "",
        f"Trained with fer_jax on the training parts of {', '.join(sources)} (checkpoint of step "
        f"{config['step']}, seed {trained['seed']}), selected on their validation parts.",
        "",
        "## Scores",
        "",
    ]
    scores = model.workdir / "results.json"
    if scores.is_file():
        scored = json.loads(scores.read_text())
        lines += [
            "| test set | images | subjects | accuracy | balanced accuracy | 95 % interval | ECE |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for one in scored["sets"]:
            cells = [
                f"{one['dataset']} {one['split']} {one['variant']}".strip(),
                f"{one['n']:.0f}",
                str(one["n_subjects"] or "n/a"),
                results.number(one["accuracy"]),
                results.number(one["balanced_accuracy"]),
                results.interval(one["intervals"]["balanced_accuracy"]),
                results.number(one["ece"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    else:
        lines.append("Not scored on any test set.")
    lines += [
        "",
        "## Intended use and limits",
        "",
        "For research on how recognition generalizes. An output is a guess about an expression, "
        "not about what a person feels; it must not decide anything about anybody. The network "
        "inherits the gaps of its data: read the scores by set before trusting it elsewhere.",
        "",
    ]
    return "\n".join(lines)


def validation_crops(model: Model, data_dir: Path) -> np.ndarray:
    """Some of the faces that the run was validated on, uint8 [n, s, s, 3], at most `NUM_CROPS`.

    Raises:
      InputError: the data are not there.
    """
    trained = open_trained(model.config, data_dir, model.workdir)
    if trained is None:
        raise InputError(
            "an export is checked on validation faces, which are not here; point --data_dir at them"
        )
    share = -(-NUM_CROPS // len(trained.validation))
    crops = []
    for records in trained.validation:
        rows = labelled_rows(records, model.config.task)
        # From the whole part, not the first person.
        chosen = rows[np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(int)]
        crops.append(records.images(chosen, model.image_size))
    return np.concatenate(crops)


def main(argv: list[str]) -> None:
    """The verb `export`."""
    parser = OneLineParser(
        prog="fer-jax export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--out", type=Path, help="the folder [WORKDIR/export]")
    parser.add_argument(
        "--format", default=",".join(FILES), help="safetensors, onnx, stablehlo, by commas [all]"
    )
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step [best]")
    parser.add_argument("--data_dir", type=Path, help="[where the run trained from]")
    arguments = parser.parse_args(argv)
    formats = tuple(dict.fromkeys(arguments.format.split(",")))
    for form in formats:
        if form not in FILES:
            raise InputError(f"--format cannot be '{form}'{did_you_mean(form, FILES)}")
    compilations.keep()
    model = load(arguments.workdir, arguments.checkpoint)
    crops = validation_crops(model, arguments.data_dir or training_data_dir(arguments.workdir))
    out = arguments.out or arguments.workdir / "export"
    differences = export(model, out, formats, crops)
    print(f"checkpoint of step {model.step}, tried on {len(crops)} validation faces:")
    for form, difference in differences.items():
        size = (out / FILES[form]).stat().st_size / 1e6
        print(
            f"  {out / FILES[form]}: {size:.1f} MB, largest difference of a probability "
            f"{difference:.2g} (at most {BOUNDS[form]:g})"
        )
