"""Draws are weighted metrics to the last digit; intervals cover the truth, naive ones do not."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fer_jax.__main__ import main
from fer_jax.benchmark import statistics
from fer_jax.evaluation import bootstrap, metrics, scoring


@st.composite
def clustered(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels that may miss classes, probabilities that are often tied, uneven clusters."""
    n, k = draw(st.integers(2, 60)), draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, draw(st.integers(1, k)), n)
    levels = draw(st.sampled_from([2, 5, 1000]))
    raw = rng.integers(1, levels + 1, (n, k)).astype(np.float64)
    cluster = rng.integers(0, draw(st.integers(2, 9)), n)
    return labels, raw / raw.sum(axis=1, keepdims=True), cluster


# Clusters of thirds and halves and a single class: no rounding may pass for a negative.
ONE_CLASS = (np.zeros(5, int), np.tile([0.25, 0.75], (5, 1)), np.asarray([0, 1, 1, 2, 1]))


@settings(deadline=None, max_examples=100)
@given(clustered(), st.booleans(), st.integers(0, 2**32))
@example(ONE_CLASS, True, 0)
def test_a_draw_is_the_weighted_metric(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], equal_clusters: bool, seed: int
):
    labels, probabilities, cluster = case
    of = bootstrap.sample(labels, cluster, probabilities.shape[1], equal_clusters=equal_clusters)
    if len(of.scale) < 2:
        return
    prepared = bootstrap.prepare(labels, probabilities, of.cluster, len(of.scale))
    ((drawn, left_out),) = bootstrap.replicates(
        [prepared], of.sizes, scale=of.scale, num_draws=4, seed=seed
    )
    counts = bootstrap.draw(len(of.scale), 4, np.random.default_rng(seed))
    for found, weightings in ((drawn, counts), (left_out, 1 - np.eye(len(of.scale)))):
        for number, weighting in enumerate(weightings.T):
            weights = weighting[of.cluster] * of.scale[of.cluster]
            expected = metrics.score(labels, probabilities, weights)
            for name in (*bootstrap.SCALARS, *bootstrap.BY_CLASS, "prevalence"):
                np.testing.assert_allclose(
                    found[name][number], expected[name], rtol=0, atol=1e-9, err_msg=name
                )


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch):
    labels, (probabilities,), cluster = statistics.simulate(30, np.random.default_rng(0))
    of = bootstrap.sample(labels, cluster, 7)
    whole, _ = bootstrap.score(of, [probabilities], num_draws=50)
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 7 * len(labels))
    blocks, _ = bootstrap.score(of, [probabilities], num_draws=50)
    for name in bootstrap.SCALARS:
        # Sums over other numbers of columns round otherwise.
        np.testing.assert_allclose(
            whole[0]["intervals"][name], blocks[0]["intervals"][name], rtol=1e-12
        )


def test_a_draw_takes_one_cluster_fewer_than_there_are():
    counts = bootstrap.draw(8, 4000, np.random.default_rng(0))
    assert (counts.sum(axis=0) == 7).all()
    # The variance of a drawn mean is then the unbiased one: s^2 / n.
    values = np.random.default_rng(1).normal(size=8)
    means = values @ counts / 7
    assert means.var() == pytest.approx(values.var(ddof=1) / 8, rel=0.1)


def test_errors_of_a_mean_are_the_textbooks():
    values = np.random.default_rng(0).normal(size=20)
    left_out = (values.sum() - values) / 19
    textbook = values.std(ddof=1) / 20**0.5
    assert bootstrap.jackknife_error(values.mean(), left_out) == pytest.approx(textbook)
    draws = values @ bootstrap.draw(20, 20_000, np.random.default_rng(1)) / 19
    assert bootstrap.bootstrap_error(values.mean(), draws) == pytest.approx(textbook, rel=0.02)
    few = np.asarray([0.1, -0.1, np.nan])
    assert bootstrap.standard_error(0, few, np.zeros(0)) == pytest.approx(0.1)
    assert bootstrap.standard_error(0, few, few) == pytest.approx(0.1)
    assert bootstrap.standard_error(0, few, 2 * few) == pytest.approx(0.2)
    assert np.isnan(bootstrap.standard_error(0, np.full(2, np.nan), np.zeros(0)))


