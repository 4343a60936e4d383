"""Draws are weighted metrics to the last digit; intervals cover the truth, naive ones do not."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from fer_jax.__main__ import main
from fer_jax.benchmark import error_rates
from fer_jax.evaluation import bootstrap, metrics, predictions, scoring


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
    resampled = bootstrap.resample(of, [probabilities], num_draws=4, seed=seed)
    (drawn,), (left_out,) = resampled.draws, resampled.left_out
    drawn_weights = bootstrap.draw(of.keys, 0, 4, seed)
    for found, weightings in ((drawn, drawn_weights), (left_out, 1 - np.eye(len(of.scale)))):
        for number, weighting in enumerate(weightings.T):
            weights = weighting[of.cluster] * of.scale[of.cluster]
            expected = metrics.score(labels, probabilities, weights)
            for name in (*bootstrap.SCALARS, *bootstrap.BY_CLASS, "prevalence"):
                np.testing.assert_allclose(
                    found[name][number], expected[name], rtol=0, atol=1e-9, err_msg=name
                )


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch):
    labels, (probabilities,), cluster = error_rates.simulate(30, np.random.default_rng(0))
    of = bootstrap.sample(labels, cluster, 7)
    whole = bootstrap.score(bootstrap.resample(of, [probabilities], num_draws=50))
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 7 * len(labels))
    blocks = bootstrap.score(bootstrap.resample(of, [probabilities], num_draws=50))
    for name in bootstrap.SCALARS:
        # Sums over other numbers of columns round otherwise.
        np.testing.assert_allclose(
            whole[0]["intervals"][name], blocks[0]["intervals"][name], rtol=1e-12
        )


def test_a_cluster_has_the_same_weights_wherever_it_is():
    labels, cluster = np.asarray([0, 1, 0, 1, 1]), np.asarray(["b", "a", "c", "a", "b"])
    whole, part = bootstrap.sample(labels, cluster, 2), bootstrap.sample(labels[:2], cluster[:2], 2)
    np.testing.assert_array_equal(
        bootstrap.draw(whole.keys, 0, 50)[:2], bootstrap.draw(part.keys, 0, 50)
    )
    weights = bootstrap.draw(bootstrap.sample(labels, np.arange(5), 2).keys, 0, 40_000)
    np.testing.assert_array_equal(weights[:, 100:], bootstrap.draw(_keys(5), 100, 40_000))
    # Standard exponential, and independent between clusters, draws and seeds.
    assert stats.kstest(weights.ravel(), "expon").pvalue > 0.01
    others = [weights[:, 1:], bootstrap.draw(_keys(5), 0, 40_000, seed=1)[:, 1:]]
    series = np.concatenate([weights[:, :-1], *others])
    np.testing.assert_allclose(np.corrcoef(series), np.eye(15), atol=0.025)


def _keys(count: int) -> np.ndarray:
    return bootstrap.sample(np.zeros(count, int), np.arange(count), 2).keys


def test_errors_of_a_mean_are_the_textbooks():
    """Of accuracy, a mean over clusters of one image; of two sets that share them, a mean of 40."""
    rng = np.random.default_rng(0)
    labels, n = rng.integers(0, 2, 20), 20
    values = rng.dirichlet(np.ones(2), (2, n))
    right = values.argmax(axis=2) == labels

    def estimated(number: int, names: np.ndarray) -> bootstrap.Estimate:
        of = bootstrap.sample(labels, names, 2)
        resampled = bootstrap.resample(of, [values[number]], areas=False, num_draws=20_000)
        return bootstrap.estimate(resampled, "accuracy")

    def combined(*names: np.ndarray) -> tuple[float, float]:
        terms = [(estimated(number, own), 0.5) for number, own in enumerate(names)]
        return bootstrap.combine(terms).error()

    error, degrees = estimated(0, np.arange(n)).error()
    assert error == pytest.approx(right[0].std(ddof=1) / n**0.5, rel=0.02)
    assert degrees == pytest.approx(n - 1)
    error, degrees = combined(np.arange(n), np.arange(n))
    assert error == pytest.approx(right.mean(axis=0).std(ddof=1) / n**0.5, rel=0.02)
    assert degrees == pytest.approx(n - 1)
    error, degrees = combined(np.arange(n), np.arange(n) + n)
    apart = np.hypot(*right.std(axis=1, ddof=1)) / 2 / n**0.5
    assert error == pytest.approx(apart, rel=0.02)
    assert degrees == pytest.approx(2 * n - 1, rel=0.05)
    left_out = (right[0].sum() - right[0]) / (n - 1)
    textbook = right[0].std(ddof=1) / n**0.5
    assert bootstrap.jackknife_error(right[0].mean(), left_out) == pytest.approx(textbook)
    assert np.isnan(bootstrap.jackknife_error(0, np.full(2, np.nan)))


def test_many_clusters_need_no_jackknife(monkeypatch: pytest.MonkeyPatch):
    labels, (probabilities,), cluster = error_rates.simulate(30, np.random.default_rng(0))
    of = bootstrap.sample(labels, cluster, 7)
    monkeypatch.setattr(bootstrap, "JACKKNIFE_CLUSTERS", 29)
    resampled = bootstrap.resample(of, [probabilities], num_draws=50)
    assert not len(resampled.left_out[0]["pr_auc"]) and len(resampled.draws[0]["pr_auc"]) == 50
    (scored,) = bootstrap.score(resampled)
    assert np.isfinite(scored["intervals"]["pr_auc"]).all()


def test_clusters_are_subjects_else_clips_else_images():
    table = {
        "subject_id": np.asarray(["a", "a", "", "", "", "a"]),
        "clip_id": np.asarray(["1", "2", "a", "a", "", "1"]),
        "record_id": np.asarray(["u", "v", "w", "x", "a", "z"]),
    }
    cluster, kind = bootstrap.clusters(table)
    assert kind == "subject+clip+image"
    assert len(set(cluster.tolist())) == 3
    assert cluster[0] == cluster[1] == cluster[5] and cluster[2] == cluster[3]
    # Where near-duplicates were looked for, they are one cluster.
    table |= {"subject_id": np.full(6, ""), predictions.GROUP: np.asarray([*"uvwxuz"])}
    cluster, kind = bootstrap.clusters(table)
    assert kind == "clip+near-duplicate group" and len(set(cluster.tolist())) == 4
    table["clip_id"] = np.full(6, "")
    assert bootstrap.clusters(table)[1] == "near-duplicate group"
    table["subject_id"] = np.full(6, "one")
    assert bootstrap.clusters(table)[1] == "subject"


def test_unequal_clusters_count_for_fewer():
    assert bootstrap.effective_number(np.asarray([5, 5, 5, 5])) == pytest.approx(4)
    assert bootstrap.effective_number(np.asarray([97, 1, 1, 1])) == pytest.approx(1.06, abs=0.01)
    assert bootstrap.effective_number(np.zeros(4)) == 0
    of = bootstrap.sample(np.asarray([0, 0, 1, 1, 1]), np.asarray([3, 4, 3, 3, 3]), 3)
    assert of.describe()["effective_clusters"] == pytest.approx(25 / 17)
    np.testing.assert_array_equal([of.sizes(c) for c in range(3)], [[1, 1], [3, 0], [0, 0]])


def test_intervals_cover_the_truth_and_naive_ones_visibly_do_not():
    ours, naive = error_rates.covered(50, 300)
    # 3,300 intervals together; one metric's 300 may be off by a standard error of 1.3 points.
    assert 0.93 <= np.mean(list(ours.values())) <= 0.97
    for name in bootstrap.SCALARS:
        assert 0.92 <= ours[name].mean() <= 0.98, name
        # The allowance for bias widens the naive intervals of class-wise ECE, too.
        assert naive[name].mean() < (0.9 if name == "class_ece" else 0.85), name


def test_means_over_sets_that_share_people_have_honest_intervals():
    found = error_rates.over_sets(4, 1.0, 120)
    held, equal, loss = (values.mean() for values in found.values())
    # Standard errors of 120: 2 points. Taken as of different people, the mean holds 86 %.
    assert held >= 0.9 and equal <= 0.1 and loss <= 0.1, found


def test_a_study_of_equal_scenarios_finds_nothing():
    wrong, answer = (values.mean() for values in error_rates.studies(3, 60).values())
    # Corrected for the sets of a scenario and metric alone, 21 % of such studies found something.
    assert wrong <= 0.12 and answer <= 0.09


def test_equal_recipes_and_rare_classes():
    assert error_rates.recipes(3, 0.3, 100).mean() <= 0.1
    for name, held in error_rates.rare_classes(20, 60).items():
        assert held.mean() >= 0.88, name


def test_what_no_draw_shows_has_no_interval():
    labels = np.arange(40) % 3
    right = np.eye(4)[labels] * 0.9 + 0.025
    of = bootstrap.sample(labels, np.arange(40) // 5, 4)
    (scored,) = bootstrap.score(bootstrap.resample(of, [right]))
    # All right everywhere, and a class that does not occur.
    assert scored["accuracy"] == 1 and np.isnan(scored["intervals"]["accuracy"]).all()
    assert np.isnan(scored["intervals"]["class_pr_auc"][3]).all()
    (alone,) = bootstrap.score(
        bootstrap.resample(bootstrap.sample(labels, np.zeros(40), 4), [right])
    )
    assert alone["n_clusters"] == 1
    assert all(np.isnan(bounds).all() for bounds in alone["intervals"].values())
    # One person has nearly all images: the others say nothing of what persons differ in.
    wrong = np.roll(right, 1, axis=0)
    mostly = np.where(np.arange(40) < 38, 0, np.arange(40))
    (scored,) = bootstrap.score(bootstrap.resample(bootstrap.sample(labels, mostly, 4), [wrong]))
    assert np.isnan(scored["intervals"]["loss"]).all()


def test_intervals_stay_where_the_metric_can_be():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, (probabilities,), cluster = error_rates.simulate(4, rng)
        (scored,) = bootstrap.score(
            bootstrap.resample(bootstrap.sample(labels, cluster, 7), [probabilities])
        )
        for name in bootstrap.SCALARS:
            low, high = scored["intervals"][name]
            if np.isfinite(low):
                least = -1 if name in ("kappa", "mcc") else 0
                most = np.inf if name in ("loss", "brier") else 1
                assert least <= low < scored[name] < high <= most, name


def differing(values: np.ndarray, draws: np.ndarray) -> list[bootstrap.Estimate]:
    keys, shares = np.arange(1001, dtype=np.uint64), np.full(1001, 1 / 1001)
    return [
        bootstrap.Estimate({"": np.asarray([value])}, {"": own[None]}, keys, shares)
        for value, own in zip(values, draws, strict=True)
    ]


def test_p_values_are_corrected_for_as_many_differences_as_there_are():
    draws = np.random.default_rng(0).standard_normal((4, 20_000))
    independent = differing(np.asarray([2.5, 2.0, np.nan, 0.1]), draws)
    p = [bootstrap.difference(one)["p"] for one in independent]
    found = bootstrap.correct(independent)
    # Step-down: the second smallest is corrected for the other two alone.
    assert found[0] == pytest.approx(1 - (1 - p[0]) ** 3, rel=0.1)
    assert found[1] == pytest.approx(1 - (1 - p[1]) ** 2, rel=0.1)
    assert np.isnan(found[2]) and found[3] == pytest.approx(p[3], rel=0.02)
    # Differences that are one and the same need no correction.
    same = differing(np.full(3, 2.5), np.repeat(draws[:1], 3, axis=0))
    assert bootstrap.correct(same) == pytest.approx(3 * [p[0]], rel=0.2)
    none = differing(np.zeros(1), np.zeros((1, 100)))
    assert bootstrap.correct([*none, *none]) == [1.0, 1.0]


def test_a_class_of_one_person_has_the_error_of_the_others():
    labels, (a, b), cluster = error_rates.simulate(
        30, np.random.default_rng(0), advantages=(0.0, 0.0)
    )
    labels = np.where(labels == 6, 5, labels)
    labels[np.flatnonzero(cluster == 3)[:2]] = 6
    resampled = bootstrap.resample(bootstrap.sample(labels, cluster, 7), [a, b], num_draws=500)
    (scored, _) = bootstrap.score(resampled)
    assert scored["class_clusters"][6] == 1 and np.isnan(scored["intervals"]["recall"][6]).all()
    assert np.isfinite(scored["intervals"]["balanced_accuracy"]).all()
    caveats = scoring.interval_caveats(
        scored | {"cluster": "subject"}, scored["intervals"]["balanced_accuracy"]
    )
    assert caveats == ["1 class is of one subject; the error is taken from the other classes"]

    def variance(classes: list[int], numbers: tuple[int, ...]) -> float:
        terms = [
            (bootstrap.estimate_mean(resampled, "balanced_accuracy", classes, [i], str(i)), sign)
            for i, sign in zip(numbers, (1.0, -1.0), strict=False)
        ]
        return bootstrap.combine(terms).error()[0] ** 2

    for numbers in ((0,), (0, 1)):
        of_one = [scored["class_clusters"][c] * variance([c], numbers) for c in range(6)]
        expected = (36 * variance(list(range(6)), numbers) + np.mean(of_one)) / 49
        assert variance(list(range(7)), numbers) == pytest.approx(expected, rel=0.15)
    # The same predictions still do not differ.
    same = [
        (bootstrap.estimate(resampled, "macro_f1", [0], m), f) for m, f in (("x", 1), ("y", -1))
    ]
    assert bootstrap.combine(same).error()[0] == pytest.approx(0, abs=1e-12)


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
    slices = scoring.score_table(table(), 3)[0]["slices"]
    assert set(slices) == {"gender", "age", "content", "source"}
    for parts in slices.values():
        assert sum(part["n"] for part in parts) == 60
    assert [part["value"] for part in slices["gender"]] == ["female", "male", "unknown"]
    ages = {part["value"]: part["n"] for part in slices["age"]}
    assert ages == {"under 18": 10, "18-29": 20, "45-59": 10, "60 and over": 10, "unknown": 10}
    assert [part["n_clusters"] for part in slices["gender"]] == [2, 2, 2]
    nameless = table() | {"gender": np.full(60, "")}
    assert "gender" not in scoring.score_table(nameless, 3)[0]["slices"]


def test_clips_answer_with_their_mean_and_subjects_weigh_the_same():
    uneven = table()
    uneven["subject_id"] = np.where(np.arange(60) < 40, "many", uneven["subject_id"])
    uneven["clip_id"] = np.asarray([f"c{i // 2}" for i in range(60)])
    scored, _ = scoring.score_table(uneven, 3)
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
    by_clip = scoring.score_table(mixed, 3)[0]["by_clip"]
    assert by_clip["n_clips_of_several_labels"] == 1
    assert by_clip["n_images_without_clip"] == 1
    assert by_clip["n"] == by_clip["n_clips"] + 2
    clipless = table() | {"clip_id": np.full(60, ""), "subject_id": np.full(60, "")}
    scored, _ = scoring.score_table(clipless, 3)
    assert scored["by_clip"] is None and scored["by_subject"] is None
    assert scored["cluster"] == "image" and scored["n_clusters"] == 60


def test_the_benchmark_measures(tmp_path: Path):
    assert main(["benchmark", "statistics", f"--workdir={tmp_path}", "--simulations=1"]) == 0
    rows = json.loads((tmp_path / "benchmark_statistics.json").read_text())["rows"]
    assert {row["unit"] for row in rows} == {"%"} and all(0 <= row["ours"] <= 100 for row in rows)
    # A simulation finds something or not, but for the images of a world of groups.
    assert {row["ours"] for row in rows if "groups" not in row["what"]} <= {0, 100}


@pytest.mark.parametrize(("predicted", "named"), [([0, 4], True), ([1, 3], False)])
def test_a_network_that_predicts_one_class_alone_is_named(predicted: list[int], named: bool):
    scored = {
        **{"n": 8.0, "n_clusters": 40, "effective_clusters": 40.0, "cluster": "subject"},
        **{"prevalence": [0.5, 0.5], "confusion": [predicted, predicted], "class_clusters": [9, 9]},
        "intervals": {"balanced_accuracy": [0.6, 0.9]},
    }
    line = "every image is predicted as sad; more training may help"
    assert scoring.caveats(scored, ["happy", "sad"]) == [line] * named


@pytest.mark.parametrize(
    ("bounds", "said"), [([0.2, 0.3], True), ([0.4, 0.6], True), ([0.51, 0.9], False)]
)
def test_a_score_that_chance_explains_is_named(bounds: list[float], said: bool):
    scored = {
        **{"n": 8.0, "n_clusters": 40, "effective_clusters": 40.0, "cluster": "subject"},
        **{"prevalence": [0.5, 0, 0.5], "confusion": np.ones((3, 3)), "class_clusters": [9, 0, 9]},
        "intervals": {"balanced_accuracy": bounds},
    }
    line = "the balanced accuracy is not significantly above the chance level 0.500"
    assert (line in scoring.caveats(scored, ["happy", "angry", "sad"])) == said


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ("subject", []),
        ("clip", ["no people are named: one who is in several clips "]),
        ("image", ["no people are named: one who is in several images "]),
        ("subject+image", ["not all people are named: one who is in several images "]),
    ],
)
def test_people_without_names_are_a_caveat(cluster: str, says: list[str]):
    scored = {"n_clusters": 40, "effective_clusters": 40.0, "class_clusters": [9, 9]}
    found = scoring.interval_caveats(scored | {"cluster": cluster}, [0.6, 0.9])
    assert [line.partition("makes")[0] for line in found] == says
