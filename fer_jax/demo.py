"""Build, synthesize, train, evaluate and report on rendered faces.

Takes minutes. The face generator is not trained: its network is part of the project.
"""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from fer_jax import compilations, figures
from fer_jax.config import OneLineParser, default_data_dir, load_config
from fer_jax.data import build
from fer_jax.data.records import open_records
from fer_jax.report.study_page import overview
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
    parser = OneLineParser("fer-jax demo", __doc__, show_defaults=True)
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
    scenarios, runs = study.open_study(config, workdir, data_dir)
    check_leaks(scenarios)
    names = ", ".join(scenario.name for scenario in scenarios)
    print(f"\n3/5 train: {len(runs)} runs, one for each mixture of sources ({names})", flush=True)
    study.write_config(config, workdir)
    study.train_missing(runs, data_dir)

    print("\n4/5 evaluate: on unseen people of every source", flush=True)
    study.predict_missing(config, runs, data_dir)
    found = matrix.write(config, scenarios, runs, workdir, data_dir)
    study.write_faces(workdir, scenarios[0].experiment.test)
    print(f"\n{matrix.summary(found)}\n\n{found['answer']}")

    print("\n5/5 report", flush=True)
    page = study.write_report(workdir, runs)
    write_overview(workdir, data_dir, found)
    print(f"done in {duration(time.monotonic() - started)}; open {page.resolve()}")
    run = shlex.quote(str(runs[0].workdir))
    print("\nNext, predict with the baseline, or build a dataset of your own and train on it:")
    print(f"  fer-jax predict IMAGE_OR_VIDEO --model={run}")
    print("  fer-jax build face_folder/grouped --name=NAME --source=FOLDER_OR_ZIP")
    print("  fer-jax train --config=configs/demo.py --config.sources=NAME/grouped --workdir=DIR")


def write_overview(workdir: Path, data_dir: Path, scored: dict[str, Any]) -> None:
    """Writes overview.png: the matrix with six faces of each test set above it."""
    pictures = []
    for one in scored["test_sets"]:
        faces = study.sample_faces(open_records(one["dataset"], one["split"], data_dir))
        pictures.append(cv2.vconcat([cv2.hconcat(faces[:3]), cv2.hconcat(faces[3:])]))
    figure = overview(scored, pictures)
    figure.patch.set_visible(True)  # white, also where a page is dark
    figures.save(figure, workdir / "overview.png", dpi=120)


def _run(verb: str, main: Callable[[list[str]], None], *options: str) -> None:
    print(f"$ fer-jax {verb} {shlex.join(options)}", flush=True)
    main(list(options))
