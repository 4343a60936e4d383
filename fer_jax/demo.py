"""Film rendered people, collect their videos, train on every mixture of sources, and report.

Takes minutes, without data or network. A killed demo goes on with the same command. The face
generator is not trained: its network is part of the project.
"""

import http.server
import itertools
import json
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from fer_jax import compilations, distributed, results, storage
from fer_jax.collect import collect
from fer_jax.config import OneLineParser, load_config, output_path
from fer_jax.data import build, splits
from fer_jax.data.records import Records, open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import metrics
from fer_jax.inference import network
from fer_jax.study import matrix, pictures, study
from fer_jax.study.distances import METRIC
from fer_jax.study.scenarios import ScenarioRun, check_leaks, check_study
from fer_jax.synthesis import synthesize
from fer_jax.training.log import duration

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "study_demo.py"
NETWORK = ROOT / "data_builders" / "demo" / "generator"
# The generator was trained on the people of this world's laboratory.
SEED = 2026
# Links name this host without a port, so that the names of records do not depend on it.
ADDRESS = "http://127.0.0.1"
# The platform behind each test set whose people are rendered.
PLATFORM_OF = {
    "neurobiosense/grouped": "laboratory",
    "youtube/grouped": "social",
    "calls/folds": "calls",
}
# OpenCV's cascade needs no file. No platform's faces are below 70 px.
FACES = ["--detector=haar", "--min_size=64", "--frames=3"]
CROPPED = "--detector=none"
FRESH_BATCH = 128
CLIP_SECONDS = 0.05  # to film a reaction, on the processor that `Plan.minutes` is of


class Plan(NamedTuple):
    """How large the demo is."""

    people: dict[str, int]  # by platform
    synthetic: int  # faces of each emotion
    fresh: int  # people of each platform, for the true scores
    minutes: float  # on two cores
    changes: dict[str, Any]  # of the study's config


WHOLE = Plan({"laboratory": 120, "social": 80, "calls": 40}, 180, 2000, 6.7, {})
QUICK = Plan(
    {"laboratory": 10, "social": 10, "calls": 2},
    synthetic=12,
    fresh=12,
    minutes=1.3,
    changes={"run.num_epochs": 2.0, "run.validate_every_epochs": 1.0, "run.model.width": 0.05},
)


def main(argv: list[str]) -> None:
    """Runs the verb `demo`."""
    parser = OneLineParser("fer-jax demo", __doc__, show_defaults=True)
    parser.add_argument(
        "--workdir",
        type=output_path,
        default=Path("runs/study_demo"),
        help="clips, datasets and results",
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="of the people and how they are filmed"
    )
    parser.add_argument("--quick", action="store_true", help="small, to see that all parts run")
    arguments = parser.parse_args(argv)
    distributed.check_alone("demo")
    if not 0 <= arguments.seed < 2**31:
        raise InputError(f"--seed must be 0 to {2**31 - 1}, got {arguments.seed}")
    started = time.monotonic()
    plan = QUICK if arguments.quick else WHOLE
    workdir = arguments.workdir
    check_same(workdir, {"seed": arguments.seed, "quick": arguments.quick})
    found, runs = run(workdir, plan, arguments.seed)
    print(f"\n{matrix.summary(found)}\n{truth_in_words(found)}\n\n{found['answer']}")
    video = min((workdir / "sources" / "social").glob("*.mp4"))
    pictures.write(workdir, workdir / "data", found, video, runs[-1])
    page = study.write_report(workdir, runs)
    print(f"done in {duration(time.monotonic() - started)}; open {page.resolve()}")
    model = shlex.quote(str(runs[0].workdir))
    print("\nNext, predict with the baseline, or build a dataset of your own and train on it:")
    print(f"  fer-jax predict IMAGE_OR_VIDEO --model={model}")
    print("  fer-jax build face_folder/grouped --name=NAME --source=FOLDER_OR_ZIP")
    print("  fer-jax train --config=configs/demo.py --config.sources=NAME/grouped --workdir=DIR")


