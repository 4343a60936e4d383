"""Int8: rounded networks predict nearly the same; ranges come from training faces alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_runs import picture, write_dataset, write_run

from fer_jax.__main__ import main
from fer_jax.data import records
from fer_jax.data.records import open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import predictions
from fer_jax.export import export, quantize
from fer_jax.inference import runtime
from fer_jax.inference.network import Network, load, model_arguments
from fer_jax.inference.runtime import to_onnx

# Every part shows all classes; no picture is in two of them.
PARTS = {
    part: [(f"{part}{n % 4}", n % 7) for n in range(14)] for part in ("train", "validation", "test")
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, "faces", PARTS)
    return folder


@pytest.fixture
def run(tmp_path: Path, data_dir: Path) -> Path:
    tests = ({"name": "faces", "test": "test"},)
    return write_run(tmp_path / "run", data_dir, sources=("faces",), test_sets=tests)


def graph_of(model: Network) -> Any:
    network = model.arrays
    arguments = model_arguments(model.config)
    return to_onnx(network["params"], network["batch_stats"], arguments, model.about)


def predict(graph: Any, images: np.ndarray) -> np.ndarray:
    return runtime.open_onnx(graph.SerializeToString(), "onnxruntime", "graph")[1](images)


def pictures(size: int, count: int) -> np.ndarray:
    return np.stack([picture(seed, size) for seed in range(count)])


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements=st.floats(-1e3, 1e3, width=32),
    )
)
@example(np.full((1, 1), 1e-45, np.float32))
def test_a_kernel_comes_back_to_half_a_step(kernel: np.ndarray):
    integers, scale = quantize.quantize_kernel(kernel)
    assert integers.dtype == np.int8 and scale.shape == kernel.shape[-1:]
    error = np.abs(integers * scale.astype(np.float64) - kernel)
    assert (error <= 0.5 * scale * (1 + 1e-5) + 1e-30).all()


def test_equal_channels_change_nothing_but_the_ranges(run: Path):
    model = load(run)
    graph, images = graph_of(model), pictures(model.image_size, 8)
    equal = quantize._Quantizer(quantize.import_onnx(), graph)
    before = equal.ranges(images)
    equal.equalize(before)
    after = equal.ranges(images)
    np.testing.assert_allclose(predict(equal.model, images), predict(graph, images), atol=1e-5)

    def unevenness(ranges: dict[str, np.ndarray], name: str) -> float:
        reached = np.abs(ranges[name]).max(axis=0)
        return float(reached.max() / np.median(reached))

    between = [
        equal.result(layer)
        for layer in equal.layers
        if len(equal.users[equal.result(layer)]) == 1
        and equal.users[equal.result(layer)][0] in equal.layers
    ]
    assert len(between) > 10
    assert np.median([unevenness(before, name) for name in between]) > 1.2
    assert np.median([unevenness(after, name) for name in between]) < 1.01


def test_the_graph_in_int8_predicts_as_the_network_does(run: Path, shared: Path):
    model = load(run)
    graph = graph_of(model)
    # Real faces, of which half give the ranges.
    faces = real_faces(shared, model.image_size, 64)
    rounded = quantize.quantize_graph(graph, faces[::2])
    here, there = predict(rounded, faces[1::2]), predict(graph, faces[1::2])
    spread = np.sqrt(np.mean((there - there.mean(axis=0)) ** 2))
    # Measured: 0.006 on average, 0.23 of the spread over faces; ranges of a quarter of the size
    # give 0.07 and 3.1 of it, kernels of 4 bits 0.035 and 1.6.
    assert np.abs(here - there).max(axis=1).mean() < 0.01
    assert np.sqrt(np.mean((here - there) ** 2)) < 0.3 * spread
    kernels = {node.input[1] for node in rounded.graph.node if node.op_type == "Conv"}
    constants = {array.name: array.data_type for array in rounded.graph.initializer}
    assert {constants[name.replace(".rounded", ".int")] for name in kernels} == {3}, "int8"
    kinds = {node.op_type for node in rounded.graph.node}
    assert "Relu" not in kinds and {"QuantizeLinear", "DequantizeLinear"} <= kinds


def real_faces(shared: Path, size: int, count: int) -> np.ndarray:
    import zipfile

    import cv2

    with zipfile.ZipFile(shared / "data" / "faces" / "jaffe.zip") as archive:
        names = [n for n in archive.namelist() if not n.endswith((".csv", "/"))][:count]
        found = [
            np.asarray(cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR))
            for name in names
        ]
    return np.stack([cv2.resize(image, (size, size)) for image in found])


def test_the_verb_takes_ranges_from_training_faces_alone(
    run: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    read: list[tuple[str, str]] = []
    images = records.Records.images
    monkeypatch.setattr(
        records.Records,
        "images",
        lambda self, *given: read.append((self.name, self.split)) or images(self, *given),
    )
    calibrated: list[np.ndarray] = []
    quantize_graph = export.quantize_graph
    monkeypatch.setattr(
        export,
        "quantize_graph",
        lambda graph, crops: calibrated.append(crops) or quantize_graph(graph, crops),
    )
    assert main(["export", f"--workdir={run}", "--quantize=int8"]) == 0
    printed = capsys.readouterr().out
    assert set(read) == {("faces", "train"), ("faces", "validation")}
    train = open_records("faces", "train", data_dir)
    np.testing.assert_array_equal(calibrated[0], train.images(np.arange(len(train)), 71))
    assert "on 14 validation images (4 clusters by subject)" in printed
    assert "only 4 clusters" in printed and "images per second in ONNX Runtime" in printed
    out = run / "export_int8"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", "config.json", "model.onnx", "model.safetensors"]
    )
    card = (out / "README.md").read_text()
    assert "Calibrated on faces of faces train." in card
    assert all(
        f"| {form} | {metric} |" in card
        for form in ("onnx", "safetensors")
        for metric in ("accuracy", "macro_f1", "ece")
    )
    assert json.loads((out / "config.json").read_text())["quantization"] == "int8"
    # Both forms predict nearly as the run does.
    faces = pictures(71, 6)
    expected = load(run).probabilities(faces)
    weights = load(out).probabilities(faces)
    static = runtime.open_onnx((out / "model.onnx").read_bytes(), "onnxruntime", "it")[1](faces)
    assert 0 < np.abs(weights - expected).max() < 0.03
    assert 0 < np.abs(static - expected).max() < 0.1


def test_evaluate_scores_it_as_a_variant(
    run: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", f"--workdir={run}", "--int8"]) == 2
    assert "run `fer-jax export --workdir=" in capsys.readouterr().err
    assert not (run / "test_access.jsonl").exists(), "it needs no test set"
    assert main(["export", f"--workdir={run}", "--quantize=int8", "--format=onnx"]) == 0
    assert main(["evaluate", f"--workdir={run}", "--int8"]) == 0
    printed = capsys.readouterr().out
    assert "faces test, int8 -> " in printed and "macro_f1" in printed
    assert len((run / "test_access.jsonl").read_text().splitlines()) == 1
    file = run / "predictions" / predictions.file_name("faces", "test")
    plain, _ = predictions.read(file)
    rounded, _ = predictions.read(file.with_name("faces.test.int8.csv"))
    np.testing.assert_array_equal(plain["record_id"], rounded["record_id"])
    apart = np.abs(plain["probabilities"] - rounded["probabilities"]).max()
    assert 0 < apart < 0.1
    scored = json.loads((run / "results.json").read_text())["sets"]
    assert [one["variant"] for one in scored] == ["", "int8"]
    # One of another network is no variant of this one.
    model = run / "export_int8" / "model.onnx"
    onnx = quantize.import_onnx()
    other = onnx.load(model)
    for one in other.metadata_props:
        one.value = '"other"' if one.key == "fingerprint" else one.value
    onnx.save(other, model)
    assert main(["evaluate", f"--workdir={run}", "--int8"]) == 2
    assert "is of another checkpoint" in capsys.readouterr().err


def test_mistakes_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]):
    for words, says in (
        (["--quantize=int8", "--format=stablehlo"], "--quantize does not support stablehlo"),
        (["--quantize=int4"], "invalid choice: 'int4'"),
    ):
        assert main(["export", f"--workdir={run}", *words]) == 2
        printed = capsys.readouterr().err
        assert says in printed and printed.count("\n") == 1


def test_what_rounds_too_much_is_not_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(quantize, "LARGEST", 1)
    assert main(["export", f"--workdir={run}", "--quantize=int8", "--format=safetensors"]) == 2
    assert "on average, more than 0.03; not written" in capsys.readouterr().err
    assert not (run / "export_int8").exists()


def test_scales_of_another_shape_are_refused(run: Path):
    from safetensors.numpy import load_file, save_file

    assert main(["export", f"--workdir={run}", "--quantize=int8", "--format=safetensors"]) == 0
    file = run / "export_int8" / "model.safetensors"
    arrays = load_file(file)
    name = next(name for name in arrays if name.endswith(quantize.SCALE))
    save_file(arrays | {name: arrays[name][:-1]}, file)
    with pytest.raises(InputError, match="is damaged: scales of another shape"):
        load(file.parent)
