"""The average is over the valley, and is found as the paper's algorithm finds it."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import TINY, make_step, uneven_batch

from fer_jax.methods.swad import Decision, decide, fresh_average, with_decision, with_step
from fer_jax.training.step import TrainState

pytestmark = pytest.mark.usefixtures("short_network")

SMALL = TINY | {"num_middle_blocks": 0}


def valley(losses: list[float]) -> tuple[int, int, bool]:
    """Algorithm 1 of Cha et al. 2021, word by word.

    The first and the last validation that are averaged, and whether the algorithm stopped before
    the last loss or at it.
    """
    patience, overfit, rate = 3, 6, 1.3
    bound, start, end, stops = None, None, len(losses) - 1, False
    for i in range(len(losses)):
        if bound is None:
            window = losses[i - patience + 1 : i + 1] if i >= patience - 1 else []
            if window and window[0] == min(window):
                start = i - patience + 1
                bound = rate / patience * sum(window)
        elif i >= overfit - 1 and bound < min(losses[i - overfit + 1 : i + 1]):
            end, stops = i - overfit, True
            break
    if start is None:
        return int(np.argmin(losses)), len(losses) - 1, False
    # Ours keeps the validation after the best one, however high.
    return start, max(end, start + 1), stops


LOSSES = st.lists(
    st.sampled_from([0.5, 0.6, 0.7, 0.8, 1.0, 1.1, 2.0, 9.0]), min_size=1, max_size=25
)


@settings(deadline=None, max_examples=300)
@given(LOSSES, st.integers(1, 3))
def test_the_average_is_the_mean_of_what_the_paper_averages(losses: list[float], every: int):
    weights = np.random.default_rng(0).standard_normal((len(losses) * every, 3))
    swad = {name: np.zeros(3) for name in ("mean", "params")}
    swad |= {"count": np.asarray(0), "batch_stats": np.zeros(1)}
    done = 0
    for step, weight in enumerate(weights, 1):
        swad = with_step(swad, weight)
        if step % every == 0:
            done = step // every
            decision = decide(losses[:done], last=done == len(losses))
            swad = with_decision(swad, weight, np.asarray([done]), decision)
            if decision.ended:
                break
    start, end, stops = valley(losses)
    expected = weights[(start + 1) * every - 1 : (end + 1) * every].mean(axis=0)
    np.testing.assert_allclose(swad["params"], expected, atol=1e-5)
    assert int(swad["batch_stats"][0]) == end + 1
    # What stopped the run stops it again.
    assert decide(losses[:done]).ended is stops
    assert stops or done == len(losses)


def test_decisions_of_a_short_run():
    assert decide([1.0]) == Decision(True, True, False)
    assert decide([1.0, 0.9]) == Decision(True, True, False)
    assert decide([0.9, 0.9]) == Decision(False, True, False)
    begun = [1.0, 0.9, 1.0, 1.1]  # the bound is 1.3
    assert decide([*begun, 0.1]) == Decision(False, True, False)  # no longer restarts
    assert decide([*begun, 1.25]) == Decision(False, True, False)
    assert decide([*begun, 1.4]) == Decision(False, False, False)
    assert decide([*begun, 1.4], last=True) == Decision(False, True, False)
    assert decide([*begun, *[1.4] * 6]) == Decision(False, False, True)
    assert decide([*begun, *[1.4] * 5, 1.2, *[1.4] * 5]) == Decision(False, False, False)


def test_a_loss_that_is_not_a_number_is_never_the_start():
    nan = float("nan")
    assert decide([nan, 1.0]) == Decision(True, True, False)
    assert decide([1.0, nan]) == Decision(False, True, False)
    assert decide([1.0, 1.1, 1.1, *[nan] * 6]).ended


def test_the_step_averages_the_parameters_of_every_step():
    step, state = make_step(SMALL)
    state = dataclasses.replace(state, swad=fresh_average(state.params, state.batch_stats))
    step = jax.jit(step)
    seen = []
    for _ in range(4):
        state, _ = step(state, uneven_batch(), jax.random.key(1))
        seen.append(state.params)
    assert int(state.swad["count"]) == 4
    jax.tree.map(
        lambda mean, *each: np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1e-6),
        state.swad["mean"],
        *seen,
    )
    # What predicts is what was kept: nothing yet.
    jax.tree.map(np.testing.assert_array_equal, state.network["params"], make_step(SMALL)[1].params)
    again = TrainState.merge(*state.split())
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_a_state_without_an_average_is_stored_as_ever():
    _, state = make_step(SMALL, ema_decay=0.5)
    names = {"step", "opt_state", "learning_rate_scale", "loss_scale", "good_steps"}
    assert state.split()[1].keys() == names
    again = TrainState.merge(*state.split())
    jax.tree.map(np.testing.assert_array_equal, again, state)
