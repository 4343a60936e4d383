"""The temperature that made it is found; priors of a new place are; labels there are not read."""

import json
from pathlib import Path

import numpy as np
import pytest

from fer_jax import results
from fer_jax.config import default_config, read_config, to_json
from fer_jax.evaluation import calibration, metrics, predictions, run_scores
from fer_jax.schema import EMOTIONS

UNIFORM = np.full(7, 1 / 7)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def drawn(
    n: int, prior: np.ndarray, temperature: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that are right once divided by the temperature.

    Features are normal around the class's corner, so the posterior at a uniform prior is known.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(prior), n, p=prior)
    features = 2 * np.eye(len(prior))[labels] + rng.normal(size=(n, len(prior)))
    return labels, softmax(2 * features * temperature)


def write_table(
    workdir: Path, dataset: str, split: str, labels: np.ndarray, probabilities: np.ndarray
) -> Path:
    n = len(labels)
    table = {name: np.full(n, "x") for name in predictions.TEXT} | {
        "dataset": np.full(n, dataset),
        "split": np.full(n, split),
        "record_id": np.asarray([f"{dataset}/{split}/{i}" for i in range(n)]),
        "subject_id": np.asarray([f"s{i % 40}" for i in range(n)]),
        "clip_id": np.full(n, ""),
        "frame_index": np.zeros(n, int),
        "age": np.full(n, -1.0),
        "label": labels,
        "probabilities": probabilities,
    }
    (workdir / "predictions").mkdir(exist_ok=True)
    file = workdir / "predictions" / predictions.file_name(dataset, split)
    predictions.write(file, table, EMOTIONS)
    return file


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float):
    labels, probabilities = drawn(20_000, UNIFORM, temperature)
    found = calibration.fit_temperature(labels, probabilities)
    # The standard error of an estimate from 20,000 images is about 0.01 of it.
    assert found == pytest.approx(temperature, rel=0.03)
    calibrated = calibration.with_temperature(probabilities, found)
    assert metrics.score(labels, calibrated)["ece"] < 0.01
    np.testing.assert_array_equal(calibrated.argmax(axis=1), probabilities.argmax(axis=1))
    losses = [
        metrics.losses(labels, calibration.with_temperature(probabilities, found * factor)).mean()
        for factor in (0.98, 1.0, 1.02)
    ]
    assert losses[1] == min(losses)


def test_temperatures_end_somewhere():
    labels = np.arange(70) % 7
    sure = np.eye(7)[labels] * 0.3 + 0.1
    # Always right: the surer the better, until the loss is 0. Always wrong: the less sure.
    found = calibration.fit_temperature(labels, sure)
    assert calibration.COLDEST <= found < 0.05
    assert metrics.losses(labels, calibration.with_temperature(sure, found)).max() < 1e-12
    wrong = np.eye(7)[(labels + 1) % 7] * 0.3 + 0.1
    assert calibration.fit_temperature(labels, wrong) == pytest.approx(calibration.HOTTEST)
    assert np.isfinite(calibration.with_temperature(np.eye(7), calibration.COLDEST)).all()


