"""Generate, label and filter synthetic faces in a folder that records their origin.

Candidates (`SamplingPlan.candidates`) are generated in a fixed order, in batches over all devices.
Each image is assessed, labelled by the teacher if there is one, and accepted or rejected with a
reason. While the host works on one batch, the devices compute the next ones. The accepted faces
depend on the order of the candidates alone, not on batches, devices or interruptions.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from fer_jax import results, schema, storage
from fer_jax.checkpoints import fingerprint
from fer_jax.config import OneLineParser
from fer_jax.data import provenance, synthetic
from fer_jax.data.experiment import training_data_dir
from fer_jax.data.records import labelled_rows, open_records
from fer_jax.data.synthetic import Row
from fer_jax.errors import InputError
from fer_jax.inference.network import Network, load
from fer_jax.media import images
from fer_jax.media.detector import make_detector
from fer_jax.media.faces import Detector
from fer_jax.sharding import make_mesh
from fer_jax.synthesis import labels, measures, quality, sheets
from fer_jax.synthesis.generator import (
    NUM_SEEDS,
    Generator,
    Renderer,
    generator_fingerprint,
    load_generator,
    make_renderer,
)
from fer_jax.synthesis.labels import Directions, Teacher
from fer_jax.synthesis.options import (
    Candidate,
    Options,
    Request,
    SamplingPlan,
    add_arguments,
    from_arguments,
    plan_sampling,
    seeds_to_text,
)
from fer_jax.synthesis.quality import FaceQuality
from fer_jax.weights.convert import read_about

NUM_THREADS = max(1, min(16, os.cpu_count() or 1))
BATCHES_AHEAD = 2  # on the devices, while the host works on one
BATCHES_BEING_WRITTEN = 2
# What may differ when a run resumes: everything else changes the faces.
CHANGEABLE = ("budget", "batch_size")
# Files that the verb itself may have written to a folder before its first face.
WRITTEN_FIRST = {
    *("directions.safetensors", "class_means.safetensors"),
    *("truncation.jpg", "mixing.jpg", "interpolation.mp4"),
}

EXAMPLES = """\
examples:
  100 faces of each class of a network that was trained here
    --network=runs/gan/generator --out=DIR --count=100
  the same of another conditional network
    --network=FILE.pkl --out=DIR --count=100 --class_names=anger,disgust,fear,...
  the same of an unconditional one, labelled by a run that was trained here
    --network=FILE.pkl --out=DIR --count=100 --teacher=runs/faces --threshold=0.8
  faces that are moved towards each emotion, each confirmed by the teacher
    --network=FILE.pkl --out=DIR --count=100 --teacher=runs/faces --directions=fit
"""


class Face(NamedTuple):
    """A generated image; `probabilities` float [classes] are the teacher's, if there is one."""

    candidate: Candidate
    image: np.ndarray
    quality: FaceQuality
    probabilities: np.ndarray | None


class Decision(NamedTuple):
    """An image's label (-1 unknown), its confidence, and why it is rejected ("": accepted)."""

    label: int
    confidence: float
    reason: str