def test_many_clusters_need_no_jackknife(monkeypatch: pytest.MonkeyPatch):
    labels, (probabilities,), cluster = statistics.simulate(30, np.random.default_rng(0))
    of = bootstrap.sample(labels, cluster, 7)
    monkeypatch.setattr(bootstrap, "JACKKNIFE_CLUSTERS", 29)
    (scored,), (drawn,) = bootstrap.score(of, [probabilities], num_draws=50)
    assert not len(drawn.left_out["pr_auc"]) and len(drawn.draws["pr_auc"]) == 50
    assert np.isfinite(scored["intervals"]["pr_auc"]).all()


def test_clusters_are_subjects_else_clips_else_images():
    table = {
        "subject_id": np.asarray(["a", "a", "", "", "", "a"]),
        "clip_id": np.asarray(["1", "2", "a", "a", "", "1"]),
        "record_id": np.asarray(["u", "v", "w", "x", "a", "z"]),
    }
    cluster, kind = bootstrap.clusters(table)
    assert kind == "subject+clip+image"
    assert len(set(cluster)) == 3
    assert cluster[0] == cluster[1] == cluster[5] and cluster[2] == cluster[3]
    table["subject_id"] = np.full(6, "one")
    assert bootstrap.clusters(table)[1] == "subject"


def test_unequal_clusters_count_for_fewer():
    assert bootstrap.effective_number(np.asarray([5, 5, 5, 5])) == pytest.approx(4)
    assert bootstrap.effective_number(np.asarray([97, 1, 1, 1])) == pytest.approx(1.06, abs=0.01)
    assert bootstrap.effective_number(np.zeros(4)) == 0
    of = bootstrap.sample(np.asarray([0, 0, 1, 1, 1]), np.asarray([3, 4, 3, 3, 3]), 3)
    degrees, by_class = of.degrees()
    assert degrees == pytest.approx(25 / 17 - 1)
    np.testing.assert_allclose(by_class, [1, 0, -1])


def test_intervals_cover_the_truth_and_naive_ones_visibly_do_not():
    ours, naive = statistics.covered(50, 300)
    # 2,100 intervals together; one metric's 300 may be off by a standard error of 1.3 points.
    assert 0.93 <= np.mean(list(ours.values())) <= 0.97
    for name in bootstrap.SCALARS:
        assert 0.92 <= ours[name].mean() <= 0.98, name
        assert naive[name].mean() < 0.85, name


def test_what_no_draw_shows_has_no_interval():
    labels = np.arange(40) % 3
    right = np.eye(4)[labels] * 0.9 + 0.025
    of = bootstrap.sample(labels, np.arange(40) // 5, 4)
    (scored,), _ = bootstrap.score(of, [right])
    # All right everywhere, and a class that does not occur.
    assert scored["accuracy"] == 1 and np.isnan(scored["intervals"]["accuracy"]).all()
    assert np.isnan(scored["intervals"]["class_pr_auc"][3]).all()
    assert scored["undefined_draws"]["class_pr_auc"][3] == 1
    (alone,), _ = bootstrap.score(bootstrap.sample(labels, np.zeros(40), 4), [right])
    assert alone["n_clusters"] == 1
    assert all(np.isnan(bounds).all() for bounds in alone["intervals"].values())
    # One person has nearly all images: the others say nothing of what persons differ in.
    wrong = np.roll(right, 1, axis=0)
    mostly = np.where(np.arange(40) < 38, 0, np.arange(40))
    (scored,), _ = bootstrap.score(bootstrap.sample(labels, mostly, 4), [wrong])
    assert np.isnan(scored["intervals"]["loss"]).all()


def test_draws_without_a_class_are_counted():
    labels = np.asarray([0, 1] * 10 + [2, 0])
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), len(labels))
    cluster = np.arange(len(labels)) // 2
    (scored,), drawn = bootstrap.score(bootstrap.sample(labels, cluster, 3), [probabilities])
    missing = np.isnan(drawn[0].draws["class_pr_auc"][:, 2]).mean()
    # One of 11 clusters is not among 10 drawn.
    assert missing == pytest.approx((10 / 11) ** 10, abs=0.04)
    assert scored["undefined_draws"]["class_pr_auc"][2] == missing
    assert "accuracy" not in scored["undefined_draws"]


def test_intervals_stay_where_the_metric_can_be():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, (probabilities,), cluster = statistics.simulate(4, rng)
        (scored,), _ = bootstrap.score(bootstrap.sample(labels, cluster, 7), [probabilities])
        for name in bootstrap.SCALARS:
            low, high = scored["intervals"][name]
            if np.isfinite(low):
                assert 0 <= low < scored[name] < high <= (np.inf if name == "loss" else 1), name


