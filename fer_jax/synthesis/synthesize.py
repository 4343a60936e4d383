"""The verb `synthesize`: seeds to labelled, filtered faces in a folder that says how they came.

Candidates (`request.Wanted.candidates`) are made in one order, in batches over all devices. Each
picture is examined, put before the teacher if there is one, and kept or refused with a reason.
While the host examines, encodes and writes one batch, the devices are at the next ones. What
is kept depends on the order of the candidates alone, not on batches, devices, or how often the
run was stopped.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from fer_jax import schema
from fer_jax.checkpoints import fingerprint
from fer_jax.config import OneLineParser
from fer_jax.data import synthetic
from fer_jax.data.experiment import training_data_dir
from fer_jax.data.records import open_records
from fer_jax.data.synthetic import Row
from fer_jax.errors import InputError
from fer_jax.inference.load import Network, load
from fer_jax.media import faces, images
from fer_jax.media.faces import Detector
from fer_jax.sharding import make_mesh
from fer_jax.synthesis import labels, measures, quality, request, sheets
from fer_jax.synthesis.generator import Generator, load_generator
from fer_jax.synthesis.labels import Directions, Teacher
from fer_jax.synthesis.quality import Examined
from fer_jax.synthesis.render import Renderer, make_renderer
from fer_jax.synthesis.request import Candidate, Choice, Request, Wanted
from fer_jax.weights.convert import read_about

NUM_THREADS = max(1, min(16, os.cpu_count() or 1))
BATCHES_AHEAD = 2  # on the devices, while the host works on one
BATCHES_BEING_WRITTEN = 2
# What may differ when a run goes on: everything else makes other faces.
CHANGEABLE = ("budget", "batch_size")
# What is made in a folder before its first face, by the flags that stand for themselves.
MADE_BEFORE = {
    *("directions.safetensors", "class_means.safetensors"),
    *("truncation.jpg", "mixing.jpg", "interpolation.mp4"),
}

EXAMPLES = """\
examples:
  100 faces of each class of a network that was trained here
    --network=runs/gan/generator --out=DIR --count=100
  the same of somebody else's conditional network
    --network=FILE.pkl --out=DIR --count=100 --class_names=anger,disgust,fear,...
  the same of an unconditional one, labelled by a run that was trained here
    --network=FILE.pkl --out=DIR --count=100 --teacher=runs/faces --threshold=0.8
  faces that are moved towards each emotion, each confirmed by the teacher
    --network=FILE.pkl --out=DIR --count=100 --teacher=runs/faces --directions=fit