@dataclasses.dataclass
class Ledger:
    """What became of the candidates so far, in earlier runs too."""

    plan: SamplingPlan
    finished: set[str]  # names of the candidates that were decided
    tally: quality.Tally  # of (class, reason)
    accepted: quality.DuplicateIndex  # the images that were accepted

    def is_full(self, group: str) -> bool:
        """Whether a class has as many faces as requested."""
        count = self.plan.request.count
        return bool(count) and self.tally[group, ""] >= count

    def is_needed(self, candidate: Candidate) -> bool:
        """Whether a candidate can still be accepted, as far as is known without its image."""
        if self.plan.by_teacher:
            return not all(map(self.is_full, self.plan.groups))
        return not self.is_full(self.plan.conditions[candidate.condition].name)

    def next_batch(
        self, candidates: Iterator[Candidate], size: int, in_flight: int
    ) -> list[Candidate]:
        """Takes the next candidates that are needed, within the budget."""
        batch: list[Candidate] = []
        left = self.plan.budget - self.tally.total() - in_flight
        while len(batch) < min(size, left) and not all(map(self.is_full, self.plan.groups)):
            candidate = next(candidates, None)
            if candidate is None:
                break
            if self.is_needed(candidate):
                batch.append(candidate)
        return batch

    def record(self, face: Face) -> Row:
        """Decides and counts; returns the row of records.csv, or of rejected.csv with a reason."""
        request, seed = self.plan.request, face.candidate.seed
        decision = decide(face, self.plan)
        row = _row(face, decision, self.plan)
        group, reason = synthetic.group_of(row), decision.reason
        name = self.plan.name(face.candidate)
        if not reason and self.is_full(group):
            reason = "its class is complete"
        if not reason and not request.keep_duplicates:
            if self.accepted.has_duplicate(face.image, seed):
                reason = "near-duplicate"
            else:
                self.accepted.add(face.image, seed)
        self.finished.add(name)
        self.tally[group, reason] += 1
        file = f"images/{group or 'unlabelled'}/{name}.{request.format}"
        return row | {"file": file, "face": name, "reason": reason}


def synthesize(
    generator: Generator,
    out: Path,
    plan: SamplingPlan,
    *,
    teacher: Teacher | None = None,
    directions: Directions | None = None,
    detector: Detector | None = None,
    mesh: Mesh | None = None,
    about: dict[str, Any] | None = None,
) -> quality.Tally:
    """Generates faces until each class is complete, or the seeds or the budget are used up.

    `plan` is from `plan_sampling` for this generator, teacher and directions. An interrupted run of
    the same request resumes in the folder `out`. The teacher labels the faces, or confirms the
    labels that classes and directions give. Without a detector the whole image is the face; without
    a mesh all devices of this process are used. `about` has further entries of synthesis.json.
    Returns the number of candidates by (class, reason). Raises InputError for another run in the
    folder, or an edit that goes too far, and OSError for a full disk; every finished row and image
    is valid.
    """
    mesh = make_mesh(jax.local_devices()) if mesh is None else mesh
    network = generator_fingerprint(generator)
    if directions is not None:
        chosen = [directions.classes.index(condition.name) for condition in plan.conditions]
        labels.check_strength(directions, chosen, plan.request.strength)
    _open_folder(out, plan.request, network, teacher, directions, about or {})
    renderer = _renderer(generator, out, plan, directions, network, mesh)
    ledger = read_ledger(out, plan)
    started, before = time.monotonic(), ledger.tally.total()
    try:
        _run(renderer, out, teacher, detector, ledger)
    finally:
        count, seconds = ledger.tally.total() - before, time.monotonic() - started
        if count:
            print(f"{count} images in {seconds:.1f} s, {count / seconds:.1f} images/s in all")
    lines = quality.filter_table(ledger.tally, plan.groups)
    text = "".join(",".join(line) + "\n" for line in lines)
    storage.write_atomically(out / "filter.csv", text)
    sheets.contact_sheet(out, _accepted_rows(out, plan.request), plan.groups)
    return ledger.tally


def _accepted_rows(out: Path, request: Request) -> list[Row]:
    return storage.read_table(out / synthetic.RECORDS, synthetic.record_columns(request.task))


