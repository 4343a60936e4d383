"""Metrics agree with scikit-learn, ties and absent classes included; weights are repetitions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from fer_jax.evaluation import metrics

reference: Any = sklearn_metrics  # its hints are narrower than what it takes

# scikit-learn warns of the undefined cases that are drawn here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels that may miss classes, probabilities that are often tied."""
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, draw(st.integers(1, k)), n)
    levels = draw(st.sampled_from([2, 5, 1000]))
    raw = rng.integers(1, levels + 1, (n, k)).astype(np.float64)
    return labels, raw / raw.sum(axis=1, keepdims=True)


def class_error(positive: np.ndarray, scores: np.ndarray) -> float:
    """The calibration error of one class's probability, bin by bin."""
    gaps = []
    for low in np.arange(15):
        rows = (scores * 15 > low) & (scores * 15 <= low + 1)
        gaps.append(abs(sum(positive[rows].astype(float) - scores[rows])))
    return sum(gaps) / len(scores)


@settings(deadline=None, max_examples=100)
@given(cases())
def test_they_agree_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]):
    labels, probabilities = case
    scored = metrics.score(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    classes = range(probabilities.shape[1])
    present = np.unique(labels)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": np.mean([(predicted[labels == c] == c).mean() for c in present]),
        "macro_f1": reference.f1_score(
            labels, predicted, labels=present, average="macro", zero_division=0
        ),
        "loss": reference.log_loss(labels, probabilities, labels=list(classes)),
        "weighted_f1": reference.f1_score(labels, predicted, average="weighted", zero_division=0),
        "brier": np.mean(
            [
                sum((p - (c == y)) ** 2 for c, p in enumerate(row))
                for y, row in zip(labels, probabilities, strict=True)
            ]
        ),
        "class_ece": np.mean([class_error(labels == c, probabilities[:, c]) for c in classes]),
    }
    if len({*labels, *predicted}) > 1:
        expected["kappa"] = reference.cohen_kappa_score(labels, predicted)
    if len(present) > 1 < len(set(predicted)):
        expected["mcc"] = reference.matthews_corrcoef(labels, predicted)
    assert np.isnan(scored["kappa"]) == ("kappa" not in expected)
    assert np.isnan(scored["mcc"]) == ("mcc" not in expected)
    for name, value in expected.items():
        assert scored[name] == pytest.approx(value, abs=1e-9), name
    np.testing.assert_array_equal(
        scored["confusion"], reference.confusion_matrix(labels, predicted, labels=list(classes))
    )
    for c in classes:
        positive = labels == c
        area, roc = scored["class_pr_auc"][c], scored["class_roc_auc"][c]
        if not positive.any():
            assert np.isnan(area) and np.isnan(roc) and np.isnan(scored["f1"][c])
            continue
        known = reference.average_precision_score(positive, probabilities[:, c])
        assert area == pytest.approx(known, abs=1e-9)
        if positive.all():
            assert np.isnan(roc)
        else:
            known = reference.roc_auc_score(positive, probabilities[:, c])
            assert roc == pytest.approx(known, abs=1e-9)
    assert scored["pr_auc_classes"] == len(present)
    assert scored["roc_auc_classes"] == (len(present) if len(present) > 1 else 0)


@settings(deadline=None, max_examples=50)
@given(cases(), st.integers(0, 2**32))
def test_a_weight_is_a_repetition(case: tuple[np.ndarray, np.ndarray], seed: int):
    labels, probabilities = case
    weights = np.random.default_rng(seed).integers(0, 4, len(labels))
    weights[0] = 1
    weighted = metrics.score(labels, probabilities, weights)
    repeated = metrics.score(np.repeat(labels, weights), np.repeat(probabilities, weights, axis=0))
    for name, value in repeated.items():
        np.testing.assert_allclose(weighted[name], value, atol=1e-9, err_msg=name)


def test_calibration_error_of_known_cases():
    # Four images at confidence 0.8, three right: |0.75 - 0.8|.
    probabilities = np.tile([0.8, 0.2], (4, 1))
    scored = metrics.score(np.asarray([0, 0, 0, 1]), probabilities)
    assert scored["ece"] == pytest.approx(0.05)
    certain = metrics.score(np.asarray([0, 1]), np.eye(2))
    assert certain["ece"] == 0


def test_reliability_bins_hold_every_image():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(7), 500)
    bins = metrics.reliability(rng.integers(0, 7, 500), probabilities)
    assert bins["weight"].sum() == 500
    edges = np.arange(16) / 15
    full = bins["weight"] > 0
    assert (bins["confidence"][full] <= edges[1:][full] + 1e-12).all()
    assert (bins["confidence"][full] > edges[:-1][full]).all()


def test_curves_end_where_they_must_and_are_thinned():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 5000)
    curves = metrics.curves(labels, rng.dirichlet(np.ones(3), 5000))
    assert curves[2] is None
    assert curves[0] is not None
    assert len(curves[0]["recall"]) <= 200
    assert curves[0]["recall"][-1] == curves[0]["false_positive_rate"][-1] == 1
