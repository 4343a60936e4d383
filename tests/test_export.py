import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_runs import picture, write_dataset, write_run

from fer_jax import storage
from fer_jax.__main__ import main
from fer_jax.data.augment import normalize
from fer_jax.data.records import open_records
from fer_jax.errors import InputError
from fer_jax.export import export
from fer_jax.inference.network import load, predict_step
from fer_jax.inference.runtime import to_onnx
from fer_jax.models import xception

PARTS = {part: [(f"{part}{n % 3}", n % 7) for n in range(7)] for part in ("train", "validation")}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, "faces", PARTS)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", data_dir, sources=("faces",))


def crops(size: int, count: int = 3) -> np.ndarray:
    return np.stack([picture(seed, size) for seed in range(count)])


@pytest.mark.parametrize(
    "size, head, kind",
    [
        *((71, "gap", {}), (80, "mlp", {}), (98, "gap", {})),
        (48, "gap", {"stem_stride": 1, "grayscale": True}),
    ],
)
def test_the_graph_predicts_as_the_network_does(size: int, head: str, kind: dict[str, Any]):
    runtime = pytest.importorskip("onnxruntime")
    model = {"num_classes": 3, "width": 0.05, "num_middle_blocks": 2, "image_size": size}
    model |= {"head": head, "dropout": 0.5, "dtype": "float32", "batch_norm_momentum": 0.9} | kind
    params, batch_stats = xception.init(jax.random.key(1), **model)
    rng = np.random.default_rng(0)

    def disturbed(path: tuple, array: jax.Array) -> np.ndarray:
        # Fresh scales are 1 and means 0: folding them wrongly would not show.
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 2, array.shape).astype(np.float32)
        return np.asarray(array) + 0.2 * rng.standard_normal(array.shape).astype(np.float32)

    params = jax.tree.map_with_path(disturbed, params)
    batch_stats = jax.tree.map_with_path(disturbed, batch_stats)
    proto = to_onnx(params, batch_stats, model, {"task": "emotion"})
    session = runtime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = crops(size)
    network = {"params": params, "batch_stats": batch_stats, "ema": {}}
    logits, _ = xception.apply(
        xception.graphdef(**model), params, batch_stats, normalize(jax.numpy.asarray(images))
    )
    expected = predict_step(network, jax.numpy.asarray(images), graphdef=xception.graphdef(**model))
    for count in (1, 3):
        outputs = session.run(["probabilities", "logits"], {"images": images[:count]})
        np.testing.assert_allclose(outputs[0], expected[:count], atol=2e-5)
        np.testing.assert_allclose(outputs[1], logits[:count], rtol=1e-4, atol=1e-4)
    assert np.ptp(np.asarray(logits), axis=0).min() > 1e-3, "the pictures must differ"
    assert json.loads(session.get_modelmeta().custom_metadata_map["task"]) == "emotion"


def test_every_form_is_checked_and_written(
    run: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("onnxruntime")
    (run / "results.json").unlink(missing_ok=True)
    out = tmp_path / "export"
    with storage.lock(out):
        assert main(["export", f"--workdir={run}", f"--out={out}"]) == 2
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "checked on 7 validation faces" in printed
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", "config.json", *export.FILES.values()]
    )
    card = (out / "README.md").read_text()
    assert "| faces | train | validation |" in card and "Not scored" in card
    # The exported network loads and predicts the same to the bit.
    records = open_records("faces", "validation", data_dir)
    faces = [records.image(row) for row in range(len(records))]
    np.testing.assert_array_equal(load(out).probabilities(faces), load(run).probabilities(faces))
    images = records.images(np.arange(5), 71)
    back = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    assert set(back.platforms) == {"cpu", "cuda"}
    np.testing.assert_allclose(back.call(images), load(run).probabilities(faces[:5]), atol=1e-5)


def test_what_predicts_differently_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("fer_jax.inference.runtime.EPSILON", 0.05)
    with pytest.raises(InputError, match="onnx: a probability differs by 0.* not written"):
        export.export(load(run), tmp_path / "out", ("safetensors", "onnx"), crops(71))
    assert not (tmp_path / "out").exists()