def _open_folder(
    out: Path,
    request: Request,
    network: str,
    teacher: Teacher | None,
    directions: Directions | None,
    about: dict[str, Any],
) -> None:
    """Writes synthesis.json; refuses a folder of another run or of something else."""
    given = dataclasses.asdict(request)
    given |= {"gates": request.gates._asdict(), "seeds": seeds_to_text(request.seeds)}
    made_by: dict[str, Any] = {"network": network}
    if teacher is not None:
        made_by |= {"teacher": teacher.fingerprint}
    if directions is not None:
        made_by["directions"] = fingerprint(directions.vectors)
    settings = json.loads(json.dumps({"request": given, "made_by": made_by} | about))
    if teacher is not None:
        settings["teacher"] = teacher.about
    if directions is not None:
        settings["directions"] = {
            name: {"fit": float(fit), "moved": directions.moved(index, request.strength)}
            for index, (name, fit) in enumerate(
                zip(directions.classes, directions.fits, strict=True)
            )
        }
    file = out / synthetic.SETTINGS
    if not file.is_file():
        present = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if others := {name for name in present - WRITTEN_FIRST if not name.startswith(".")}:
            raise InputError(f"--out '{out}' holds something else ({min(others)}); choose another")
        storage.write_atomically(file, json.dumps(settings, indent=2) + "\n")
        return
    before = storage.read_json(file, "choose another --out")
    try:
        differing = [
            difference
            for name in ("request", "made_by")
            for difference in storage.differences(before[name], settings[name], ignored=CHANGEABLE)
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"'{file}' is damaged; choose another --out") from error
    if differing:
        raise InputError(
            f"--out '{out}' has faces of another run: {'; '.join(differing)}; choose another, or "
            "the same options"
        )


def _renderer(
    generator: Generator,
    out: Path,
    plan: SamplingPlan,
    directions: Directions | None,
    network: str,
    mesh: Mesh,
) -> Renderer:
    """Returns the renderer of a plan; the means of the classes are kept in the folder."""
    request = plan.request
    classes = [one.class_index for one in plan.conditions] if generator.c_dim else None
    edits = centers = None
    if directions is not None:
        indices = [directions.classes.index(condition.name) for condition in plan.conditions]
        edits = np.stack([directions.edit(index, request.strength) for index in indices])
    if classes is not None and request.psi != 1:
        file = out / "class_means.safetensors"
        means = labels.read_class_means(file, generator, network) if file.is_file() else None
        if means is None:
            means = labels.class_means(generator)
            labels.write_class_means(file, means, network)
        centers = means[classes]
    return make_renderer(
        generator,
        mesh,
        psi=request.psi,
        cutoff=request.cutoff,
        noise=request.noise,
        classes=classes,
        centers=centers,
        edits=edits,
        edited_layers=request.direction_layers,
    )


def read_ledger(out: Path, plan: SamplingPlan) -> Ledger:
    """Reads what earlier runs did, less unfinished lines; InputError for a damaged folder."""
    for name in (synthetic.RECORDS, synthetic.REJECTED):
        storage.drop_torn_line(out / name)
    accepted = _accepted_rows(out, plan.request)
    rejected = storage.read_table(out / synthetic.REJECTED, synthetic.REJECTED_COLUMNS)
    if missing := [row["file"] for row in accepted if not (out / row["file"]).is_file()]:
        raise InputError(
            f"{len(missing)} images of '{out / synthetic.RECORDS}' are missing, such as "
            f"'{missing[0]}'; choose another --out"
        )
    finished = {Path(row["file"]).stem for row in accepted} | {row["face"] for row in rejected}
    if doubled := len(accepted) + len(rejected) - len(finished):
        raise InputError(f"'{out}' has {doubled} faces twice in its tables; choose another --out")
    tally = collections.Counter(
        (synthetic.group_of(row), row.get("reason", "")) for row in [*accepted, *rejected]
    )
    index = quality.DuplicateIndex()
    if not plan.request.keep_duplicates:
        for row, image in zip(accepted, _read_images(out, accepted), strict=True):
            index.add(image, int(row["seed"]))
    return Ledger(plan, finished, tally, index)


def _read_images(out: Path, rows: Sequence[Row]) -> Iterator[np.ndarray]:
    """Yields the images of rows in order; decodes ahead, within limited memory."""

    def read(row: Row) -> np.ndarray:
        return images.decode((out / row["file"]).read_bytes())

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for first in range(0, len(rows), 4 * NUM_THREADS):
            yield from pool.map(read, rows[first : first + 4 * NUM_THREADS])