"""


class Verdict(NamedTuple):
    """What is thought of a picture: its label (-1 unknown), how sure, and why it is refused."""

    label: int
    confidence: float
    reason: str


@dataclasses.dataclass
class Ledger:
    """What became of the candidates so far, of earlier runs too.

    Attributes:
      finished: names of the candidates that were judged.
      tally: of (class, reason); the reason of those that were kept is "".
      pictures: those that were kept.
    """

    finished: set[str]
    tally: quality.Tally
    pictures: quality.Kept

    def is_full(self, group: str, wanted: Wanted) -> bool:
        """Whether a class has its number."""
        count = wanted.request.count
        return bool(count) and self.tally[group, ""] >= count


def synthesize(
    generator: Generator,
    out: Path,
    wanted: Wanted,
    *,
    teacher: Teacher | None = None,
    directions: Directions | None = None,
    detector: Detector | None = None,
    mesh: Mesh | None = None,
    about: dict[str, Any] | None = None,
) -> quality.Tally:
    """Makes faces until each class has its number, or the seeds or the budget are used up.

    Args:
      generator: from `load_generator`.
      out: the folder; a run of the same request that was stopped in it goes on.
      wanted: from `request.resolve` for this generator, teacher and directions.
      teacher: labels the faces, or confirms the labels that classes and directions give.
      directions: in w.
      detector: finds the face; None: the whole picture is the face.
      mesh: the devices; None: all of this process.
      about: what else synthesis.json says of where things came from.

    Returns:
      How many pictures of each class were kept, and why the others were not.

    Raises:
      InputError: another run in the folder, an edit that goes too far, or a full disk; what is
        finished then is whole.
    """
    mesh = make_mesh(jax.local_devices()) if mesh is None else mesh
    network = generator_fingerprint(generator)
    if directions is not None:
        chosen = [directions.classes.index(choice.name) for choice in wanted.choices]
        labels.check_strength(directions, chosen, wanted.request.strength)
    _open_folder(out, wanted.request, network, teacher, directions, about or {})
    renderer = _renderer(generator, out, wanted, directions, network, mesh)
    ledger = read_ledger(out, wanted.request)
    started, before = time.monotonic(), ledger.tally.total()
    try:
        _run(renderer, out, wanted, teacher, detector, ledger)
    finally:
        judged, seconds = ledger.tally.total() - before, time.monotonic() - started
        if judged:
            print(f"{judged} pictures in {seconds:.1f} s, {judged / seconds:.1f} images/s in all")
    lines = quality.table(ledger.tally, wanted.groups)
    text = "".join(",".join(line) + "\n" for line in lines)
    synthetic.write_whole(out / "filter.csv", text.encode())
    rows = synthetic.read(out / synthetic.RECORDS, synthetic.record_columns(wanted.request.task))
    sheets.contact_sheet(out, rows, wanted.groups)
    return ledger.tally


def generator_fingerprint(generator: Generator) -> str:
    """SHA-256 of a generator's arrays: the same from NVIDIA's file and from a converted one."""
    return fingerprint((dict(generator.params), dict(generator.buffers)))


def _open_folder(
    out: Path,
    asked: Request,
    network: str,
    teacher: Teacher | None,
    directions: Directions | None,
    about: dict[str, Any],
) -> None:
    """Says in synthesis.json what the folder holds; refuses one that holds something else."""
    plain = dataclasses.asdict(asked)
    plain |= {"gates": asked.gates._asdict(), "seeds": request.spelled(asked.seeds)}
    made_by: dict[str, Any] = {"network": network}
    if teacher is not None:
        made_by |= {"teacher": teacher.fingerprint}
    if directions is not None:
        made_by["directions"] = fingerprint(directions.vectors)
    settings = json.loads(json.dumps({"request": plain, "made_by": made_by} | about))
    if teacher is not None:
        settings["teacher"] = teacher.about
    if directions is not None:
        settings["directions"] = {
            name: {"fit": float(fit), "moved": directions.moved(index, asked.strength)}
            for index, (name, fit) in enumerate(
                zip(directions.classes, directions.fits, strict=True)
            )
        }
    file = out / synthetic.SETTINGS
    if not file.is_file():
        if out.exists() and not out.is_dir():
            raise InputError(f"--out '{out}' is a file; name a folder")
        there = {path.name for path in out.iterdir()} if out.is_dir() else set()
        others = {name for name in there - MADE_BEFORE if not name.startswith(".")}
        if others:
            raise InputError(f"--out '{out}' holds something else ({min(others)}); choose another")
        synthetic.write_whole(file, (json.dumps(settings, indent=2) + "\n").encode())
        return
    try:
        before = json.loads(file.read_text())
        differing = [
            f"{key} (was {was.get(key)}, now {now.get(key)})"
            for was, now in ((before[name], settings[name]) for name in ("request", "made_by"))
            for key in sorted(was.keys() | now.keys())
            if was.get(key) != now.get(key) and key not in CHANGEABLE
        ]
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"'{file}' is damaged; choose another --out") from error
    if differing:
        raise InputError(
            f"--out '{out}' holds faces of another run: {'; '.join(differing)}; choose another, or "
            "the same options"
        )


def _renderer(
    generator: Generator,
    out: Path,
    wanted: Wanted,
    directions: Directions | None,
    network: str,
    mesh: Mesh,
) -> Renderer:
    asked = wanted.request
    numbers = [choice.number for choice in wanted.choices] if generator.c_dim else None
    edits = centres = None
    if directions is not None:
        edits = np.stack(
            [
                directions.edit(directions.classes.index(choice.name), asked.strength)
                for choice in wanted.choices
            ]
        )
    if numbers is not None and asked.psi != 1:
        centres = _class_means(generator, out, network)[numbers]
    return make_renderer(
        generator,
        mesh,
        psi=asked.psi,
        cutoff=asked.cutoff,
        noise=asked.noise,
        num_choices=len(wanted.choices),
        classes=numbers,
        centres=centres,
        edits=edits,
        edited_layers=asked.direction_layers,
    )


def _class_means(generator: Generator, out: Path, network: str) -> np.ndarray:
    """Each class's mean w; kept in the folder, for it takes longer than a few faces."""
    file = out / "class_means.safetensors"
    means = labels.read_class_means(file, generator, network) if file.is_file() else None
    if means is None:
        means = labels.class_means(generator)
        labels.write_class_means(file, means, network)
    return means