def check_same(workdir: Path, options: dict[str, Any]) -> None:
    """Refuses a folder of another demo, whose clips would be mixed with this one's."""
    file = workdir / "demo.json"
    before = storage.read_json(file)
    if before and before != options:
        differing = "; ".join(storage.differences(before, options))
        raise InputError(f"'{workdir}' has a demo with other options: {differing}; name another")
    workdir.mkdir(parents=True, exist_ok=True)
    storage.write_atomically(file, json.dumps(options) + "\n")


def run(
    workdir: Path, plan: Plan, seed: int, *, null: bool = False
) -> tuple[dict[str, Any], Sequence[ScenarioRun]]:
    """Runs everything up to the study's results.json, which has the true scores.

    `null`: all platforms look like the laboratory. Returns the results and the study's runs.
    """
    compilations.enable_compilation_cache()
    build.find_builder("demo")  # so that data_builders can be imported
    from data_builders.demo import world

    data_dir, cores = workdir / "data", len(os.sched_getaffinity(0))
    where = world.World(seed, null)
    people = {
        platform: invited(partial(world.viewer, where, platform), platform, count)
        for platform, count in plan.people.items()
    }
    sources = workdir / "sources"
    videos = [
        *world.laboratory(sources / "NeuroBioSense", people["laboratory"]),
        *(social := world.social(sources / "social", people["social"])),
        *world.calls(sources / "calls", people["calls"]),
    ]
    print(f"five parts; {_estimate(plan, videos[0], cores)}\n")
    num_people = sum(map(len, people.values()))
    print(f"1/5 film: {num_people} rendered people in {len(videos)} videos", flush=True)
    for _ in tqdm(world.render_all(videos, cores), "film", len(videos), unit="video", disable=None):
        pass

    print(f"\n2/5 collect: links to the {len(social)} social videos, from a local server")
    links = sources / "links.csv"
    world.write_links(links, social, ADDRESS)
    with served(sources / "social") as proxy:
        words = [str(links), f"--output={sources / 'youtube'}", f"--proxy={proxy}"]
        _run("collect", collect.main, *words)

    print("\n3/5 build: the datasets, and faces of a generator")
    to = [f"--data_dir={data_dir}"]
    place = f"--source={sources / 'NeuroBioSense'}"
    _run("build", build.main, "neurobiosense/grouped", place, *FACES, *to)
    _run("build", build.main, "youtube/grouped", f"--source={sources / 'youtube'}", *FACES, *to)
    place = f"--source={sources / 'calls'}"
    _run("build", build.main, "clips/folds", "--name=calls", place, "--folds=2", *FACES, *to)
    if plan.synthetic:
        faces = workdir / "faces"
        words = [f"--network={NETWORK}", f"--out={faces}", f"--count={plan.synthetic}", CROPPED]
        _run("synthesize", synthesize.main, *words, "--min_size=32", "--batch_size=64")
        _run("build", build.main, "synthetic/grouped", f"--source={faces}", CROPPED, *to)

    config = load_config(str(CONFIG), check_study)
    config.update_from_flattened_dict(plan.changes)
    scenarios, runs = study.open_study(config, workdir, data_dir)
    check_leaks(scenarios)
    names = ", ".join(scenario.name for scenario in scenarios)
    print(f"\n4/5 train: {len(runs)} networks, one for each mixture ({names})", flush=True)
    study.write_config(config, workdir)
    study.train_missing(runs, data_dir)

    print("\n5/5 evaluate: on people that no network was trained on", flush=True)
    fresh = {}
    for name, platform in PLATFORM_OF.items():
        fresh[name] = f"rendered/{platform}"
        build_fresh(fresh[name], plan.fresh, data_dir, null)
    study.predict_missing(config, runs, data_dir)
    found = matrix.write(config, scenarios, runs, workdir, data_dir)
    add_truth(found, runs, {name: open_records(of, "test", data_dir) for name, of in fresh.items()})
    results.write(workdir, found)
    study.write_faces(workdir, scenarios[0].experiment.test)
    return found, runs


