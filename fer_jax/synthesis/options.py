"""The options of `synthesize`: one table for the command line, the checks and synthesis.json."""

import argparse
import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fer_jax import schema
from fer_jax.config import RANGES, output_path
from fer_jax.errors import InputError, did_you_mean
from fer_jax.fields import AT_LEAST_0, AT_LEAST_1, BELOW_1
from fer_jax.synthesis import quality
from fer_jax.synthesis.generator import DTYPES, NETWORKS, NOISE, NUM_SEEDS, Generator
from fer_jax.synthesis.labels import MIN_FIT_FACES, Directions
from fer_jax.synthesis.quality import Gates

BUDGET_PER_FACE = 10
MAX_SEEDS = 10_000_000
DETECTORS = ("yunet", "haar", "none")
NO_LABEL = "-"
FINITE, ENOUGH_FACES = "a finite number", f"at least {MIN_FIT_FACES}"
ALLOWED = RANGES | {FINITE: math.isfinite, ENOUGH_FACES: lambda x: x >= MIN_FIT_FACES}


class Flag(NamedTuple):
    """How a field is given on the command line."""

    group: str  # section of --help
    help: str
    metavar: str = ""
    read: Callable[[str], Any] | None = None  # text to value; None: the type of the default
    choices: tuple[str, ...] = ()
    allowed: str = ""  # a key of `ALLOWED`, or ""


def _flag(group: str, default: Any, *options: Any, **named: Any) -> Any:
    """Returns a dataclass field with a default and a `Flag`; MISSING: the flag is required."""
    return dataclasses.field(default=default, metadata={"flag": Flag(group, *options, **named)})


# Sections of --help; "" has no title.
TITLES = (
    *("", "which faces", "labels", "filter (a limit of 0 accepts everything)", "measures"),
    "sheets (alone, or with --count or --seeds)",
)
_general, _faces, _labels, _filter, _measures, _sheets = (
    functools.partial(_flag, title) for title in TITLES
)


def read_names(text: str) -> tuple[str, ...]:
    """Reads "a,b"."""
    return tuple(name.strip() for name in text.split(","))


def read_seeds(text: str) -> tuple[int, ...]:
    """Reads "0-99,200"; InputError for other texts, other seeds, and a seed that occurs twice."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"seeds must be given as in 0-99,200, got '{text}'")
        start, stop = int(first), int(last if dash else first)
        if not start <= stop < NUM_SEEDS:
            raise InputError(f"seeds must be ascending within 0 to 2**32 - 1, got '{part}'")
        if len(seeds) + stop - start >= MAX_SEEDS:
            raise InputError(f"more than {MAX_SEEDS} seeds")
        seeds.extend(range(start, stop + 1))
    if len(set(seeds)) != len(seeds):
        raise InputError(f"'{text}' names a seed twice")
    return tuple(seeds)


def seeds_to_text(seeds: Sequence[int]) -> str:
    """Returns seeds as they are given on the command line: "0-99,200"."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def _read_layers(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise InputError(f"layers must be given as FIRST-LAST, got '{text}'")
    return int(first), int(last if dash else first)


def _read_share(text: str) -> tuple[float, float]:
    least, _, most = text.partition(",")
    try:
        return float(least), float(most)
    except ValueError as error:
        raise InputError(f"the share must be given as LEAST,MOST, got '{text}'") from error