def read_ledger(out: Path, asked: Request) -> Ledger:
    """What earlier runs in the folder came to; lines that they did not finish are taken away.

    Raises:
      InputError: a table that does not make sense, or a kept picture that is gone.
    """
    for name in (synthetic.RECORDS, synthetic.REJECTED):
        synthetic.cut_torn_line(out / name)
    rows = synthetic.read(out / synthetic.RECORDS, synthetic.record_columns(asked.task))
    refused = synthetic.read(out / synthetic.REJECTED, synthetic.REJECTED_COLUMNS)
    gone = [row["file"] for row in rows if not (out / row["file"]).is_file()]
    if gone:
        raise InputError(
            f"{len(gone)} pictures of '{out / synthetic.RECORDS}' are gone, such as '{gone[0]}'; "
            "choose another --out"
        )
    ledger = Ledger(
        {Path(row["file"]).stem for row in rows} | {row["face"] for row in refused},
        collections.Counter(
            (synthetic.group_of(row), row.get("reason", "")) for row in [*rows, *refused]
        ),
        quality.Kept(),
    )
    if not asked.keep_duplicates:
        for row, picture in zip(rows, _pictures(out, rows), strict=True):
            ledger.pictures.add(picture, int(row["seed"]))
    return ledger


def _pictures(out: Path, rows: Sequence[Row]) -> Iterator[np.ndarray]:
    """The kept pictures, in order, decoded ahead but no further than memory allows."""

    def read(row: Row) -> np.ndarray:
        return images.decode((out / row["file"]).read_bytes())

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for first in range(0, len(rows), 4 * NUM_THREADS):
            yield from pool.map(read, rows[first : first + 4 * NUM_THREADS])