def build_fresh(name: str, people: int, data_dir: Path, null: bool) -> None:
    """Builds a dataset of people who are in no demo's clips: the same ones for every seed."""
    _run(
        "build",
        build.main,
        *(name, f"--people={people}", *["--null"] * null, f"--data_dir={data_dir}"),
    )


def invited(viewer: Callable[[int], Any], platform: str, count: int) -> list[Any]:
    """Returns people of a platform, by number, of whom 80, 10 and 10 % are in the parts.

    `grouped` hashes names, so the parts of any few people would differ much in size.
    """
    dataset, prefix = {"laboratory": ("neurobiosense", "p"), "social": ("youtube", "P")}.get(
        platform, ("", "")
    )
    if not dataset:
        return [viewer(number) for number in range(count)]
    tenth = max(1, round(count / 10))
    places = {"train": count - 2 * tenth, "validation": tenth, "test": tenth}
    people = []
    for one in map(viewer, itertools.count()):
        subject = f"{dataset}/{prefix}{one.id}"
        part = splits.grouped(splits.group_key(dataset, subject=subject, clip="", record=""))
        if places[part]:
            places[part] -= 1
            people.append(one)
        if not any(places.values()):
            return people
    raise AssertionError("numbers do not end")


def _estimate(plan: Plan, video: Any, cores: int) -> str:
    """Says how long a demo takes, from the time of filming a clip."""
    started = time.perf_counter()
    list(video.viewer.film(video.reactions[0], video.viewer.where()))
    slower = (time.perf_counter() - started) / CLIP_SECONDS
    minutes = max(1, round(plan.minutes * slower * 2 / min(cores, 2)))
    some = f"{minutes} minute{'s' * (minutes > 1)}"
    return f"about {some} on this machine; a killed demo goes on where it was"


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Answers a proxy's requests, which name the whole URL, with files of a folder."""

    def send_head(self) -> Any:
        self.path = urlsplit(self.path).path
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:
        """Is silent."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder's files on this machine as `ADDRESS`; yields the URL of the proxy."""
    page = "<html><body>Videos of rendered people, and no video on this page.</body></html>"
    storage.write_atomically(folder / "about.html", page)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{ADDRESS}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def add_truth(
    found: dict[str, Any], runs: Sequence[ScenarioRun], fresh: Mapping[str, Records]
) -> None:
    """Adds to a study's cells the network's balanced accuracy on thousands of fresh people.

    `fresh` has the records of fresh people by their test set. "truth" of a cell is {"value", "n":
    people, "covered": whether the cell's interval covers the value}.
    """
    cells = {
        (cell["scenario"], cell["dataset"]): cell for cell in found["cells"] if not cell["empty"]
    }
    for run in tqdm(runs, "true scores", unit="network", disable=None):
        model = network.load(run.workdir, batch_sizes=(FRESH_BATCH,))
        for name, people in fresh.items():
            probabilities = model.probabilities(map(people.image, range(len(people))))
            value = metrics.score(people.labels(model.task), probabilities)[METRIC]
            if (cell := cells.get((run.scenario.name, name))) is None:
                continue
            low, high = cell["metrics"][METRIC]["interval"]
            covered = low is not None and low <= value <= high
            cell["truth"] = {"value": value, "n": len(people), "covered": covered}


def truth_in_words(found: Mapping[str, Any]) -> str:
    """Says how many of the intervals cover the true score."""
    known = [cell["truth"] for cell in found["cells"] if "truth" in cell]
    covered = sum(one["covered"] for one in known)
    return (
        f"{covered} of {len(known)} intervals cover the true score, which is known because people "
        f"are rendered: the same networks on {min(one['n'] for one in known)} or more fresh people"
    )


def _run(verb: str, main: Callable[[list[str]], Any], *words: str) -> None:
    print(f"$ fer-jax {verb} {shlex.join(words)}", flush=True)
    main(list(words))