def _read_sweep(text: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    seeds, _, psis = text.partition(":")
    try:
        values = tuple(float(psi) for psi in psis.split(","))
    except ValueError as error:
        raise InputError(f"truncations must be given as in -1,0,0.7, got '{psis}'") from error
    if not all(map(math.isfinite, values)):
        raise InputError(f"truncations must be finite, got '{psis}'")
    return read_seeds(seeds), values


def _read_mix(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rows, _, columns = text.partition(":")
    return read_seeds(rows), read_seeds(columns)


def _read_dataset(text: str) -> tuple[str, str]:
    """Reads "name/config:split"; the split is "all" if it is not given."""
    name, _, split = text.partition(":")
    return name.strip(), split.strip() or "all"


def _read_datasets(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(map(_read_dataset, text.split(",")))


@dataclasses.dataclass(frozen=True)
class Request:
    """What determines the faces of a run, with the network, the teacher and the directions.

    `count` 0 samples `seeds` under every condition; `class_names` are in the network's order.
    """

    count: int = _faces(0, "accepted faces of each class", "N", allowed=AT_LEAST_0)
    seeds: tuple[int, ...] = _faces(
        (), "instead: exactly these, such as 0-99,200", "SEEDS", read_seeds
    )
    first_seed: int = _faces(0, "first seed of --count", "N")
    budget: int = _faces(0, "most candidates to assess [10 per face]", "N", allowed=AT_LEAST_0)
    psi: float = _faces(0.7, "truncation, towards the class's mean w", "X", allowed=FINITE)
    cutoff: int | None = _faces(None, "number of first layers to truncate [all]", "N", int)
    noise: str = _faces("const", "fixed, none, or by the seed", choices=NOISE)
    format: str = _faces("png", "of the images", choices=("png", "jpg"))
    batch_size: int = _general(16, "images at once, over all devices", "N", allowed=AT_LEAST_1)
    task: str = _labels(
        "emotion", "the task whose classes are the labels", choices=tuple(schema.TASKS)
    )
    class_names: tuple[str, ...] = _labels(
        (), "labels of a conditional network's classes, in its order; '-': none", "NAME,...",
        read_names,
    )  # fmt: skip
    classes: tuple[str, ...] = _labels(
        (), "only these, by name or the network's number", "CLASS,...", read_names
    )
    threshold: float = _labels(0.8, "least calibrated confidence", "P", allowed=BELOW_1)
    strength: float = _labels(
        3.0, "of a direction, in standard deviations of w along it", "X", allowed=FINITE
    )
    direction_layers: tuple[int, int] | None = _labels(
        None, "layers that a direction changes [all]", "FIRST-LAST", _read_layers
    )
    fit_samples: int = _labels(2000, "images to fit directions to", "N", allowed=ENOUGH_FACES)
    gates: Gates = Gates()
    detector: str = _filter(
        "yunet", "of faces; none: the whole image is the face", choices=DETECTORS
    )
    keep_duplicates: bool = _filter(False, "accept near-duplicates")


@dataclasses.dataclass(frozen=True)
class Options:
    """The other options of `synthesize`: where things are, the gates, measures and sheets."""

    network: Path = _general(
        dataclasses.MISSING, "NVIDIA's .pkl or the output of `convert`", "PATH"
    )
    out: Path = _general(
        dataclasses.MISSING, "rerun the same command to resume in it", "DIR", output_path
    )
    generator: str = _general("G_ema", "of the network file", choices=NETWORKS)
    dtype: str = _general("float32", "of the activations", choices=DTYPES)
    teacher: Path | None = _labels(None, "a run that gives or confirms the labels", "WORKDIR", Path)
    test_sets: tuple[tuple[str, str], ...] = _labels(
        (), "test sets of later runs; the teacher must not be trained on their people",
        "NAME:SPLIT,...", _read_datasets,
    )  # fmt: skip
    data_dir: Path | None = _labels(None, "[where the teacher was trained from]", "DIR", Path)
    directions: str = _labels("", "directions in w, one per class: move each face", "FILE|fit")
    detector_model: str = _filter("", "YuNet's file [fetched once]", "FILE")
    min_size: float = _filter(Gates().size, "pixels a side", "X", float)
    min_contrast: float = _filter(
        Gates().contrast, "standard deviation of the grey levels", "X", float
    )
    min_sharpness: float = _filter(Gates().sharpness, "variance of the Laplacian", "X", float)
    face_share: tuple[float, float] = _filter(
        Gates().face_share, "share of the image in the face's box", "LEAST,MOST", _read_share
    )
    several_faces: bool = _filter(False, "accept images of several faces")
    real: tuple[str, str] | None = _measures(
        None, "a built dataset to compare the faces with", "NAME[:SPLIT]", _read_dataset
    )
    features: Path | None = _measures(
        None, "the run whose features are compared [--teacher]", "WORKDIR", Path
    )
    sweep: tuple[tuple[int, ...], tuple[float, ...]] | None = _sheets(
        None, "-> truncation.jpg", "SEEDS:PSI,...", _read_sweep
    )
    mix: tuple[tuple[int, ...], tuple[int, ...]] | None = _sheets(
        None, "rows:columns -> mixing.jpg", "SEEDS:SEEDS", _read_mix
    )
    mix_layers: tuple[int, int] | None = _sheets(
        None, "layers that come from the column [the first half]", "FIRST-LAST", _read_layers
    )
    interpolate: tuple[int, ...] = _sheets((), "-> interpolation.mp4", "SEEDS", read_seeds)
    frames: int = _sheets(60, "from seed to seed", "N")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `Request` and `Options` to the verb's parser."""
    groups: dict[str, Any] = {title: parser.add_argument_group(title) for title in TITLES if title}
    for field in (*dataclasses.fields(Options), *dataclasses.fields(Request)):
        if "flag" not in field.metadata:
            continue  # the gates have flags of their own
        flag: Flag = field.metadata["flag"]
        group, default = groups.get(flag.group, parser), field.default
        if isinstance(default, bool):
            group.add_argument(f"--{field.name}", action="store_true", help=flag.help)
            continue
        is_required = default is dataclasses.MISSING
        shown = "" if is_required or default in (None, "", (), 0) else f" [{_text(default)}]"
        group.add_argument(
            f"--{field.name}",
            default=None if is_required else default,
            required=is_required,
            type=_converter(flag.read or (Path if is_required else type(default))),
            choices=flag.choices or None,
            metavar=flag.metavar or None,
            help=flag.help + shown,
        )


def _text(default: Any) -> str:
    return ",".join(map(_text, default)) if isinstance(default, tuple) else f"{default}"


def _converter(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Returns a reader for argparse, which replaces the message of any other error."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    convert.__name__ = read.__name__
    return convert


def from_arguments(namespace: argparse.Namespace) -> tuple[Request, Options]:
    """Returns what the flags say."""
    values: dict[str, Any] = dict(vars(namespace))
    options = Options(**{field.name: values[field.name] for field in dataclasses.fields(Options)})
    values["gates"] = Gates(
        options.min_size,
        options.min_contrast,
        options.min_sharpness,
        options.face_share,
        not options.several_faces,
    )
    names = [field.name for field in dataclasses.fields(Request)]
    return Request(**{name: values[name] for name in names}), options


class SamplingCondition(NamedTuple):
    """One way to sample a face: a class of the network or a direction in w."""

    name: str  # of the class, or "" if the run has only one condition
    # Index in the task's classes; -1: the teacher gives it, or it is unknown.
    label: int = schema.UNKNOWN
    label_source: str = ""  # as in records; "" if the label is -1
    class_index: int = -1  # the network's class; -1: it is unconditional


class Candidate(NamedTuple):
    """A face that may be generated: a seed and the index of a condition."""

    seed: int
    condition: int


class SamplingPlan(NamedTuple):
    """A request, resolved for a network."""

    request: Request
    conditions: list[SamplingCondition]
    groups: list[str]  # names of the classes that are counted
    by_teacher: bool  # whether the teacher's label decides which class a face counts for
    budget: int  # candidates that are assessed at most

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the task."""
        return schema.TASKS[self.request.task]

    def name(self, candidate: Candidate) -> str:
        """Returns the stem of the candidate's file; unique in a run."""
        condition = self.conditions[candidate.condition].name
        return f"seed{candidate.seed:010}" + (f"_{condition}" if condition else "")

    def candidates(self) -> Iterator[Candidate]:
        """Yields given seeds under each condition, or new seeds under the conditions in turn."""
        if self.request.seeds:
            pairs = itertools.product(self.request.seeds, range(len(self.conditions)))
            yield from itertools.starmap(Candidate, pairs)
            return
        for number in itertools.count():
            yield Candidate(self.request.first_seed + number, number % len(self.conditions))


def plan_sampling(
    request: Request, generator: Generator, *, has_teacher: bool, directions: Directions | None
) -> SamplingPlan:
    """Checks a request and resolves it for a network.

    Raises InputError for a value that is not allowed, a class that the network or the directions do
    not have, or a combination that gives no label.
    """
    _check(request, generator)
    conditions = _conditions(request, generator, has_teacher, directions)
    by_teacher = has_teacher and all(condition.label < 0 for condition in conditions)
    groups = [condition.name for condition in conditions]
    if by_teacher:
        classes = schema.TASKS[request.task]
        groups = [classes[_label(name, request.task)] for name in request.classes] or [*classes]
    budget = request.budget or BUDGET_PER_FACE * request.count * len(groups)
    if request.seeds:
        budget = len(request.seeds) * len(conditions)
    elif not 0 <= request.first_seed <= NUM_SEEDS - budget:
        raise InputError(
            f"--first_seed={request.first_seed} plus a budget of {budget} candidates must be "
            "within the seeds 0 to 2**32 - 1"
        )
    return SamplingPlan(request, conditions, groups, by_teacher, budget)


def _check(request: Request, generator: Generator) -> None:
    for field in dataclasses.fields(Request):
        value, flag = getattr(request, field.name), field.metadata.get("flag")
        if flag and flag.allowed and not ALLOWED[flag.allowed](value):
            raise InputError(f"--{field.name} must be {flag.allowed}, got {value}")
        if flag and flag.choices and value not in flag.choices:
            raise InputError(
                f"--{field.name} cannot be '{value}'{did_you_mean(value, flag.choices)}"
            )
    if bool(request.seeds) == bool(request.count):
        raise InputError("give --count=N faces of each class or --seeds=FIRST-LAST, one of them")
    if request.cutoff is not None and not 0 <= request.cutoff <= generator.num_ws:
        raise InputError(f"--cutoff must be 0 to {generator.num_ws} layers, got {request.cutoff}")
    if generator.config.img_channels != 3:
        raise InputError(f"the network has {generator.config.img_channels} channels, not RGB")
    quality.check_gates(request.gates, generator.resolution)


def _conditions(
    request: Request, generator: Generator, has_teacher: bool, directions: Directions | None
) -> list[SamplingCondition]:
    if directions is not None:
        return _direction_conditions(request, generator, has_teacher, directions)
    if not generator.c_dim:
        if request.class_names:
            raise InputError("--class_names is for conditional networks; this one has no classes")
        if request.classes and not has_teacher:
            raise InputError("--classes needs a --teacher, for the network itself has no classes")
        return [SamplingCondition("")]
    conditions = network_classes(request, generator)
    if request.class_names or not has_teacher:
        chosen = [_find_condition(name, conditions, request.task) for name in request.classes]
        return chosen or [one for one in conditions if one.name != NO_LABEL]
    return conditions


def _direction_conditions(
    request: Request, generator: Generator, has_teacher: bool, directions: Directions
) -> list[SamplingCondition]:
    if generator.c_dim:
        raise InputError("--directions is for unconditional networks; this one has classes")
    if not has_teacher:
        raise InputError("--directions needs a --teacher: it confirms that the edit succeeded")
    classes = schema.TASKS[request.task]
    known = [classes.index(name) for name in directions.classes]
    labels = [_label(name, request.task) for name in request.classes] or known
    for label in labels:
        if label not in known:
            raise InputError(
                f"there is no direction for {classes[label]}; there are "
                f"{', '.join(directions.classes)}"
            )
    return [SamplingCondition(classes[label], label, "direction") for label in labels]


def network_classes(request: Request, generator: Generator) -> list[SamplingCondition]:
    """Returns a condition for each class of a conditional network, in its order."""
    names = request.class_names
    if not names:
        return [SamplingCondition(str(i), class_index=i) for i in range(generator.c_dim)]
    if len(names) != generator.c_dim:
        raise InputError(
            f"--class_names names {len(names)} classes; the network has {generator.c_dim}"
        )
    conditions = []
    for index, name in enumerate(names):
        if name == NO_LABEL:
            conditions.append(SamplingCondition(NO_LABEL, class_index=index))
        else:
            label = _label(name, request.task)
            class_name = schema.TASKS[request.task][label]
            conditions.append(SamplingCondition(class_name, label, "class", index))
    counts = collections.Counter(one.name for one in conditions if one.name != NO_LABEL)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise InputError(f"--class_names names '{twice[0]}' twice")
    return conditions


def _find_condition(
    name: str, conditions: Sequence[SamplingCondition], task: str
) -> SamplingCondition:
    try:
        index = int(name)
    except ValueError:
        label = _label(name, task)
        indices = [one.class_index for one in conditions if one.label == label]
        if not indices:
            raise InputError(
                f"no class of the network is named '{name}'; --class_names names them"
            ) from None
        index = indices[0]
    if not 0 <= index < len(conditions):
        raise InputError(f"the network has classes 0 to {len(conditions) - 1}, not {index}")
    if conditions[index].name == NO_LABEL:
        raise InputError(f"class {index} is '{NO_LABEL}' in --class_names: it has no label")
    return conditions[index]


def _label(name: str, task: str) -> int:
    return schema.emotion_index(name) if task == "emotion" else schema.interest_index(name)
