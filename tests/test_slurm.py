"""launch/slurm/train.sbatch on a real Slurm: a preempted job is requeued and ends the same."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from faults import one_node
from small_runs import write_dataset

ROOT = Path(__file__).resolve().parents[1]


def final_network(workdir: Path, step: int) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore((workdir / "checkpoints" / str(step) / "network").resolve())
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}


# Half a minute: three starts of JAX, Slurm's own waits, and steps enough to be caught among.
@pytest.mark.skipif(bool(one_node.missing()), reason=one_node.missing() or "it is there")
def test_a_preempted_job_is_requeued_and_ends_the_same(tmp_path: Path):
    rows = {
        "train": [(f"a{index % 4}", index % 7) for index in range(16)],
        "validation": [(f"b{index % 4}", index % 7) for index in range(7)],
    }
    write_dataset(tmp_path / "data", "drawn", rows)
    config = tmp_path / "tiny.py"
    config.write_text(
        "from fer_jax.config import default_config\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.sources = ('drawn',)\n"
        "    config.batch_size = 4\n"
        "    config.num_epochs = 75.0\n"
        "    config.validate_every_epochs = 25.0\n"
        "    config.log_every_steps = 1\n"
        "    config.model.update(width=0.03, num_middle_blocks=0, image_size=71)\n"
        "    return config\n"
    )
    words = [f"--config={config}", f"--data_dir={tmp_path / 'data'}"]
    runs = {name: tmp_path / name for name in ("whole", "preempted")}
    log = tmp_path / "job.txt"
    more = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def messages() -> str:
        return log.read_text() if log.is_file() else "no log"

    with one_node.cluster(tmp_path / "slurm") as found:
        environment = found | more
        job = one_node.submit(
            environment,
            *("--chdir", str(ROOT), "--output", str(log)),
            *("launch/slurm/train.sbatch", *words, f"--workdir={runs['preempted']}"),
        )
        one_node.wait_for(lambda: "step 8/" in messages(), 300, messages)
        one_node.preempt(environment)
        state = one_node.wait_for_job(environment, job, 300, messages)
    assert "JobState=COMPLETED" in state and "Restarts=1 " in state, messages()
    assert "exit code 75: requeued" in messages() and "continuing from step" in messages()

    subprocess.run(
        [sys.executable, "-m", "fer_jax", "train", *words, f"--workdir={runs['whole']}"],
        cwd=ROOT,
        env=os.environ | more,
        check=True,
        capture_output=True,
    )
    whole, preempted = (final_network(workdir, 300) for workdir in runs.values())
    assert whole.keys() == preempted.keys() and len(whole) > 20
    for name, array in whole.items():
        np.testing.assert_array_equal(preempted[name], array, err_msg=name)
