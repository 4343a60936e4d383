"""Models that see no pixel: what they know, and what pixels add to it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fer_jax import results
from fer_jax.config import default_config, to_json
from fer_jax.errors import InputError
from fer_jax.evaluation import baselines, metrics, predictions, run_scores, scoring
from fer_jax.schema import INTERESTS

# Interest by content, as in the published laboratory videos: 55, 65 and 83 in 100.
INTERESTED = {"food_market": 55, "cosmetics_fashion": 65, "car_tech": 83}


def records(source: str, interested: dict[str, int], unlabelled: int = 0) -> Any:
    """Training records, 100 for each content, as `baselines.write` reads them."""
    labels = [np.repeat([1, 0], [yes, 100 - yes]) for yes in interested.values()]
    columns = {
        "source": np.full(100 * len(labels) + unlabelled, source),
        "content": np.concatenate(
            [np.repeat(list(interested), 100), np.full(unlabelled, next(iter(interested)))]
        ),
        "interest": np.concatenate([*labels, np.full(unlabelled, -1)]),
    }
    return SimpleNamespace(columns=columns, labels=lambda task: columns[task])


@pytest.fixture
def counts(tmp_path: Path) -> baselines.LabelCounts:
    baselines.write(tmp_path, [records("controlled", INTERESTED, unlabelled=7)], "interest")
    found = baselines.read(tmp_path, INTERESTS)
    assert found is not None
    return found


def test_counts_come_back(counts: baselines.LabelCounts):
    assert {content: row.tolist() for (_, content), row in counts.items()} == {
        content: [100 - yes, yes] for content, yes in INTERESTED.items()
    }


def ask(counts: baselines.LabelCounts, source: str, content: str) -> np.ndarray:
    return baselines.pixel_free(counts, np.asarray([source]), np.asarray([content]))[0]


def test_content_alone_predicts_interest(counts: baselines.LabelCounts):
    assert ask(counts, "controlled", "car_tech")[1] == pytest.approx(0.83, abs=0.005)
    assert ask(counts, "controlled", "food_market")[1] == pytest.approx(0.55, abs=0.005)
    # A source that training had not: the content still tells; and the other way round.
    assert ask(counts, "social", "car_tech")[1] == pytest.approx(0.83, abs=0.005)
    overall = sum(INTERESTED.values()) / 300
    assert ask(counts, "controlled", "sports")[1] == pytest.approx(overall, abs=0.005)
    assert ask(counts, "social", "sports")[1] == pytest.approx(overall, abs=0.005)


def test_what_training_never_had_keeps_a_chance():
    only = {("lab", "a"): np.asarray([10.0, 0.0, 0.0])}
    asked = baselines.pixel_free(only, np.asarray(["lab", "x"]), np.asarray(["a", "a"]))
    np.testing.assert_allclose(asked.sum(axis=1), 1)
    assert (asked > 0).all()
    assert asked[0, 0] > 0.95


def test_source_and_content_act_together():
    counts = {
        ("lab", "a"): np.asarray([400.0, 100.0]),
        ("lab", "b"): np.asarray([250.0, 250.0]),
        ("web", "b"): np.asarray([100.0, 400.0]),
    }
    # web/a is not in training. The sources' and the contents' odds multiply.
    web, a, overall = 100 / 400, 400 / 100, 750 / 750
    asked = ask(counts, "web", "a")
    assert asked[0] / asked[1] == pytest.approx(web * a / overall, rel=0.02)


def test_the_majority_is_what_chance_gives():
    labels = np.repeat([0, 1, 2], [20, 70, 10])
    scored = baselines.majority(labels, 4)
    assert scored["accuracy"] == 0.7
    assert scored["balanced_accuracy"] == pytest.approx(1 / 3)
    assert scored["pr_auc"] == pytest.approx(1 / 3)  # of 0.2, 0.7 and 0.1; the fourth is absent
    assert scored["roc_auc"] == 0.5
    guess = np.random.default_rng(0).dirichlet(np.ones(4), 100_000)
    many = np.random.default_rng(1).choice(3, 100_000, p=[0.2, 0.7, 0.1])
    assert metrics.score(many, guess)["pr_auc"] == pytest.approx(1 / 3, abs=0.01)


def table(n: int, pixels: bool) -> dict[str, np.ndarray]:
    """A test set in which interest depends on content; the model sees it, or pixels too."""
    rng = np.random.default_rng(0)
    content = rng.choice(list(INTERESTED), n)
    labels = (rng.random(n) < np.asarray([INTERESTED[c] for c in content]) / 100).astype(int)
    chance = np.asarray([INTERESTED[c] / 100 for c in content])
    if pixels:
        chance = np.clip(chance + 0.4 * (2 * labels - 1), 0.02, 0.98)
    return {
        "record_id": np.asarray([f"r{i}" for i in range(n)]),
        "subject_id": np.asarray([f"s{i % 40}" for i in range(n)]),
        "clip_id": np.full(n, ""),
        "source": np.full(n, "controlled"),
        "content": content,
        "gender": np.full(n, ""),
        "age": np.full(n, -1.0),
        "label": labels,
        "probabilities": np.stack([1 - chance, chance], axis=1),
    }


def test_what_pixels_add_is_shown(counts: baselines.LabelCounts):
    with_pixels = scoring.score_table(table(800, True), 2, counts=counts)[0]["pixel_free"]
    without = scoring.score_table(table(800, False), 2, counts=counts)[0]["pixel_free"]
    assert with_pixels["roc_auc"] == pytest.approx(without["roc_auc"])
    assert with_pixels["roc_auc"] > 0.6  # chance would be 0.5: content alone is worth that
    gain = with_pixels["gain"]["roc_auc"]
    assert gain["interval"][0] > 0.1 and gain["p"] < 0.001
    gain = without["gain"]["roc_auc"]
    assert gain["difference"] == 0 and gain["p"] == 1
    low, high = with_pixels["intervals"]["roc_auc"]
    assert low < with_pixels["roc_auc"] < high


def test_runs_without_counts_say_so(tmp_path: Path):
    assert baselines.read(tmp_path, INTERESTS) is None
    scored, _ = scoring.score_table(table(100, True), 2)
    assert scored["pixel_free"] is None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("lab,a,anger,3", "line 2: not a source"),
        ("lab,a,interested,many", "line 2: not a source"),
        ("lab,a", "line 2: 2 values, not 4"),
        ("", "has no labels"),
    ],
)
def test_counts_that_make_no_sense_are_refused(tmp_path: Path, row: str, says: str):
    (tmp_path / baselines.FILE).write_text(",".join(baselines.COLUMNS) + "\n" + row)
    with pytest.raises(InputError, match=says):
        baselines.read(tmp_path, INTERESTS)


def test_annotators_agree_with_the_label_in_a_share_of_their_votes():
    def voted(votes: list[list[float]], labels: list[int], seed: int = -1) -> Any:
        columns = {"emotion_probabilities": np.asarray(votes, np.float32)}
        columns |= {"emotion": np.asarray(labels), "seed": np.full(len(labels), seed)}
        return SimpleNamespace(columns=columns, labels=lambda task: columns[task])

    votes = [[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.4, 0.3, 0.3]]
    found = baselines.annotators(voted(votes, [0, 0, 1, -1]), "emotion")
    assert found == pytest.approx({"n": 3, "accuracy": 0.8, "balanced_accuracy": 0.85})
    assert baselines.annotators(voted(votes, [0, 0, 1, -1], seed=5), "emotion") is None
    assert baselines.annotators(voted(np.eye(3).tolist(), [0, 1, 2]), "emotion") is None


def test_results_hold_them(tmp_path: Path):
    config = default_config()
    config.sources, config.task = ("lab",), "interest"
    (tmp_path / "config.json").write_text(to_json(config))
    baselines.write(tmp_path, [records("controlled", INTERESTED)], "interest")
    (tmp_path / "predictions").mkdir()
    rows = table(200, True)
    rows |= {name: np.full(200, "x") for name in predictions.TEXT if name not in rows}
    rows |= {"frame_index": np.zeros(200, int), "dataset": np.full(200, "web")}
    rows |= {"split": np.full(200, "test")}
    predictions.write(tmp_path / "predictions" / "web.test.csv", rows, INTERESTS)
    scored = run_scores.score_run(tmp_path)
    shown = run_scores.summary(results.plain(scored))
    (one,) = scored["sets"]
    header, line = (text.split() for text in shown.splitlines()[:2])
    assert results.number(one["pixel_free"]["balanced_accuracy"]) in line
    assert results.number(one["majority"]["pr_auc"]) in line
    assert "majority" in header
    config.task = "emotion"
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / baselines.FILE).unlink()
    with pytest.raises(InputError, match="is about not_interested, interested, not anger"):
        run_scores.score_run(tmp_path)
