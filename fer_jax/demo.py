"""The verb `demo`: build, synthesize, train, evaluate and report on the embedded dataset.

Takes minutes. The training of the face generator is not part of it: its network is embedded, too.
"""

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
# Per emotion, as in each of the rendered sources.
COUNT = 180


def main(argv: list[str]) -> None:
    """Runs the verb `demo`."""
    parser = OneLineParser(
        prog="fer-jax demo",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/study_demo"), help="results")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir(), help="datasets")
    arguments = parser.parse_args(argv)
    workdir, data_dir = arguments.workdir, arguments.data_dir
    started = time.monotonic()
    compilations.enable_compilation_cache()

    print("1/5 build: rendered faces of two sources", flush=True)
    _run("build", build.main, "demo", f"--data_dir={data_dir}")

    print("\n2/5 synthesize: faces of a generator that was trained on rendered ones", flush=True)
    faces = workdir / "faces"
    options = [f"--network={NETWORK}", f"--out={faces}", f"--count={COUNT}", "--detector=none"]
    _run("synthesize", synthesize.main, *options, "--min_size=32", "--batch_size=64")
    options = ["synthetic/grouped", "--name=demo_synthetic", f"--source={faces}", "--detector=none"]
    _run("build", build.main, *options, f"--data_dir={data_dir}")

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
    run = shlex.quote(str(runs[0].workdir))
    print("\nNext, predict with the baseline, or build a dataset of your own and train on it:")
    print(f"  fer-jax predict IMAGE_OR_VIDEO --model={run}")
    print("  fer-jax build face_folder/grouped --name=NAME --source=FOLDER_OR_ZIP")
    print("  fer-jax train --config=configs/demo.py --config.sources=NAME/grouped --workdir=DIR")


def _run(verb: str, main: Callable[[list[str]], None], *options: str) -> None:
    print(f"$ fer-jax {verb} {shlex.join(options)}", flush=True)
    main(list(options))
