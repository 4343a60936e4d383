"""The main job on the embedded data: build, synthesize, train, evaluate, report, in minutes."""

import argparse
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from fer_jax import compilations
from fer_jax.config import OneLineParser, default_data_dir, load_config
from fer_jax.data import build
from fer_jax.study import matrix, study
from fer_jax.study.scenarios import check_leaks, check_study
from fer_jax.synthesis import synthesize
from fer_jax.training.log import duration

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "study_demo.py"
NETWORK = ROOT / "data_builders" / "demo" / "generator"
# As many as each drawn source has of each emotion.
COUNT = 180


def main(argv: list[str]) -> None:
    """The verb `demo`."""
    parser = OneLineParser(
        prog="fer-jax demo",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/study_demo"))
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    arguments = parser.parse_args(argv)
    workdir, data_dir = arguments.workdir, arguments.data_dir
    started = time.monotonic()
    compilations.keep()

    print("1/5 build: drawn faces of two sources", flush=True)
    _run("build", build.main, "demo", f"--data_dir={data_dir}")

    print("\n2/5 synthesize: faces of a network that has learned from drawn ones", flush=True)
    made = workdir / "faces"
    words = [f"--network={NETWORK}", f"--out={made}", f"--count={COUNT}", "--detector=none"]
    _run("synthesize", synthesize.main, *words, "--min_size=32", "--batch_size=64")
    words = ["synthetic/grouped", "--name=demo_synthetic", f"--source={made}", "--detector=none"]
    _run("build", build.main, *words, f"--data_dir={data_dir}")

    config = load_config(str(CONFIG), check_study)
    scenarios, runs = study.opened_study(config, workdir, data_dir)
    check_leaks(scenarios)
    names = ", ".join(scenario.name for scenario in scenarios)
    print(f"\n3/5 train: {len(runs)} runs, one for each mixture of sources ({names})", flush=True)
    study.keep_config(config, workdir)
    study.train_missing(runs, data_dir)

    print("\n4/5 evaluate: on unseen people of every source", flush=True)
    study.predict_missing(config, runs, data_dir)
    found = matrix.write(config, scenarios, runs, workdir, data_dir)
    print(f"\n{matrix.summary(found)}\n\n{found['answer']}")

    print("\n5/5 report", flush=True)
    page = study.write_report(workdir, runs)
    print(f"done in {duration(time.monotonic() - started)}; open {page.resolve()}")


def _run(verb: str, main: Callable[[list[str]], None], *words: str) -> None:
    print(f"$ fer-jax {verb} {shlex.join(words)}", flush=True)
    main(list(words))
