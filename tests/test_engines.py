"""The same probabilities from every engine, and one line for what an engine cannot read."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import picture, write_dataset, write_run

import fer_jax
from fer_jax.errors import InputError
from fer_jax.export import export
from fer_jax.inference import runtime
from fer_jax.inference.network import Network, load

OTHERS = ("onnxruntime", "openvino")


def open_network(path: Path, engine: str = "") -> Network:
    return fer_jax.load(path, engine).network


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("data")
    write_dataset(data_dir, "faces", {"train": [("a", 0)], "validation": [("b", 1)]})
    return write_run(tmp_path_factory.mktemp("runs") / "run", data_dir, sources=("faces",))


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("exported")
    export.export(load(run), out, ("safetensors", "onnx"), pictures(2))
    return out


def pictures(count: int) -> np.ndarray:
    return np.stack([picture(seed, 71) for seed in range(count)])


@pytest.mark.parametrize("engine", OTHERS)
def test_engines_agree(engine: str, run: Path, exported: Path):
    pytest.importorskip(engine)
    images = pictures(5)
    expected = open_network(run, "jax").probabilities(images)
    assert np.ptp(expected, axis=0).max() > 0.05, "the pictures must differ"
    for path in (run, exported, exported / "model.onnx"):
        opened = open_network(path, engine)
        assert (opened.engine, opened.task, opened.image_size) == (engine, "emotion", 71)
        assert opened.classes == load(run).classes
        np.testing.assert_allclose(opened.probabilities(images), expected, atol=2e-5)
        assert opened.probabilities(images[:0]).shape == (0, 7)
    many = np.resize(images, (runtime.BATCH_SIZE + 3, *images.shape[1:]))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(opened.probabilities, [many, images, many, images[:1]]))
    for result in found:
        rows = np.resize(expected, result.shape)
        np.testing.assert_allclose(result, rows, atol=2e-5)


@pytest.mark.parametrize("engine", OTHERS)
def test_mirror_images_are_averaged_if_the_run_says_so(
    engine: str, run: Path, exported: Path, tmp_path: Path
):
    pytest.importorskip(engine)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported / "model.onnx")
    for one in model.metadata_props:
        if one.key == "config":
            one.value = json.dumps(json.loads(one.value) | {"test_time_flip": True})
    onnx.save(model, tmp_path / "flipped.onnx")
    images = pictures(3)
    plain = open_network(exported / "model.onnx", engine).probabilities
    expected = (plain(images) + plain(np.ascontiguousarray(images[:, :, ::-1]))) / 2
    flipped = open_network(tmp_path / "flipped.onnx", engine).probabilities(images)
    np.testing.assert_allclose(flipped, expected, atol=1e-6)
    assert np.abs(flipped - plain(images)).max() > 1e-3


def test_the_kind_of_file_selects_the_engine(exported: Path, tmp_path: Path):
    assert open_network(exported).engine == "jax"
    assert open_network(exported / "model.onnx").engine == "onnxruntime"
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    assert fer_jax.load(tmp_path).network.engine == "onnxruntime"
    with pytest.raises(
        InputError, match="has no model.safetensors, which JAX reads; run fer-jax export"
    ):
        open_network(tmp_path, "jax")
    with pytest.raises(InputError, match="did you mean 'openvino'"):
        open_network(tmp_path, "openvine")


@pytest.mark.parametrize("engine, extra", [("onnxruntime", "export"), ("openvino", "openvino")])
def test_an_absent_engine_names_its_extra(
    engine: str, extra: str, exported: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(InputError, match=rf"is not installed; pip install -e '\.\[{extra}\]'"):
        open_network(exported / "model.onnx", engine)


@pytest.mark.parametrize("engine", OTHERS)
def test_what_is_not_an_export_is_refused_in_a_line(engine: str, exported: Path, tmp_path: Path):
    pytest.importorskip(engine)
    onnx = pytest.importorskip("onnx")
    file, whole = tmp_path / "model.onnx", (exported / "model.onnx").read_bytes()
    helper = onnx.helper
    value = helper.make_tensor_value_info("x", 1, [1])
    out = helper.make_tensor_value_info("y", 1, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    foreign = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    foreign.ir_version = 8
    contents = (b"", b"<html>", whole[:-500], whole[:50], foreign.SerializeToString())
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(
            InputError, match="model.onnx' (is damaged|was not written by)"
        ) as caught:
            open_network(file, engine)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", OTHERS)
def test_engines_send_no_usage_data(engine: str, exported: Path, tmp_path: Path):
    pytest.importorskip(engine)
    # In a process of its own: they would report when they are imported, and leave files.
    program = (
        "import sys; from pathlib import Path; from fer_jax.inference import runtime; "
        "runtime.open_onnx(Path(sys.argv[1]).read_bytes(), sys.argv[2], 'it'); "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "CI"))}
    done = subprocess.run(
        [sys.executable, "-c", program, exported / "model.onnx", engine],
        env=environment | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        cwd=Path(fer_jax.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "intel").exists() and not (tmp_path / ".ses").exists()


CHANGES = {
    "numbers that are not finite": lambda array: array * np.float32(np.nan),
    "got int32": lambda array: array.astype(np.int32),
    "got float64": lambda array: array.astype(np.float64),
}


@pytest.mark.parametrize("says", CHANGES)
def test_weights_that_are_no_weights_are_refused(says: str, exported: Path, tmp_path: Path):
    folder = Path(shutil.copytree(exported, tmp_path / "exported"))
    arrays = load_file(folder / "model.safetensors")
    name = min(arrays)
    arrays[name] = CHANGES[says](arrays[name])
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(InputError, match=says):
        open_network(folder, "jax")


@pytest.mark.parametrize("engine", OTHERS)
def test_a_crafted_onnx_is_one_line(
    engine: str, exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip(engine)
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"

    def refused(match: str) -> None:
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=match) as raised:
            open_network(path, engine).probabilities(pictures(2))
        assert "\n" not in str(raised.value)

    for name in ("task", "classes", "image_size", "step", "config"):
        for value in ("9" * 30, "[]", '{"width": 1}', '"x"', "NaN", "[" * 100_000):
            model = onnx.load(exported / "model.onnx")
            if name != "step" or not value.isdecimal():
                next(p for p in model.metadata_props if p.key == name).value = value
                refused("was not written by this fer-jax export|is damaged, or ")
    model = onnx.load(exported / "model.onnx")
    for array in model.graph.initializer:
        if array.data_type == onnx.TensorProto.FLOAT:
            array.raw_data = np.full(array.dims, np.nan, np.float32).tobytes()
    refused("it does not compute probabilities")
    model = onnx.load(exported / "model.onnx")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    refused("is damaged, or .* cannot read it")
    with path.open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(InputError, match="is over 2 GiB"):
        open_network(path, engine)
    assert capfd.readouterr().err == ""