def _run(
    renderer: Renderer,
    out: Path,
    wanted: Wanted,
    teacher: Teacher | None,
    detector: Detector | None,
    ledger: Ledger,
) -> None:
    asked = wanted.request
    batch_size = -(-asked.batch_size // renderer.mesh.size) * renderer.mesh.size
    remaining = (c for c in wanted.candidates() if wanted.name(c) not in ledger.finished)
    in_flight = 0  # candidates that are being made

    def is_needed(candidate: Candidate) -> bool:
        """Whether a candidate can still be kept, as far as one knows without its picture."""
        if wanted.by_teacher:
            return not all(ledger.is_full(group, wanted) for group in wanted.groups)
        return not ledger.is_full(wanted.choices[candidate.choice].name, wanted)

    def next_batch() -> list[Candidate]:
        batch: list[Candidate] = []
        while len(batch) < batch_size and any(
            not ledger.is_full(group, wanted) for group in wanted.groups
        ):
            if ledger.tally.total() + in_flight + len(batch) >= wanted.budget:
                break
            candidate = next(remaining, None)
            if candidate is None:
                break
            if is_needed(candidate):
                batch.append(candidate)
        return batch

    ahead: collections.deque[tuple[list[Candidate], jax.Array]] = collections.deque()
    writing: collections.deque[Callable[[], None]] = collections.deque()
    goal = asked.count * len(wanted.groups) or wanted.budget
    done = sum(ledger.tally[group, ""] for group in wanted.groups)
    with (
        tqdm(
            total=goal,
            initial=done if asked.count else ledger.tally.total(),
            desc="faces",
            unit="image",
            disable=None,
        ) as bar,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        while True:
            while len(ahead) <= BATCHES_AHEAD and (batch := next_batch()):
                ahead.append((batch, _rendered(renderer, batch, batch_size)))
                in_flight += len(batch)
            if not ahead:
                break
            batch, pending = ahead.popleft()
            pictures = list(np.asarray(pending)[: len(batch)])
            examined = list(
                pool.map(functools.partial(quality.examine, detector=detector), pictures)
            )
            chances = _scored(examined, asked, teacher)
            in_flight -= len(batch)
            kept, refused, futures = [], [], []
            for index, candidate in enumerate(batch):
                if not is_needed(candidate):
                    continue  # its class was completed while this was being made
                picture = pictures[index]
                row = _judged(candidate, picture, examined[index], chances[index], wanted, ledger)
                if row["reason"]:
                    refused.append(row)
                    continue
                kept.append(row)
                path = out / row["file"]
                futures.append(pool.submit(_write_picture, path, picture, asked.format))
            writing.append(functools.partial(_settle, out, asked.task, futures, kept, refused))
            while len(writing) > BATCHES_BEING_WRITTEN:
                writing.popleft()()
            bar.update(len(kept) if asked.count else len(kept) + len(refused))
        while writing:
            writing.popleft()()


def _rendered(renderer: Renderer, batch: Sequence[Candidate], batch_size: int) -> jax.Array:
    """The pictures of a batch, filled up with its last one; still being computed."""
    padded = [*batch, *[batch[-1]] * (batch_size - len(batch))]
    seeds = [candidate.seed for candidate in padded]
    return renderer.images(renderer.ws(seeds, [one.choice for one in padded]), seeds)


def _scored(
    examined: Sequence[Examined], asked: Request, teacher: Teacher | None
) -> list[np.ndarray | None]:
    """The teacher's probabilities of the pictures that pass the gates; None of the others."""
    scored: list[np.ndarray | None] = [None] * len(examined)
    if teacher is None:
        return scored
    passed = [i for i, one in enumerate(examined) if quality.refusal(one, asked.gates) is None]
    crops = [crop for i in passed if (crop := examined[i].crop) is not None]
    for i, chances in zip(passed, teacher.probabilities(crops), strict=True):
        scored[i] = chances
    return scored


def _judged(
    candidate: Candidate,
    picture: np.ndarray,
    examined: Examined,
    chances: np.ndarray | None,
    wanted: Wanted,
    ledger: Ledger,
) -> Row:
    """A candidate's row of records.csv or, if it has a "reason", of rejected.csv; counts it."""
    choice = wanted.choices[candidate.choice]
    verdict = judge(choice, examined, chances, wanted)
    row = _row(candidate, choice, verdict, examined, chances, wanted)
    group, name = synthetic.group_of(row), wanted.name(candidate)
    reason = verdict.reason
    if not reason and ledger.is_full(group, wanted):
        reason = "its class is complete"
    if not reason and not wanted.request.keep_duplicates:
        if ledger.pictures.is_copy(picture, candidate.seed):
            reason = "near-duplicate"
        else:
            ledger.pictures.add(picture, candidate.seed)
    ledger.finished.add(name)
    ledger.tally[group, reason] += 1
    file = f"images/{group or 'unlabelled'}/{name}.{wanted.request.format}"
    return row | {"file": file, "face": name, "reason": reason}


def judge(
    choice: Choice, examined: Examined, chances: np.ndarray | None, wanted: Wanted
) -> Verdict:
    """What is thought of a picture by itself.

    Args:
      choice: how it was made.
      examined: its measures.
      chances: float [classes], the teacher's calibrated probabilities; None without a teacher.
      wanted: the gates, the threshold and the classes.
    """
    reason = quality.refusal(examined, wanted.request.gates) or ""
    if reason or chances is None:
        return Verdict(choice.label, math.nan, reason)
    seen = int(chances.argmax())
    label = seen if choice.label < 0 else choice.label
    confidence = float(chances[label])
    if label != seen:
        reason = "the teacher sees another class"
    elif confidence < wanted.request.threshold:
        reason = "the teacher is not sure"
    elif wanted.by_teacher and wanted.classes[label] not in wanted.groups:
        reason = "not a wanted class"
    return Verdict(label, confidence, reason)


def _row(
    candidate: Candidate,
    choice: Choice,
    verdict: Verdict,
    examined: Examined,
    chances: np.ndarray | None,
    wanted: Wanted,
) -> dict[str, Any]:
    is_direction = choice.source == "direction"
    is_known = verdict.label >= 0
    row: dict[str, Any] = {
        "seed": candidate.seed,
        "psi": wanted.request.psi,
        "class": choice.name if choice.number >= 0 else "",
        "direction": choice.name if is_direction else "",
        "strength": wanted.request.strength if is_direction else "",
        "label": wanted.classes[verdict.label] if is_known else "",
        "label_source": (choice.source or "teacher") if is_known else "",
        "confidence": verdict.confidence,
        "quality": quality.margin(examined),
        "size": examined.size,
        "contrast": examined.contrast,
        "sharpness": examined.sharpness,
        "num_faces": examined.num_faces if examined.num_faces >= 0 else "",
        "face_share": examined.face_share,
    }
    if chances is not None:
        row |= {f"p_{name}": float(p) for name, p in zip(wanted.classes, chances, strict=True)}
    return row


def _write_picture(path: Path, picture: np.ndarray, kind: str) -> None:
    if kind == "jpg":
        data = images.encode_jpeg(picture)
    else:
        data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    synthetic.write_whole(path, data)


def _settle(
    out: Path,
    task: str,
    futures: Sequence[Future[None]],
    kept: Sequence[Row],
    refused: Sequence[Row],
) -> None:
    """Writes a batch's rows once its pictures are there."""
    for future in futures:
        future.result()
    if refused:
        synthetic.append(out / synthetic.REJECTED, synthetic.REJECTED_COLUMNS, refused)
    if kept:
        synthetic.append(out / synthetic.RECORDS, synthetic.record_columns(task), kept)


def fit_directions(
    generator: Generator,
    asked: Request,
    teacher: Teacher,
    detector: Detector | None,
    mesh: Mesh | None = None,
) -> Directions:
    """Samples faces, asks the teacher, and fits a direction in w for each class.

    The seeds are the last ones there are, so that no face of a run was fitted to.

    Args:
      generator: an unconditional one.
      asked: its psi, noise, gates and number of samples are used.
      teacher: whose classes get a direction.
      detector: finds the face; None: the whole picture is the face.
      mesh: the devices; None: all of this process.

    Raises:
      InputError: too few of the pictures show a face that passes the gates.
    """
    mesh = make_mesh(jax.local_devices()) if mesh is None else mesh
    renderer = make_renderer(generator, mesh, psi=asked.psi, noise=asked.noise)
    batch_size = -(-asked.batch_size // mesh.size) * mesh.size
    seeds = range(request.NUM_SEEDS - asked.fit_samples, request.NUM_SEEDS)
    no_face = np.full(len(teacher.model.classes), np.nan)
    sampled, scores = [], []
    with (
        tqdm(total=len(seeds), desc="directions", unit="image", disable=None) as bar,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        for first in range(0, len(seeds), batch_size):
            part = list(seeds[first : first + batch_size])
            padded = part + part[-1:] * (batch_size - len(part))
            ws = renderer.ws(padded, [0] * batch_size)
            pictures = list(np.asarray(renderer.images(ws, padded))[: len(part)])
            examined = list(
                pool.map(functools.partial(quality.examine, detector=detector), pictures)
            )
            for chances in _scored(examined, asked, teacher):
                scores.append(no_face if chances is None else np.log(np.maximum(chances, 1e-30)))
            sampled.append(np.asarray(ws[: len(part), 0]))
            bar.update(len(part))
    return labels.fit_directions(
        np.concatenate(sampled),
        np.stack(scores),
        teacher.model.classes,
        generator_fingerprint(generator),
    )


def measure(
    out: Path,
    asked: Request,
    model: Network,
    real: tuple[str, str],
    data_dir: Path,
    detector: Detector | None,
) -> str:
    """Compares the kept faces with a real dataset; writes measures.json.

    Args:
      out: the folder of the run.
      asked: of the run.
      model: whose features are used.
      real: (dataset, split).
      data_dir: where it is built.
      detector: as in the run.

    Returns:
      The measures as a table for a terminal.

    Raises:
      InputError: the real set is not built or has no labels, or nothing was kept.
    """
    records = open_records(*real, data_dir)
    rows = synthetic.read(out / synthetic.RECORDS, synthetic.record_columns(asked.task))
    if not rows:
        raise InputError(f"'{out}' holds no faces to compare")
    classes = schema.TASKS[asked.task]

    # Grey people are compared with grey faces: colour alone would set them apart.
    grey = labels.is_grey([records])

    def crop(picture: np.ndarray) -> np.ndarray:
        found = quality.examine(picture, detector).crop
        # What is kept as JPEG may lose a face that was only just found.
        face = images.square(picture)[0] if found is None else found
        return labels.greyed(face) if grey else face

    made = model.features(map(crop, _pictures(out, rows)))
    given = np.asarray([classes.index(row["label"]) if row["label"] else -1 for row in rows])
    known = measures.record_features(model, records, asked.task)
    about = {
        "features": {"run": model.folder.resolve().name, "step": model.step},
        "real": f"{records.name}:{records.split}",
        "grey": grey,
    }
    compared = measures.compare(*known, made, given, classes)
    return measures.write(out / "measures.json", compared, about)


def main(argv: list[str]) -> None:
    """The verb `synthesize`."""
    parser = OneLineParser(
        prog="fer-jax synthesize",
        description="Faces from a StyleGAN2 network: generated, labelled, filtered, measured.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    request.add_arguments(parser)
    options = parser.parse_args(argv)
    asked = request.from_arguments(options)
    has_sheets = bool(options.sweep or options.mix or options.interpolate)
    has_faces = bool(asked.count or asked.seeds) or not has_sheets
    if options.real and not (options.features or options.teacher):
        raise InputError("--real needs features: name a run with --features or --teacher")
    if options.test_sets and not options.teacher:
        raise InputError("--test_sets are what a --teacher must not have seen; there is none")
    generator = load_generator(options.network, options.generator, options.dtype)
    trained = read_about(options.network)
    if not asked.class_names and trained.get("task") == asked.task:
        asked = dataclasses.replace(asked, class_names=tuple(trained["classes"]))
    has_teacher = options.teacher is not None
    # Before the teacher and the directions, which take their time.
    drawn = _sheets(generator, asked, options) if has_sheets else []
    if has_faces and not options.directions:
        request.resolve(asked, generator, has_teacher=has_teacher, directions=None)
    detector = None
    if asked.detector != "none":
        model = faces.detector_model(options.detector_model) if asked.detector == "yunet" else ""
        detector = faces.make_detector(asked.detector, str(model))
    teacher = None
    if options.teacher:
        test_sets = [request.dataset_and_split(entry) for entry in request.words(options.test_sets)]
        teacher = labels.load_teacher(options.teacher, asked.task, options.data_dir, test_sets)
        print(_calibration(teacher))
    for draw in drawn:
        print(draw())
    if has_faces:
        directions = None
        if options.directions:
            directions = _directions(generator, asked, options, teacher, detector)
        wanted = request.resolve(asked, generator, has_teacher=has_teacher, directions=directions)
        tally = synthesize(
            generator,
            options.out,
            wanted,
            teacher=teacher,
            directions=directions,
            detector=detector,
            about={
                "network": {"file": options.network.name, "generator": options.generator},
                "generator": {name: trained.get(name, []) for name in ("saw", "subjects")},
            },
        )
        _report(options.out, wanted, tally, generator)
    if options.real:
        model = load(options.features) if options.features or teacher is None else teacher.model
        data_dir = options.data_dir or training_data_dir(model.folder)
        real = request.dataset_and_split(options.real)
        print(measure(options.out, asked, model, real, data_dir, detector))


def _calibration(teacher: Teacher) -> str:
    known = teacher.about["validation"]
    grey = "; it has only seen grey pictures and is shown grey ones" if teacher.grey else ""
    return (
        f"teacher {teacher.about['run']}, step {teacher.model.step}: temperature "
        f"{teacher.temperature:.3f} from {known['images']} validation images, calibration error "
        f"{known['ece']['before']:.3f} -> {known['ece']['after']:.3f}, accuracy "
        f"{known['accuracy']:.3f}; it saw {len(teacher.about['subjects'])} named people, none of "
        f"them in {', '.join(teacher.about['test_sets']) or 'a test set (none is named)'}{grey}"
    )


def _directions(
    generator: Generator,
    asked: Request,
    options: argparse.Namespace,
    teacher: Teacher | None,
    detector: Detector | None,
) -> Directions:
    network = generator_fingerprint(generator)
    own = options.out / "directions.safetensors"
    if options.directions != "fit":
        found = labels.read_directions(Path(options.directions), generator, network, asked.task)
    elif own.is_file() and (options.out / synthetic.SETTINGS).is_file():
        # Of the run that goes on here; whether it is the same one is checked with its settings.
        found = labels.read_directions(own, generator, network, asked.task)
    else:
        if generator.c_dim:
            raise InputError("--directions is for unconditional networks; this one has classes")
        if teacher is None:
            raise InputError("--directions=fit needs a --teacher")
        request.resolve(asked, generator, has_teacher=True, directions=None)
        found = fit_directions(generator, asked, teacher, detector)
        labels.write_directions(own, found)
    lines = [["direction", "fit", "moved"]]
    for index, (name, fit) in enumerate(zip(found.classes, found.fits, strict=True)):
        lines.append([name, f"{fit:.2f}", f"{found.moved(index, asked.strength):.2f}"])
    print(quality.aligned(lines))
    print("  fit: correlation with the teacher on faces that it was not fitted to")
    print("  moved: how far the edit goes in w, in distances between two people")
    return found


def _report(out: Path, wanted: Wanted, tally: quality.Tally, generator: Generator) -> None:
    print(quality.aligned(quality.table(tally, wanted.groups)))
    short = [group for group in wanted.groups if tally[group, ""] < wanted.request.count]
    if short:
        listed = ", ".join(f"{group} {tally[group, '']}".strip() for group in short)
        print(
            f"the budget of {wanted.budget} pictures is spent; fewer than {wanted.request.count}: "
            f"{listed}. The same command with a larger --budget goes on"
        )
    if generator.c_dim and not wanted.request.class_names and not wanted.by_teacher:
        print("the faces have no labels: --class_names=... says what the network's classes are")
    print(f"{out / synthetic.RECORDS}, contact_sheet.jpg, filter.csv; make records of them with:")
    print(f"  fer-jax build synthetic/grouped --source={out}")


def _sheets(
    generator: Generator, asked: Request, options: argparse.Namespace
) -> list[Callable[[], Path]]:
    """What is drawn beside the faces: the flags are checked now, the drawing comes later."""
    plain = dataclasses.replace(asked, count=1, seeds=(), classes=())
    if generator.c_dim:
        plain = dataclasses.replace(plain, classes=asked.classes)
    wanted = request.resolve(plain, generator, has_teacher=False, directions=None)
    wanted = wanted._replace(choices=wanted.choices[:1])
    mesh = make_mesh(jax.local_devices())
    size = -(-asked.batch_size // mesh.size) * mesh.size

    @functools.cache
    def renderer() -> Renderer:
        network = generator_fingerprint(generator)
        return _renderer(generator, options.out, wanted, None, network, mesh)

    drawn: list[Callable[[], Path]] = []
    if options.sweep:
        seeds, _, psis = options.sweep.partition(":")
        rows = request.parse_seeds(seeds, "--sweep")
        columns = request.parse_psis(psis, "--sweep")
        drawn.append(lambda: sheets.sweep(renderer(), options.out, rows, columns, size))
    if options.mix:
        first, _, second = options.mix.partition(":")
        pair = request.parse_seeds(first, "--mix"), request.parse_seeds(second, "--mix")
        mixed = request.layers(options.mix_layers, "--mix_layers")
        mixed = sheets.check_layers(mixed, generator.num_ws)
        drawn.append(lambda: sheets.mix(renderer(), options.out, pair, mixed, size))
    if options.interpolate:
        stations = request.parse_seeds(options.interpolate, "--interpolate")
        if len(stations) < 2 or options.frames < 1:
            raise InputError("--interpolate takes two seeds or more, and --frames at least 1")
        drawn.append(
            lambda: sheets.interpolate(renderer(), options.out, stations, options.frames, size)
        )
    return drawn
