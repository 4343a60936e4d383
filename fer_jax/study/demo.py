"""The main job on the embedded data: build, train, evaluate, report, in a few minutes."""

import argparse
import time
from pathlib import Path

from fer_jax import compilations
from fer_jax.config import OneLineParser, default_data_dir, load_config
from fer_jax.data.build import build
from fer_jax.study import matrix, study
from fer_jax.study.scenarios import check_leaks, check_study
from fer_jax.training.log import duration

CONFIG = Path(__file__).parents[2] / "configs" / "study_demo.py"


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

    print("1/4 build: drawn faces of three sources", flush=True)
    build("demo", data_dir=data_dir)

    config = load_config(str(CONFIG), check_study)
    scenarios, runs = study.opened_study(config, workdir, data_dir)
    check_leaks(scenarios)
    names = ", ".join(scenario.name for scenario in scenarios)
    print(f"\n2/4 train: {len(runs)} runs, one for each mixture of sources ({names})", flush=True)
    study.keep_config(config, workdir)
    study.train_missing(runs, data_dir)

    print("\n3/4 evaluate: on unseen people of every source", flush=True)
    study.predict_missing(config, runs, data_dir)
    found = matrix.write(config, scenarios, runs, workdir, data_dir)
    print(f"\n{matrix.summary(found)}\n\n{found['answer']}")

    print("\n4/4 report", flush=True)
    page = study.write_report(workdir, runs)
    print(f"done in {duration(time.monotonic() - started)}; open {page.resolve()}")