def test_holm_by_hand():
    found = bootstrap.holm([0.01, float("nan"), 0.04, 0.03])
    np.testing.assert_allclose(found, [0.03, np.nan, 0.06, 0.06])
    assert bootstrap.holm([0.9, 0.8]) == [1.0, 1.0]


def table(n: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Labelled predictions of six people with ten clips each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) // 2 % 3
    chances = rng.dirichlet(np.ones(3), n) + np.eye(3)[labels]
    return {
        "record_id": np.asarray([f"r{i}" for i in range(n)]),
        "subject_id": np.asarray([f"s{i % 6}" for i in range(n)]),
        "clip_id": np.asarray([f"s{i % 6}/{i // 6}" for i in range(n)]),
        "source": np.full(n, "controlled"),
        "content": np.where(np.arange(n) < n // 3, "food", "cars"),
        "gender": np.asarray(["female", "male", ""])[np.arange(n) % 3],
        "age": np.asarray([17.0, 18.0, 29.0, 60.0, -1.0, 45.0])[np.arange(n) % 6],
        "label": labels,
        "probabilities": chances / chances.sum(axis=1, keepdims=True),
    }


def test_slices_add_up():
    slices = scoring.score_table(table(), 3)["slices"]
    assert set(slices) == {"gender", "age", "content", "source"}
    for parts in slices.values():
        assert sum(part["n"] for part in parts) == 60
    assert [part["value"] for part in slices["gender"]] == ["female", "male", "unknown"]
    ages = {part["value"]: part["n"] for part in slices["age"]}
    assert ages == {"under 18": 10, "18-29": 20, "45-59": 10, "60 and over": 10, "unknown": 10}
    assert [part["n_clusters"] for part in slices["gender"]] == [2, 2, 2]
    nameless = table() | {"gender": np.full(60, "")}
    assert "gender" not in scoring.score_table(nameless, 3)["slices"]


def test_clips_answer_with_their_mean_and_subjects_weigh_the_same():
    uneven = table()
    uneven["subject_id"] = np.where(np.arange(60) < 40, "many", uneven["subject_id"])
    uneven["clip_id"] = np.asarray([f"c{i // 2}" for i in range(60)])
    scored = scoring.score_table(uneven, 3)
    means = uneven["probabilities"].reshape(30, 2, 3).mean(axis=1)
    expected = metrics.score(uneven["label"][::2], means)
    assert scored["by_clip"]["n"] == scored["by_clip"]["n_clips"] == 30
    assert scored["by_clip"]["n_clips_of_several_labels"] == 0
    for name in bootstrap.SCALARS:
        assert scored["by_clip"][name] == pytest.approx(expected[name], abs=1e-12), name
    correct = uneven["probabilities"].argmax(axis=1) == uneven["label"]
    people = [correct[uneven["subject_id"] == s].mean() for s in np.unique(uneven["subject_id"])]
    assert scored["by_subject"]["accuracy"] == pytest.approx(np.mean(people))
    assert scored["by_subject"]["effective_clusters"] == pytest.approx(7)
    assert scored["by_subject"]["accuracy_quartiles"][0] == min(people)
    assert scored["accuracy"] == correct.mean()


def test_clips_of_several_labels_are_a_unit_for_each():
    mixed = table()
    mixed["clip_id"] = np.where(np.arange(60) < 6, "c", mixed["clip_id"])
    mixed["clip_id"][59] = ""
    by_clip = scoring.score_table(mixed, 3)["by_clip"]
    assert by_clip["n_clips_of_several_labels"] == 1
    assert by_clip["n_images_without_clip"] == 1
    assert by_clip["n"] == by_clip["n_clips"] + 2
    clipless = table() | {"clip_id": np.full(60, ""), "subject_id": np.full(60, "")}
    scored = scoring.score_table(clipless, 3)
    assert scored["by_clip"] is None and scored["by_subject"] is None
    assert scored["cluster"] == "image" and scored["n_clusters"] == 60


def test_the_benchmark_measures(tmp_path: Path):
    words = [f"--workdir={tmp_path}", "--images=1000", "--simulations=1", "--repeats=1"]
    assert main(["benchmark", "statistics", *words]) == 0
    rows = json.loads((tmp_path / "benchmark_statistics.json").read_text())["rows"]
    assert {"s", "CPU-seconds", "MB", "%"} <= {row["unit"] for row in rows}
    assert main(["benchmark", "statistics", *words[:1], "--images=10"]) == 2
