"""launch/slurm/train.sbatch on a real Slurm of one node: preempted, queued again, the same end."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_runs import write_dataset

ROOT = Path(__file__).resolve().parents[1]

spec = importlib.util.spec_from_file_location("one_node", ROOT / "launch" / "slurm" / "one_node.py")
assert spec and spec.loader
one_node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(one_node)


def final_network(workdir: Path, step: int) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore((workdir / "checkpoints" / str(step) / "network").resolve())
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}


# Half a minute: three starts of JAX, Slurm's own waits, and steps enough to be caught among.
@pytest.mark.skipif(bool(one_node.missing()), reason=one_node.missing() or "it is there")
def test_a_preempted_job_is_queued_again_and_ends_the_same(tmp_path: Path):
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
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def said() -> str:
        return log.read_text() if log.is_file() else "nothing was written"

    with one_node.cluster(tmp_path / "slurm") as found:
        environment = found | more
        job = one_node.run(
            environment,
            *("sbatch", "--parsable", "--chdir", str(ROOT), "--output", str(log)),
            *("launch/slurm/train.sbatch", *words, f"--workdir={runs['preempted']}"),
        )
        one_node.wait_for(lambda: "step 8/" in said(), 300, said)
        one_node.run(
            environment,
            *"sbatch --partition=high --exclusive --output=/dev/null --wrap=true".split(),
        )
        one_node.wait_for(lambda: one_node.is_over(environment, job), 300, said)
        told = one_node.run(environment, "scontrol", "show", "job", job)
    assert "JobState=COMPLETED" in told and "Restarts=1 " in told, said()
    assert "exit code 75: queued again" in said() and "continuing from step" in said()

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
