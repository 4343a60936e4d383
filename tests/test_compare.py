"""A run equals itself, equal runs differ in 5 of 100, a better one is found; seeds count too."""

import json
import shutil
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_jax.__main__ import main
from fer_jax.benchmark import error_rates
from fer_jax.config import default_config, to_json
from fer_jax.errors import InputError
from fer_jax.evaluation import bootstrap, predictions, scoring
from fer_jax.evaluation.compare import compare, compare_on, compare_predictors
from fer_jax.schema import EMOTIONS, INTERESTS


def write_run(
    workdir: Path,
    sets: dict[str, np.ndarray],
    labels: np.ndarray,
    cluster: np.ndarray,
    classes: tuple[str, ...] = EMOTIONS,
) -> Path:
    """A workdir with a predictions table for each test set."""
    config = default_config()
    config.sources = ("lab",)
    (workdir / "predictions").mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(config))
    n = len(labels)
    for dataset, probabilities in sets.items():
        table = {column: np.full(n, "x") for column in predictions.TEXT} | {
            "dataset": np.full(n, dataset),
            "split": np.full(n, "test"),
            "record_id": np.asarray([f"{dataset}/{i}" for i in range(n)]),
            "subject_id": np.asarray([f"s{c}" for c in cluster]),
            "clip_id": np.full(n, ""),
            "frame_index": np.zeros(n, int),
            "age": np.full(n, -1.0),
            "label": labels,
            "probabilities": probabilities,
        }
        file = workdir / "predictions" / predictions.file_name(dataset, "test")
        predictions.write(file, table, classes)
    return workdir


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs on two sets; the first is better on one of them and as good on the other."""
    rng = np.random.default_rng(0)
    labels, (better, plain, other), cluster = error_rates.simulate(
        60, rng, advantages=(1.0, 0.0, 0.0)
    )
    sets_a, sets_b = {"web": better, "cctv": plain}, {"web": plain, "cctv": other}
    return (
        write_run(tmp_path / "a", sets_a, labels, cluster),
        write_run(tmp_path / "b", sets_b, labels, cluster),
    )


def test_a_run_equals_itself(runs: tuple[Path, Path]):
    for one in compare([runs[0]], [runs[0]])["sets"]:
        for found in one["metrics"].values():
            assert found["difference"] == 0
            assert found["interval"] == [0, 0]
            assert found["p"] == found["p_corrected"] == 1


def test_a_recipe_equals_itself(runs: tuple[Path, Path], tmp_path: Path):
    copied, other = tmp_path / "copied", tmp_path / "other"
    shutil.copytree(runs[0], copied)
    shutil.copytree(runs[1], other)
    for side in ([runs[0], runs[1]], [runs[0], copied]):
        for one in compare(side, side, num_draws=100)["sets"]:
            for found in one["metrics"].values():
                assert found["difference"] == 0 and found["p"] == 1


def test_a_better_run_is_found_whichever_side_it_is_on(runs: tuple[Path, Path]):
    there, back = compare([runs[0]], [runs[1]]), compare([runs[1]], [runs[0]])
    for forward, backward in zip(there["sets"], back["sets"], strict=True):
        for name in bootstrap.SCALARS:
            one, other = forward["metrics"][name], backward["metrics"][name]
            assert one["difference"] == pytest.approx(-other["difference"], abs=1e-12)
            np.testing.assert_allclose(one["interval"], [-x for x in other["interval"][::-1]])
            assert one["p"] == pytest.approx(other["p"])
            low, high = one["interval"]
            assert (low > 0 or high < 0) == (one["p"] < 0.05)
            assert one["p"] <= one["p_corrected"] <= min(1, 2 * one["p"])
    by_name = {one["dataset"]: one["metrics"] for one in there["sets"]}
    assert by_name["web"]["balanced_accuracy"]["p_corrected"] < 0.01
    assert by_name["web"]["balanced_accuracy"]["interval"][0] > 0
    assert by_name["web"]["loss"]["interval"][1] < 0
    assert by_name["cctv"]["balanced_accuracy"]["p_corrected"] > 0.05


def test_equal_predictors_differ_in_five_of_a_hundred():
    found = error_rates.p_values(50, 300)
    # 300 simulations: a standard error of 1.3 points for each metric, less for all together.
    alarms = {name: (p < 0.05).mean() for name, p in found.items()}
    assert 0.03 <= np.mean(list(alarms.values())) <= 0.07
    assert all(0.02 <= share <= 0.08 for share in alarms.values()), alarms
    better = error_rates.p_values(50, 30, advantage=2 * error_rates.ADVANTAGE)
    assert (better["balanced_accuracy"] < 0.05).mean() > 0.9


def test_pairing_makes_it_sharper():
    labels, (a, b), cluster = error_rates.simulate(
        80, np.random.default_rng(3), advantages=(0.3, 0.0)
    )
    of = bootstrap.sample(labels, cluster, 7)
    paired = compare_predictors(of, [a], [b])[0]["accuracy"]["interval"]
    (first, second) = bootstrap.score(bootstrap.resample(of, [a, b]))
    apart = sum(np.diff(one["intervals"]["accuracy"])[0] ** 2 for one in (first, second)) ** 0.5
    assert paired[1] - paired[0] < 0.8 * apart


def recipes(
    num_seeds: int, seed_spread: float, rng: np.random.Generator, advantage: float = 0.0
) -> tuple[bootstrap.Sample, list[np.ndarray], list[np.ndarray]]:
    """Two recipes whose runs differ by luck: each run has its own advantage."""
    means = [advantage] * num_seeds + [0.0] * num_seeds
    luck = tuple(mean + rng.normal(0, seed_spread) for mean in means)
    labels, predictors, cluster = error_rates.simulate(40, rng, advantages=luck)
    return bootstrap.sample(labels, cluster, 7), predictors[:num_seeds], predictors[num_seeds:]


def test_recipes_are_not_better_by_a_lucky_seed():
    rng = np.random.default_rng(0)
    simulated = []
    for number in range(100):
        of, a, b = recipes(3, 0.5, rng)
        simulated.append(bootstrap.resample(of, [*a, *b], areas=False, num_draws=200, seed=number))
    of, a, b = recipes(4, 0.1, rng, advantage=1.0)
    better = bootstrap.resample(of, [*a, *b], areas=False)

    def p(resampled: bootstrap.Resampled, a: range, b: range) -> Any:
        sides = [(bootstrap.estimate(resampled, "accuracy", a, "a"), 1.0)]
        sides.append((bootstrap.estimate(resampled, "accuracy", b, "b"), -1.0))
        return bootstrap.difference(bootstrap.combine(sides))["p"]

    fixed = [p(one, range(1), range(3, 4)) < 0.05 for one in simulated]
    drawn = [p(one, range(3), range(3, 6)) < 0.05 for one in simulated]
    # Two models of equal recipes do differ, and comparing them says so; the recipes do not.
    assert np.mean(fixed) > 0.2
    assert np.mean(drawn) < 0.08
    assert p(better, range(4), range(4, 8)) < 0.01


def test_seeds_on_the_command_line(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for number, run in enumerate(runs):
        shutil.copytree(run, tmp_path / f"again{number}")
    words = [f"{runs[0]},{tmp_path / 'again0'}", f"{runs[1]},{tmp_path / 'again1'}"]
    output = tmp_path / "compared.json"
    assert main(["compare", *words, "--draws=200", f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    assert "draws of whole clusters and seeds" in printed and "web test" in printed
    written = json.loads(output.read_text())
    assert written["seeds"] and len(written["sets"]) == 2
    # Copies have no luck: what remains is the clusters' uncertainty.
    alone = compare([runs[0]], [runs[1]], num_draws=200)
    for one, other in zip(written["sets"], alone["sets"], strict=True):
        found, expected = one["metrics"]["accuracy"], other["metrics"]["accuracy"]
        assert found["p"] == pytest.approx(expected["p"], rel=1e-6)


def test_few_clusters_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels, (a, b), cluster = error_rates.simulate(
        5, np.random.default_rng(1), advantages=(0.5, 0.0)
    )
    labels = np.where(labels == 3, 4, labels)
    run_a = write_run(tmp_path / "a", {"web": a}, labels, cluster)
    run_b = write_run(tmp_path / "b", {"web": b}, labels, cluster)
    assert main(["compare", str(run_a), str(run_b), "--metric=roc_auc"]) == 0
    assert "only 5 clusters (by subject)" in capsys.readouterr().out
    one_a = write_run(tmp_path / "one_a", {"web": a}, labels, np.zeros(len(labels), int))
    one_b = write_run(tmp_path / "one_b", {"web": b}, labels, np.zeros(len(labels), int))
    assert main(["compare", str(one_a), str(one_b)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("n/a") >= 3
    assert "no interval: there is only one subject" in printed


def test_why_there_is_no_interval_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels, cluster = np.arange(40) % 7, np.arange(40) // 4
    right, wrong = np.eye(7)[labels], np.eye(7)[(labels + 1) % 7]
    run_a = write_run(tmp_path / "a", {"web": right}, labels, cluster)
    run_b = write_run(tmp_path / "b", {"web": wrong}, labels, cluster)
    assert main(["compare", str(run_a), str(run_b), "--metric=accuracy"]) == 0
    printed = capsys.readouterr().out
    assert "+1.000" in printed and "none where all subjects of a class score alike" in printed
    mostly = np.where(np.arange(40) < 38, 0, np.arange(40))
    scored, _ = scoring.score_table(
        {
            **{name: np.full(40, "") for name in ("clip_id", "gender", "source", "content")},
            "record_id": np.arange(40).astype(str),
            "subject_id": mostly.astype(str),
            "age": np.full(40, -1.0),
            "label": labels,
            "probabilities": np.random.default_rng(0).dirichlet(np.ones(7), 40),
        },
        7,
    )
    # Intervals that do not exist are not rough, too.
    (most,) = scoring.interval_caveats(scored, scored["intervals"]["accuracy"])
    assert most == "no interval: one subject has most of the images"


def test_validation_is_not_compared(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    for run in runs:
        table, classes = predictions.read(run / "predictions" / "web.test.csv")
        n = len(table["label"])
        table |= {"dataset": np.full(n, "lab"), "split": np.full(n, "validation")}
        table["record_id"] = np.asarray([f"lab/{i}" for i in range(n)])
        predictions.write(run / "predictions" / "lab.validation.csv", table, classes)
    (runs[1] / "predictions" / "cctv.test.csv").unlink()
    compared = compare(list(runs[:1]), list(runs[1:]))
    assert [one["dataset"] for one in compared["sets"]] == ["web"]
    assert main(["compare", *map(str, runs)]) == 0
    printed = capsys.readouterr().out
    assert f"cctv.test.csv left out: not in {runs[1]}" in printed
    assert f"lab.validation.csv left out: {runs[0]}, {runs[1]} were selected on images" in printed


def test_variants_do_not_add_to_the_number_of_sets(runs: tuple[Path, Path]):
    before = compare([runs[0]], [runs[1]], num_draws=100)["sets"]
    for run in runs:
        for dataset in ("web", "cctv"):
            plain = run / "predictions" / f"{dataset}.test.csv"
            shutil.copy(plain, plain.with_name(f"{dataset}.test.int8.csv"))
    after = compare([runs[0]], [runs[1]], num_draws=100)["sets"]
    assert sorted(one["variant"] for one in after) == ["", "", "int8", "int8"]
    for one in after:
        (same,) = (other for other in before if other["dataset"] == one["dataset"])
        assert one["metrics"] == same["metrics"]


def break_table(run: Path, **changes: np.ndarray) -> None:
    file = run / "predictions" / "web.test.csv"
    table, classes = predictions.read(file)
    predictions.write(file, table | changes, classes)


def test_order_of_rows_does_not_matter(runs: tuple[Path, Path]):
    before = compare([runs[0]], [runs[1]], num_draws=100)
    file = runs[1] / "predictions" / "web.test.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *rows[::-1]]) + "\n")
    assert compare([runs[0]], [runs[1]], num_draws=100) == before


def test_what_cannot_be_compared_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a, b = runs
    table, _ = predictions.read(b / "predictions" / "web.test.csv")

    def refused(says: str, side_a: list[Path], side_b: list[Path]) -> None:
        with pytest.raises(InputError, match=says):
            compare(side_a, side_b)

    refused("1 against 2 runs", [a], [a, b])
    refused("have the same checkpoint", [a, a], [a, b])
    refused("'.*nowhere' holds no run", [a], [tmp_path / "nowhere"])
    (tmp_path / "trained").mkdir()
    shutil.copy(a / "config.json", tmp_path / "trained")
    refused("'.*trained' has no predictions; run `fer-jax evaluate`", [a], [tmp_path / "trained"])
    (tmp_path / "stray" / "predictions").mkdir(parents=True)
    shutil.copy(b / "predictions" / "web.test.csv", tmp_path / "stray" / "predictions")
    refused("holds no run", [a], [tmp_path / "stray"])
    labels = table["label"]
    elsewhere = write_run(
        tmp_path / "c", {"else": table["probabilities"]}, labels, np.arange(len(labels))
    )
    refused("no test set's predictions in common", [a], [elsewhere])
    two = write_run(
        tmp_path / "d", {"web": np.full((30, 2), 0.5)}, np.zeros(30, int), np.arange(30), INTERESTS
    )
    refused("is about not_interested, interested, not anger", [a], [two])
    break_table(b, label=np.roll(labels, 1))
    refused("differ in the label of 'web/", [a], [b])
    break_table(b, label=labels, subject_id=np.full(len(labels), "one"))
    refused("differ in the subject_id of 'web/0'", [a], [b])
    break_table(b, record_id=np.asarray([f"new/{i}" for i in range(len(labels))]))
    refused("about different images .* evaluate both runs on the same data", [a], [b])
    for words, says in (
        ([str(a)], "required"),
        ([str(a), ","], "names no run"),
        ([str(a), str(a), "--draws=5"], "at least 100"),
        ([str(a), str(a), "--metric=accurracy"], "invalid choice"),
        ([str(a), str(a), f"--output={tmp_path}/none/x.json"], "no folder"),
    ):
        assert main(["compare", *words]) == 2
        printed = capsys.readouterr().err
        assert says in printed and printed.count("\n") == 1, printed


def test_a_verdict_is_a_sentence(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    assert main(["compare", *map(str, runs), "--metric=loss"]) == 0
    printed = capsys.readouterr().out
    assert "web test: A has the better loss" in printed
    compared = compare([runs[0]], [runs[1]])
    (cctv,) = (one for one in compared["sets"] if one["dataset"] == "cctv")
    shown = f"{cctv['metrics']['loss']['detectable']:.3f}"
    assert (
        f"no significant difference in loss; this set would show one of {shown} with a power"
        in printed
    )
    assert "mixed  web test" in printed


def test_images_without_people_have_mcnemars_test():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 200)
    a, b = ((rng.dirichlet(np.ones(7), 200) + np.eye(7)[labels] * 0.3) / 1.3 for _ in range(2))
    table = {name: np.full(200, "") for name in predictions.TEXT} | {
        "record_id": np.arange(200).astype(str),
        "label": labels,
    }
    right_a, right_b = (one.argmax(axis=1) == labels for one in (a, b))
    only = [int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())]
    assert min(only) > 5
    found, _ = compare_on(table, [a], [b])
    # Twice the smaller tail of the binomial distribution.
    tail = sum(comb(sum(only), i) for i in range(min(only) + 1)) / 2 ** sum(only)
    assert found["mcnemar_p"] == pytest.approx(min(1, 2 * tail), abs=1e-9)
    assert found["mcnemar_p"] == pytest.approx(found["metrics"]["accuracy"]["p"], abs=0.1)
    people = table | {"subject_id": np.arange(200).astype(str)}
    assert compare_on(people, [a], [b])[0]["mcnemar_p"] is None
    assert compare_on(table, [a, b], [b, a])[0]["mcnemar_p"] is None


def test_copies_of_one_run_are_recognised(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for run in runs:
        step = run / "checkpoints" / "7"
        step.mkdir(parents=True)
        (step / "SHA256SUMS").write_text(f"{run.name}  arrays\n")
    copied = shutil.copytree(runs[0], tmp_path / "renamed")
    other = shutil.copytree(runs[1], tmp_path / "other")
    with pytest.raises(InputError, match="renamed' and .* on one side have the same checkpoint"):
        compare([runs[0], copied], [runs[1], other])
    assert main(["compare", str(runs[0]), str(copied)]) == 0
    assert "copies of one run" in capsys.readouterr().out
    assert not compare([runs[0]], [runs[1]], num_draws=100)["copies"]


def test_validation_under_another_spelling_is_not_compared(runs: tuple[Path, Path]):
    for run in runs:
        table, classes = predictions.read(run / "predictions" / "web.test.csv")
        n = len(table["label"])
        own = table | {"dataset": np.full(n, "lab"), "split": np.full(n, "validation")}
        predictions.write(run / "predictions" / "lab.validation.csv", own, classes)
        (run / "predictions" / "cctv.test.csv").unlink()
    with pytest.raises(InputError, match=r"web.test.csv: .* were selected on images of it"):
        compare([runs[0]], [runs[1]])


def test_a_difference_that_is_called_detectable_is_detected():
    """Where the difference is as large as that, with the power that is promised."""
    rng, advantage = np.random.default_rng(0), 0.45
    found = []
    for number in range(200):
        labels, (a, b), cluster = error_rates.simulate(30, rng, advantages=(advantage, 0.0))
        of = bootstrap.sample(labels, cluster, 7)
        resampled = bootstrap.resample(of, [a, b], areas=False, num_draws=200, seed=number)
        sides = [bootstrap.estimate(resampled, "accuracy", [i], str(i)) for i in range(2)]
        gain = bootstrap.combine([(sides[0], 1.0), (sides[1], -1.0)])
        found.append((gain.value, bootstrap.detectable(gain), bootstrap.difference(gain)["p"]))
    difference, detectable, p = np.asarray(found).T
    assert difference.mean() == pytest.approx(detectable.mean(), rel=0.1)
    # Standard error of the share of 200: 2.8 points.
    assert (p < 0.05).mean() == pytest.approx(bootstrap.POWER, abs=0.1)
