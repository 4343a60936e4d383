"""The main job on the embedded data: build, train, evaluate, report, in a few minutes."""

import argparse
import time
from pathlib import Path

from fer_jax import compilations
from fer_jax.config import OneLineParser, default_data_dir, load_config
from fer_jax.data.build import build
from fer_jax.data.records import as_source
from fer_jax.evaluation import results
from fer_jax.evaluation.evaluate import evaluate
from fer_jax.study.report import report
from fer_jax.training.log import duration
from fer_jax.training.train import train

CONFIG = Path(__file__).parents[2] / "configs" / "demo.py"


def main(argv: list[str]) -> None:
    """The verb `demo`."""
    parser = OneLineParser(
        prog="fer-jax demo",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    compilations.keep()

    print("1/4 build: drawn faces of three sources", flush=True)
    build("demo", data_dir=arguments.data_dir)

    print("\n2/4 train: on the controlled source only", flush=True)
    config = load_config(str(CONFIG))
    train(config, arguments.workdir, arguments.data_dir)

    print("\n3/4 evaluate: on unseen people of every source", flush=True)
    entries = [as_source(entry) for entry in config.test_sets]
    test_sets = [(source.name, source.test) for source in entries]
    evaluate(arguments.workdir, arguments.data_dir, test_sets)
    print(results.summary(results.results(arguments.workdir)))

    print("\n4/4 report", flush=True)
    page = report(arguments.workdir)
    print(f"done in {duration(time.monotonic() - started)}; open {page.resolve()}")