def test_priors_of_another_place_are_found_without_its_labels():
    prior = np.asarray([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02])
    labels, probabilities = drawn(20_000, prior, 1.0)
    found = calibration.shifted_prior(probabilities, UNIFORM)
    np.testing.assert_allclose(found, prior, atol=0.01)
    corrected = calibration.with_prior(probabilities, UNIFORM, found)
    before, after = metrics.score(labels, probabilities), metrics.score(labels, corrected)
    assert after["accuracy"] > before["accuracy"] + 0.02
    assert after["loss"] < before["loss"]
    unchanged = calibration.with_prior(probabilities, UNIFORM, UNIFORM)
    np.testing.assert_allclose(unchanged, probabilities)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored run that is three times too sure, and a test set of other class shares."""
    workdir = tmp_path_factory.mktemp("run")
    config = default_config()
    config.sources = ("lab",)
    (workdir / "config.json").write_text(to_json(config))
    about = {"relation": "cross_domain", "near_duplicates": None}
    (workdir / "test_sets.json").write_text(json.dumps({"wild.test.csv": about}))
    write_table(workdir, "lab", "validation", *drawn(4000, UNIFORM, 3.0, seed=1))
    prior = np.asarray([0.55, 0.2, 0.05, 0.05, 0.05, 0.05, 0.05])
    write_table(workdir, "wild", "test", *drawn(1000, prior, 3.0, seed=2))
    return workdir


def test_validation_calibrates_and_is_no_test(workdir: Path):
    scored = run_scores.score_run(workdir)
    assert scored["calibration"]["temperature"] == pytest.approx(3, rel=0.1)
    assert scored["calibration"]["sets"] == ["lab validation"]
    assert [one["dataset"] for one in scored["sets"]] == ["wild"]
    assert [one["relation"] for one in scored["validation"]] == ["validation"]
    assert np.isnan(scored["means"]["within"]["accuracy"])
    (one,) = scored["sets"]
    table, _ = predictions.read(workdir / "predictions" / "wild.test.csv")
    expected = calibration.with_temperature(
        table["probabilities"], scored["calibration"]["temperature"]
    )
    for name in ("ece", "loss"):
        value = metrics.score(table["label"], expected)[name]
        assert one["calibrated"][name] == pytest.approx(value, abs=1e-12)
        low, high = one["calibrated"]["intervals"][name]
        assert low < value < high < one[name]
    assert "lab validation" in run_scores.summary(results.plain(scored))


def test_a_test_sets_labels_do_not_change_the_temperature(workdir: Path, tmp_path: Path):
    before = calibration.of_run(workdir, read_config(workdir))
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    write_table(tmp_path, "lab", "validation", *drawn(4000, UNIFORM, 3.0, seed=1))
    labels, probabilities = drawn(1000, UNIFORM, 0.2, seed=3)
    write_table(tmp_path, "wild", "test", (labels + 1) % 7, probabilities)
    after = calibration.of_run(tmp_path, read_config(tmp_path))
    assert before is not None and after is not None
    assert before["temperature"] == after["temperature"]


def test_label_shift_is_a_variant_beside_the_plain_table(workdir: Path, tmp_path: Path):
    fitted = calibration.of_run(workdir, read_config(workdir))
    assert fitted is not None
    for name in ("config.json", "test_sets.json", "predictions/lab.validation.csv"):
        file = workdir / name
        target = tmp_path / file.relative_to(workdir)
        target.parent.mkdir(exist_ok=True)
        target.write_text(file.read_text())
    plain = tmp_path / "predictions" / "wild.test.csv"
    plain.write_text((workdir / "predictions" / "wild.test.csv").read_text())
    written = calibration.write_label_shift(plain, fitted)
    assert written.name == "wild.test.label_shift.csv"
    # Without labels it is the same: they are not read.
    labelled, classes = predictions.read(written)
    table, _ = predictions.read(plain)
    predictions.write(plain, table | {"label": np.full(len(table["label"]), -1)}, classes)
    blind, _ = predictions.read(calibration.write_label_shift(plain, fitted))
    np.testing.assert_array_equal(labelled["probabilities"], blind["probabilities"])
    predictions.write(plain, table, classes)
    calibration.write_label_shift(plain, fitted)
    scored = json.loads(results.write(tmp_path, run_scores.score_run(tmp_path)).read_text())
    by_variant = {one["variant"]: one for one in scored["sets"]}
    assert by_variant["label_shift"]["accuracy"] > by_variant[""]["accuracy"]
    assert by_variant["label_shift"]["calibrated"] is None
    # A variant is no other test set: the means are the plain tables'.
    assert scored["means"]["cross_domain"]["accuracy"] == by_variant[""]["accuracy"]
    assert "wild test label_shift" in run_scores.summary(scored)


def test_without_validation_nothing_is_calibrated(workdir: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    write_table(tmp_path, "wild", "test", *drawn(100, UNIFORM, 3.0))
    scored = run_scores.score_run(tmp_path)
    assert scored["calibration"] is None and scored["validation"] == []
    assert scored["sets"][0]["calibrated"] is None
    assert "n/a" in run_scores.summary(results.plain(scored))