def _run(
    renderer: Renderer,
    out: Path,
    teacher: Teacher | None,
    detector: Detector | None,
    ledger: Ledger,
) -> None:
    plan, request = ledger.plan, ledger.plan.request
    batch_size = _batch_size(request, renderer.mesh)
    remaining = (c for c in plan.candidates() if plan.name(c) not in ledger.finished)
    in_flight = 0  # candidates on the devices
    total, done = plan.budget, ledger.tally.total()
    if request.count:
        total = request.count * len(plan.groups)
        done = sum(ledger.tally[group, ""] for group in plan.groups)
    ahead: collections.deque[tuple[list[Candidate], jax.Array]] = collections.deque()
    writing: collections.deque[Callable[[], None]] = collections.deque()
    with (
        tqdm(total=total, initial=done, desc="faces", unit="image", disable=None) as bar,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        while True:
            while len(ahead) <= BATCHES_AHEAD and (
                batch := ledger.next_batch(remaining, batch_size, in_flight)
            ):
                padded = [*batch, *[batch[-1]] * (batch_size - len(batch))]
                seeds = [candidate.seed for candidate in padded]
                ws = renderer.ws(seeds, [candidate.condition for candidate in padded])
                # Still being computed.
                ahead.append((batch, renderer.images(ws, seeds)))
                in_flight += len(batch)
            if not ahead:
                break
            batch, pending = ahead.popleft()
            in_flight -= len(batch)
            rendered = list(np.asarray(pending)[: len(batch)])
            assessed = _assess(rendered, pool, request, teacher, detector)
            # The class of a candidate may have been completed since it was sampled.
            decided = [
                (ledger.record(Face(candidate, image, *found)), image)
                for candidate, image, found in zip(batch, rendered, assessed, strict=True)
                if ledger.is_needed(candidate)
            ]
            futures = [
                pool.submit(_write_image, out / row["file"], image)
                for row, image in decided
                if not row["reason"]
            ]
            rows = [row for row, _ in decided]
            writing.append(functools.partial(_write_rows, out, request.task, futures, rows))
            while len(writing) > BATCHES_BEING_WRITTEN:
                writing.popleft()()
            bar.update(len(futures) if request.count else len(rows))
        while writing:
            writing.popleft()()


def _batch_size(request: Request, mesh: Mesh) -> int:
    return -(-request.batch_size // mesh.size) * mesh.size


def _assess(
    rendered: Iterable[np.ndarray],
    pool: ThreadPoolExecutor,
    request: Request,
    teacher: Teacher | None,
    detector: Detector | None,
) -> list[tuple[FaceQuality, np.ndarray | None]]:
    """Returns the quality of images, and probabilities by the teacher if they pass the gates."""
    found = list(pool.map(functools.partial(quality.assess, detector=detector), rendered))
    predictions: list[np.ndarray | None] = [None] * len(found)
    if teacher is not None:
        passed = {
            index: one.crop
            for index, one in enumerate(found)
            if quality.rejection_reason(one, request.gates) is None and one.crop is not None
        }
        for index, row in zip(passed, teacher.probabilities([*passed.values()]), strict=True):
            predictions[index] = row
    return list(zip(found, predictions, strict=True))


def decide(face: Face, plan: SamplingPlan) -> Decision:
    """Labels an image and decides whether it is rejected, without regard to other images."""
    condition = plan.conditions[face.candidate.condition]
    reason = quality.rejection_reason(face.quality, plan.request.gates) or ""
    if reason or face.probabilities is None:
        return Decision(condition.label, math.nan, reason)
    predicted = int(face.probabilities.argmax())
    label = predicted if condition.label < 0 else condition.label
    confidence = float(face.probabilities[label])
    if label != predicted:
        reason = "the teacher sees another class"
    elif confidence < plan.request.threshold:
        reason = "the teacher is not sure"
    elif plan.by_teacher and plan.classes[label] not in plan.groups:
        reason = "not a requested class"
    return Decision(label, confidence, reason)


def _row(face: Face, decision: Decision, plan: SamplingPlan) -> dict[str, Any]:
    condition, found = plan.conditions[face.candidate.condition], face.quality
    is_direction = condition.label_source == "direction"
    is_known = decision.label >= 0
    row: dict[str, Any] = {
        "seed": face.candidate.seed,
        "psi": plan.request.psi,
        "class": condition.name if condition.class_index >= 0 else "",
        "direction": condition.name if is_direction else "",
        "strength": plan.request.strength if is_direction else "",
        "label": plan.classes[decision.label] if is_known else "",
        "label_source": (condition.label_source or "teacher") if is_known else "",
        "confidence": decision.confidence,
        "quality": quality.quality_score(found),
        "size": found.size,
        "contrast": found.contrast,
        "sharpness": found.sharpness,
        "num_faces": found.num_faces if found.num_faces >= 0 else "",
        "face_share": found.face_share,
    }
    if face.probabilities is not None:
        columns = (f"p_{name}" for name in plan.classes)
        row |= dict(zip(columns, map(float, face.probabilities), strict=True))
    return row


def _write_image(path: Path, image: np.ndarray) -> None:
    is_jpeg = path.suffix == ".jpg"
    data = images.encode_jpeg(image) if is_jpeg else images.encode(image, ".png")
    storage.write_atomically(path, data, durable=False)


def _write_rows(out: Path, task: str, futures: Sequence[Future[None]], rows: Sequence[Row]) -> None:
    """Writes a batch's rows once its images are written."""
    for future in futures:
        future.result()
    for name, columns, is_rejected in (
        (synthetic.REJECTED, synthetic.REJECTED_COLUMNS, True),
        (synthetic.RECORDS, synthetic.record_columns(task), False),
    ):
        if chosen := [row for row in rows if bool(row["reason"]) == is_rejected]:
            storage.append_table(out / name, columns, chosen)


def fit_directions(
    generator: Generator,
    request: Request,
    teacher: Teacher,
    detector: Detector | None,
    mesh: Mesh | None = None,
) -> Directions:
    """Samples faces and fits a direction in w for each class that the teacher predicts.

    The last `request.fit_samples` seeds are used, which no run samples. `detector` None: the whole
    image is the face; `mesh` None: all devices of this process. InputError if too few images show a
    face that passes the gates.
    """
    mesh = make_mesh(jax.local_devices()) if mesh is None else mesh
    renderer = make_renderer(generator, mesh, psi=request.psi, noise=request.noise)
    batch_size = _batch_size(request, mesh)
    seeds = range(NUM_SEEDS - request.fit_samples, NUM_SEEDS)
    no_face = np.full(len(teacher.model.classes), np.nan)
    sampled, scores = [], []
    with (
        tqdm(total=len(seeds), desc="directions", unit="image", disable=None) as bar,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        for first in range(0, len(seeds), batch_size):
            part = seeds[first : first + batch_size]
            ws = renderer.map_seeds(part, batch_size)
            rendered = renderer.render(ws, part, batch_size)
            for _, one in _assess(rendered, pool, request, teacher, detector):
                scores.append(no_face if one is None else np.log(np.maximum(one, 1e-30)))
            sampled.append(ws[:, 0])
            bar.update(len(part))
    return labels.fit_directions(
        np.concatenate(sampled),
        np.stack(scores),
        teacher.model.classes,
        generator_fingerprint(generator),
    )


def measure(
    out: Path,
    request: Request,
    model: Network,
    real: tuple[str, str],
    data_dir: Path,
    detector: Detector | None,
) -> str:
    """Compares the accepted faces with a real dataset; writes measures.json.

    Uses the features of `model`, and the detector of the run; `real` is (dataset, split), built in
    `data_dir`. Returns the measures as a table for a terminal. InputError if the real set is not
    built or has no labels, or no face was accepted.
    """
    records = open_records(*real, data_dir)
    rows = _accepted_rows(out, request)
    if not rows:
        raise InputError(f"'{out}' has no faces to compare")
    classes = schema.TASKS[request.task]
    # Grey people are compared with grey faces: otherwise colour alone would tell them apart.
    grey = labels.is_grey([records])

    def crop(image: np.ndarray) -> np.ndarray:
        found = quality.assess(image, detector).crop
        # The detector may miss a face in the JPEG that it found in the image itself.
        face = images.square(image)[0] if found is None else found
        return labels.to_grey(face) if grey else face

    features = model.features(map(crop, _read_images(out, rows)))
    given = np.asarray([classes.index(row["label"]) if row["label"] else -1 for row in rows])
    labelled = labelled_rows(records, request.task)
    # `features` batches them and never has more than a few in memory.
    real_faces = (records.images([row], model.image_size)[0] for row in labelled)
    real_features, real_labels = model.features(real_faces), records.labels(request.task)[labelled]
    about = {
        "features": {"run": model.folder.resolve().name, "step": model.step},
        "real": f"{records.name}:{records.split}",
        "grey": grey,
    }
    compared = measures.compare(real_features, real_labels, features, given, classes)
    return measures.write(out / "measures.json", compared, about)


def main(argv: list[str]) -> None:
    """The verb `synthesize`."""
    description = "Faces from a StyleGAN2 network: generated, labelled, filtered, measured."
    parser = OneLineParser("fer-jax synthesize", description, epilog=EXAMPLES)
    add_arguments(parser)
    request, options = from_arguments(parser.parse_args(argv))
    has_sheets = bool(options.sweep or options.mix or options.interpolate)
    has_faces = bool(request.count or request.seeds) or not has_sheets
    if options.real and not (options.features or options.teacher):
        raise InputError("--real needs features: name a run with --features or --teacher")
    if options.test_sets and not options.teacher:
        raise InputError("--test_sets are what a --teacher must not have seen; there is none")
    generator = load_generator(options.network, options.generator, options.dtype)
    trained = read_about(options.network)
    if not request.class_names and trained.get("task") == request.task:
        request = dataclasses.replace(request, class_names=tuple(trained.get("classes", ())))
    has_teacher = options.teacher is not None
    # Everything is checked before the teacher and the directions, which take their time.
    planned_sheets = _plan_sheets(generator, request, options) if has_sheets else []
    if has_faces and not options.directions:
        plan_sampling(request, generator, has_teacher=has_teacher, directions=None)
    detector = None
    if request.detector != "none":
        detector = make_detector(request.detector, options.detector_model)
    teacher = None
    if options.teacher:
        teacher = labels.load_teacher(
            options.teacher, request.task, options.data_dir, options.test_sets
        )
        print(_describe_teacher(teacher))
    with storage.lock(options.out):
        for write in planned_sheets:
            print(write())
        if has_faces:
            about = {
                "network": {"file": options.network.name, "generator": options.generator},
                "generator": {name: trained.get(name, []) for name in provenance.KINDS},
            }
            directions = None
            if options.directions:
                directions = _directions(generator, request, options, teacher, detector)
            plan = plan_sampling(request, generator, has_teacher=has_teacher, directions=directions)
            tally = synthesize(
                generator,
                options.out,
                plan,
                teacher=teacher,
                directions=directions,
                detector=detector,
                about=about,
            )
            _report(options.out, plan, tally, generator, trained)
    if options.real:
        model = load(options.features) if options.features else teacher and teacher.model
        assert model is not None  # one of them was given
        data_dir = options.data_dir or training_data_dir(model.folder)
        print(measure(options.out, request, model, options.real, data_dir, detector))


def _describe_teacher(teacher: Teacher) -> str:
    validation, about = teacher.about["validation"], teacher.about
    grey = "; trained on grey images, so it is given grey images" if teacher.grey else ""
    unknown = ""
    if about["unknown"]:
        unknown = f"; unknown are the people of {', '.join(about['unknown'])}"
    return (
        f"teacher {about['run']}, step {teacher.model.step}: temperature "
        f"{teacher.temperature:.3f} from {validation['images']} validation images, calibration "
        f"error {validation['ece']['before']:.3f} -> {validation['ece']['after']:.3f}, accuracy "
        f"{validation['accuracy']:.3f}; it saw {len(about['subjects'])} named people, none of "
        f"them in {', '.join(about['test_sets']) or 'a test set (none is named)'}{unknown}{grey}"
    )


def _directions(
    generator: Generator,
    request: Request,
    options: Options,
    teacher: Teacher | None,
    detector: Detector | None,
) -> Directions:
    """Reads the directions of --directions, or fits and writes them; prints how good they are."""
    network = generator_fingerprint(generator)
    own = options.out / "directions.safetensors"
    if options.directions != "fit":
        found = labels.read_directions(Path(options.directions), generator, network, request.task)
    elif own.is_file() and (options.out / synthetic.SETTINGS).is_file():
        # Of the run that resumes; its settings are compared later.
        found = labels.read_directions(own, generator, network, request.task)
    else:
        if generator.c_dim:
            raise InputError("--directions is for unconditional networks; this one has classes")
        if teacher is None:
            raise InputError("--directions=fit needs a --teacher")
        plan_sampling(request, generator, has_teacher=True, directions=None)
        found = fit_directions(generator, request, teacher, detector)
        labels.write_directions(own, found)
    lines = [["direction", "fit", "moved"]]
    for index, (name, fit) in enumerate(zip(found.classes, found.fits, strict=True)):
        lines.append([name, f"{fit:.2f}", f"{found.moved(index, request.strength):.2f}"])
    print(results.align(lines))
    print("  fit: correlation with the teacher on faces that were not fitted to")
    print("  moved: length of the edit in w, in distances between two people")
    return found


def _report(
    out: Path,
    plan: SamplingPlan,
    tally: quality.Tally,
    generator: Generator,
    trained: dict[str, Any],
) -> None:
    print(results.align(quality.filter_table(tally, plan.groups)))
    if incomplete := [group for group in plan.groups if tally[group, ""] < plan.request.count]:
        listed = ", ".join(f"{group} {tally[group, '']}".strip() for group in incomplete)
        print(
            f"the budget of {plan.budget} candidates is used up; fewer than {plan.request.count}: "
            f"{listed}. Rerun the same command with a larger --budget to resume"
        )
    if generator.c_dim and not plan.request.class_names and not plan.by_teacher:
        print("the faces have no labels: --class_names=... names the network's classes")
    if not (trained.get("saw") or trained.get("subjects")):
        print(
            "the people behind these faces are unknown: the network does not say whom it was "
            "trained on, and `fer-jax train` will ask for config.allow_unknown_people"
        )
    print(f"{out / synthetic.RECORDS}, contact_sheet.jpg, filter.csv; build a dataset with:")
    print(f"  fer-jax build synthetic/grouped --source={out}")


def _plan_sheets(
    generator: Generator, request: Request, options: Options
) -> list[Callable[[], Path]]:
    """Checks the options of the sheets; returns functions that write them."""
    classes = request.classes if generator.c_dim else ()
    plain = dataclasses.replace(request, count=1, seeds=(), classes=classes)
    plan = plan_sampling(plain, generator, has_teacher=False, directions=None)
    plan = plan._replace(conditions=plan.conditions[:1])
    mesh = make_mesh(jax.local_devices())
    size, out = _batch_size(request, mesh), options.out

    @functools.cache
    def renderer() -> Renderer:
        network = generator_fingerprint(generator)
        return _renderer(generator, out, plan, None, network, mesh)

    planned: list[Callable[[], Path]] = []
    if options.sweep:
        seeds, psis = options.sweep
        planned.append(lambda: sheets.sweep(renderer(), out, seeds, psis, size))
    if options.mix:
        pair = options.mix
        # By default the first half, which determines the shape of a face.
        num_ws = generator.num_ws
        layers = first, last = options.mix_layers or (0, num_ws // 2 - 1)
        if not 0 <= first <= last < num_ws:
            raise InputError(
                f"--mix_layers is FIRST-LAST within 0-{num_ws - 1}, not {first}-{last}"
            )
        planned.append(lambda: sheets.mix(renderer(), out, pair, layers, size))
    if options.interpolate:
        stations, frames = options.interpolate, options.frames
        if len(stations) < 2 or frames < 1:
            raise InputError("--interpolate takes two seeds or more, and --frames at least 1")
        planned.append(lambda: sheets.interpolate(renderer(), out, stations, frames, size))
    return planned