def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(*words: str) -> str:
        assert main(["export", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "unknown --format 'onxx'; did you mean 'onnx'" in refused(
        f"--workdir={run}", "--format=onxx"
    )
    assert "does not exist" in refused(f"--workdir={tmp_path / 'none'}")
    assert main(["export", f"--workdir={run}", f"--data_dir={tmp_path}"]) == 2
    assert "name their folder with --data_dir" in capsys.readouterr().err


def test_a_damaged_export_is_refused(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    export.export(load(run), out, ("safetensors",), crops(71))
    file = out / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="is damaged"):
        load(out)
    file.write_bytes(whole)
    config = json.loads((out / "config.json").read_text())
    config["config"]["model"]["width"] = 0.06
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is of another network: batch_stats/"):
        load(out)
    config["format"] = "other"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="was not written by fer-jax export"):
        load(out)


def test_a_folder_never_holds_two_networks(run: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    model = load(run)
    export.export(model, out, ("safetensors", "onnx"), crops(71))
    export.export(model, out, ("safetensors",), crops(71))  # of the same network: beside it
    assert (out / "model.onnx").is_file()
    doubled = jax.tree.map(lambda array: 2 * array, model.arrays["params"])
    other = dataclasses.replace(
        model, about=model.about | {"step": 2}, arrays=model.arrays | {"params": doubled}
    )
    with pytest.raises(InputError, match=r"has model.onnx of another network \(step 1\)"):
        export.export(other, out, ("safetensors",), crops(71))
    assert load(out).fingerprint() == model.fingerprint(), "it is as it was"
    export.export(other, out, ("safetensors", "onnx"), crops(71))
    assert load(out).fingerprint() == other.fingerprint()


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_other_files_are_not_replaced(run: Path, tmp_path: Path, name: str):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"already has a {name} that fer-jax export did not write"):
        export.export(load(run), tmp_path, ("safetensors",), crops(71))
    assert (tmp_path / name).read_text() == "{}"


def test_the_card_has_scores_with_intervals(run: Path, data_dir: Path, tmp_path: Path):
    interval = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "ece"), [0.4, 0.6])
    one = {
        "dataset": "faces",
        "split": "test",
        "variant": "",
        "n": 7.0,
        "n_subjects": 3,
        "chance": 0.2,
    }
    one |= dict.fromkeys(interval, 0.5) | {"intervals": interval}
    one |= {"caveats": ["only 3 clusters (by subject): rough intervals"], "curves": []}
    one |= {"errors": [{"record_id": "faces/secret"}]}
    scores = {"sets": [one], "classes": list(load(run).classes), "task": "emotion"}
    scores |= {"test_access": [], "checkpoint": {"step": load(run).step}}
    (run / "results.json").write_text(json.dumps(scores))
    export.export(load(run), tmp_path / "out", ("safetensors",), crops(71))
    (run / "results.json").unlink()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| faces test | 7 | 3 | 0.500 [0.400, 0.600] |" in card
    assert "- faces test: only 3 clusters (by subject): rough intervals" in card
    # The page of an export shows them, too; no record is named in what is handed on.
    beside = json.loads((tmp_path / "out" / "results.json").read_text())
    assert beside["sets"][0]["accuracy"] == 0.5 and "secret" not in json.dumps(beside)
    export.export(load(run), tmp_path / "out", ("safetensors",), crops(71))
    assert not (tmp_path / "out" / "results.json").exists(), "the run has no scores now"
    # Scores of another checkpoint are not this network's.
    (run / "results.json").write_text(json.dumps(scores | {"checkpoint": {"step": 99}}))
    export.export(load(run), tmp_path / "out", ("safetensors",), crops(71))
    (run / "results.json").unlink()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the scores of the run are of step 99." in card and "0.500" not in card
    assert not (tmp_path / "out" / "results.json").exists()
