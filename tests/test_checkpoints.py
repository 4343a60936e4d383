"""What is saved comes back bit for bit; the best and the newest stay; strangers are refused."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer_jax import checkpoints
from fer_jax.errors import InputError
from fer_jax.sharding import make_mesh, state_sharding

METRIC = "validation_accuracy"


def trees(seed: float = 0.0) -> tuple[dict[str, Any], dict[str, Any]]:
    params = {"block1": {"kernel": jnp.arange(64 * 256.0).reshape(64, 256) + seed}}
    network = {"params": params, "batch_stats": {"mean": jnp.full(3, seed)}, "ema": {}}
    training = {"opt_state": optax.adam(1e-3).init(params), "step": jnp.int32(7)}
    return network, training


def targets(tree: Any, strategy: str = "data_parallel") -> Any:
    shardings = state_sharding(tree, make_mesh(), strategy)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def save_steps(workdir: Path, accuracies: dict[int, float], keep: int = 1) -> None:
    history = []
    with checkpoints.open_checkpoints(workdir, keep=keep, metric=METRIC) as manager:
        for step, accuracy in accuracies.items():
            network, training = trees(step)
            history.append({"step": step, METRIC: accuracy})
            checkpoints.save(
                manager,
                step,
                network=network,
                training=training,
                loop={"iterator": {"next_index": step}, "history": history},
                metrics=history[-1],
            )
        manager.wait_until_finished()


@pytest.mark.parametrize("strategy", ["data_parallel", "fsdp"])
def test_everything_comes_back(tmp_path: Path, strategy: str):
    save_steps(tmp_path, {5: 0.5})
    network, training = trees(5)
    with checkpoints.open_checkpoints(tmp_path, keep=1, metric=METRIC) as manager:
        restored = checkpoints.restore(
            manager,
            5,
            network=targets(network, strategy),
            training=targets(training, strategy),
        )
    assert restored[2] == {"iterator": {"next_index": 5}, "history": [{"step": 5, METRIC: 0.5}]}
    assert jax.tree.structure(restored[:2]) == jax.tree.structure((network, training))
    jax.tree.map(np.testing.assert_array_equal, restored[:2], (network, training))
    kernel = restored[0]["params"]["block1"]["kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == (
        8 if strategy == "fsdp" else 1
    )


def test_the_newest_and_the_best_stay(tmp_path: Path):
    save_steps(tmp_path, {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.3, 5: 0.2})
    network, _ = trees()
    for which, step in (("best", 2), ("last", 5), ("5", 5)):
        found, restored = checkpoints.restore_network(tmp_path, which, targets(network), METRIC)
        assert found == step
        np.testing.assert_array_equal(restored["batch_stats"]["mean"], np.full(3, step))
    with pytest.raises(InputError, match="no checkpoint '4'; choose best, last, 2, 5"):
        checkpoints.restore_network(tmp_path, "4", targets(network), METRIC)


def test_the_best_stays_among_equals(tmp_path: Path):
    save_steps(tmp_path, {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1, 5: 0.2})
    network, _ = trees()
    assert checkpoints.restore_network(tmp_path, "best", targets(network), METRIC)[0] == 3


def test_no_checkpoint_and_another_architecture_are_refused(tmp_path: Path):
    network, _ = trees()
    with pytest.raises(InputError, match="holds no checkpoints"):
        checkpoints.restore_network(tmp_path, "best", targets(network), METRIC)
    save_steps(tmp_path, {1: 0.1})
    network["params"]["block1"]["kernel"] = jnp.zeros((64, 128))
    with pytest.raises(InputError, match=r"\(64, 256\) there and \(64, 128\) in the config"):
        checkpoints.restore_network(tmp_path, "best", targets(network), METRIC)
    network["params"] = {"block2": {"kernel": jnp.zeros((64, 256))}}
    with pytest.raises(InputError, match="absent in the config"):
        checkpoints.restore_network(tmp_path, "best", targets(network), METRIC)


def test_best_is_the_latest_of_equals_and_losses_fall():
    history = [{"step": s, "validation_loss": v} for s, v in ((1, 2.0), (2, 1.0), (3, 1.0))]
    assert checkpoints.best_step(history, "validation_loss") == 3
    assert checkpoints.best_step([], "validation_loss") is None
