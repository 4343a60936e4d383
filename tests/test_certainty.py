"""Sets of classes and answers that keep what they promise, and say where they cannot."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_runs import picture, write_run

import fer_jax
from fer_jax.__main__ import main
from fer_jax.benchmark import error_rates
from fer_jax.errors import InputError
from fer_jax.evaluation import certainty
from fer_jax.export import export
from fer_jax.inference import promises


def predictions(rng: np.random.Generator, n: int, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, k, n)
    logits = rng.normal(0, 1, (n, k)) + 1.5 * np.eye(k)[labels]
    powers = np.exp(logits)
    return labels, powers / powers.sum(axis=1, keepdims=True)


def table(labels: np.ndarray, probabilities: np.ndarray, people: np.ndarray) -> Any:
    n = len(labels)
    return {
        "label": labels,
        "probabilities": probabilities,
        "subject_id": np.char.add("p", people.astype(str)),
        "clip_id": np.full(n, ""),
        "record_id": np.arange(n).astype(str),
        "dataset": np.full(n, "set"),
        "split": np.full(n, "validation"),
    }


@pytest.mark.parametrize("promise", [0.5, 0.8, 0.9])
def test_the_threshold_of_sets_is_the_largest_that_covers(promise: float):
    rng = np.random.default_rng(0)
    labels, probabilities = predictions(rng, 400)
    group = rng.integers(0, 12, 400)
    weights = (1 / 12 / np.bincount(group))[group]
    found = certainty.set_threshold(labels, probabilities, weights, 12, promise)
    assert found is not None
    own = probabilities[np.arange(400), labels]

    def covered(threshold: float) -> float:
        shares = [np.mean(own[group == one] >= threshold) for one in range(12)]
        return float(sum(shares)) / 13  # a thirteenth group is not covered

    assert covered(found) >= promise > covered(np.nextafter(found, 1))


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_groups_carry_no_more_than_k_of_k_plus_one(groups: int):
    labels, probabilities = predictions(np.random.default_rng(1), 60 * groups)
    fitted = certainty.fit([table(labels, probabilities, np.arange(60 * groups) % groups)])
    assert fitted and fitted["groups"] == groups and fitted["of"] == "subject"
    most = groups / (groups + 1)
    for promise in promises.PROMISES:
        if promise <= most:
            assert promises.level(fitted, promise)[0] > 0
        else:
            with pytest.raises(InputError, match=f"carry at most {most:.3f}"):
                promises.level(fitted, promise)
    for wrong in (0.3, 0.805, 1.5, float("nan")):
        with pytest.raises(InputError, match="0.5 to 0.99"):
            promises.level(fitted, wrong)


@pytest.mark.parametrize("groups, promise", [(3, 0.75), (6, 0.8), (20, 0.9)])
def test_sets_keep_their_promise_in_groups_that_differ(groups: int, promise: float):
    found = error_rates.promises(groups, promise, 1.5, 150)
    error = found["label in its set"].std() / np.sqrt(150)
    assert found["label in its set"].mean() > promise - 2 * error
    # What takes images for groups does not.
    assert found["images as groups"].mean() < found["label in its set"].mean() - 0.03


def test_answers_are_right_as_often_as_promised_on_average_over_groups():
    rng = np.random.default_rng(2)
    labels, probabilities = predictions(rng, 4000)
    group = rng.integers(0, 10, 4000)
    least = certainty.answer_threshold(labels, probabilities, group, 0.9)
    assert least is not None
    answered = probabilities.max(axis=1) >= least
    right = probabilities.argmax(axis=1) == labels
    assert 0.1 < answered.mean() < 0.9
    shares = [right[answered & (group == one)].mean() for one in range(10)]
    assert np.mean(shares) == pytest.approx(0.9, abs=0.005)
    # All are answered where all are right, none where the surest are wrong.
    sure = np.eye(4)[labels]
    assert certainty.answer_threshold(labels, sure, group, 0.9) == 1.0
    assert certainty.answer_threshold((labels + 1) % 4, sure, group, 0.9) is None


def test_the_risk_coverage_area_is_the_mean_risk():
    rng = np.random.default_rng(3)
    right, top = rng.random(200) < 0.7, np.round(rng.random(200), 1)
    risks = [1 - right[top >= one].mean() for one in top]
    area, curve = certainty.risk_coverage(right, top)
    assert area == pytest.approx(np.mean(risks))
    assert curve["answered"][-1] == 1 and curve["right"][-1] == pytest.approx(right.mean())


def test_a_set_is_scored_with_intervals_by_person():
    rng = np.random.default_rng(4)
    labels, probabilities = predictions(rng, 900)
    people = rng.integers(0, 30, 900)
    fitted = certainty.fit([table(labels, probabilities, people)])
    assert fitted is not None
    new, given = predictions(rng, 600)
    found = certainty.score(table(new, given, rng.integers(0, 20, 600)), 4, fitted)
    of_sets, of_answers = promises.level(fitted, certainty.PROMISE)
    chosen = promises.sets(given, of_sets)
    assert found["coverage"] == pytest.approx(chosen[np.arange(600), new].mean())
    assert found["size"] == pytest.approx(chosen.sum(axis=1).mean())
    answered = given.max(axis=1) >= of_answers
    assert found["answered"] == pytest.approx(answered.mean())
    assert found["right"] == pytest.approx((given.argmax(axis=1) == new)[answered].mean())
    for name in ("coverage", "size", "answered", "right"):
        low, high = found["intervals"][name]
        assert low < found[name] < high


@pytest.mark.usefixtures("short_network")
def test_predictions_say_what_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run", tmp_path)
    faces = [picture(number, 48) for number in range(12)]
    model = fer_jax.load(run)
    with pytest.raises(InputError, match="has no certainty"):
        model.predict(faces, faces="crop", certainty=0.8)
    plain = model.predict(faces, faces="crop")
    top = sorted(max(one["probabilities"].values()) for (one,) in plain)
    # As evaluate writes it; half of these faces are answered.
    levels = {"0.80": [0.1, (top[5] + top[6]) / 2], "0.90": [None, None]}
    fitted = {"groups": 6, "of": "subject", "most": 6 / 7, "levels": levels}
    content = {"checkpoint": {"step": model.network.step}, "test_access": []}
    content |= {"task": "emotion", "classes": list(model.classes), "sets": []}
    content["certainty"] = {"source": fitted}
    (run / "results.json").write_text(json.dumps(content))
    export.export(fer_jax.load(run).network, tmp_path / "out", ("safetensors",), np.stack(faces))
    assert fer_jax.load(tmp_path / "out").network.about["certainty"] == {"source": fitted}
    found = fer_jax.load(run).predict(faces, faces="crop", certainty=0.8)
    for (one,), (before,) in zip(found, plain, strict=True):
        known = max(one["probabilities"].values()) > levels["0.80"][1]
        assert one["answer"] == (before["emotion"] if known else None)
        ranked = sorted(one["probabilities"], key=one["probabilities"].get, reverse=True)
        kept = [name for name in ranked if one["probabilities"][name] >= 0.1]
        assert one["candidates"] == (kept or ranked[:1])
    assert sum(one["answer"] is None for (one,) in found) == 6
    with pytest.raises(InputError, match="carry at most 0.857"):
        fer_jax.load(run).predict(faces, faces="crop", certainty=0.9)

    (tmp_path / "faces").mkdir()
    for number, face in enumerate(faces):
        cv2.imwrite(str(tmp_path / "faces" / f"{number:02}.png"), face[..., ::-1])
    words = ["predict", str(tmp_path / "faces"), f"--model={run}", "--faces=crop"]
    assert main([*words, f"--out={tmp_path / 'told'}", "--certainty=0.8"]) == 0
    with (tmp_path / "told" / "faces.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["answer"] for row in rows] == [one["answer"] or "not known" for (one,) in found]
    assert rows[0]["candidates"].split() == found[0][0]["candidates"]
    capsys.readouterr()
    for wrong, said in (("0.9", "carry at most"), ("7", "must be 0.5 to 0.99")):
        assert main([*words, f"--certainty={wrong}"]) == 2
        assert said in capsys.readouterr().err
