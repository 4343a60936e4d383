"""What faces are asked for: the flags of `synthesize`, checked before anything is made."""

import argparse
import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fer_jax import schema
from fer_jax.errors import InputError, did_you_mean
from fer_jax.synthesis import labels, quality
from fer_jax.synthesis.generator import DTYPES, NETWORKS, NOISE, Generator
from fer_jax.synthesis.labels import Directions
from fer_jax.synthesis.quality import Gates

BUDGET_PER_FACE = 10
MAX_SEEDS = 10_000_000
NUM_SEEDS = 2**32
FORMATS = ("png", "jpg")
DETECTORS = ("yunet", "haar", "none")
NO_LABEL = "-"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for; with the network, the teacher and the directions it decides all.

    Attributes:
      task: whose classes are the labels, "emotion" or "interest".
      class_names: of a conditional network, in its order; "-" for one that is no label.
      classes: the classes that are wanted, by name or by the network's number; (): all.
      count: faces of each class (of all, where nobody labels them); 0: as many as `seeds` give.
      seeds: with each choice; (): from `first_seed` on, dealt to the choices in turn.
      first_seed: of the candidates.
      budget: pictures that are judged at most; 0: ten for each face that is asked for.
      psi: of the truncation, towards the class's own mean.
      cutoff: only so many of the first layers are truncated; None: all.
      noise: "const", "none", or "random" (by the seed).
      threshold: calibrated confidence that the teacher must have.
      strength: of a direction, in standard deviations of w along it.
      direction_layers: first and last layer that a direction changes; None: all.
      fit_samples: pictures that directions are fitted to.
      gates: of the filter.
      keep_duplicates: near-duplicates are no reason.
      detector: one of `DETECTORS`; with "none" the whole picture is the face.
      format: one of `FORMATS`.
      batch_size: pictures at once; rounded up to a multiple of the devices.
    """

    task: str = "emotion"
    class_names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    count: int = 0
    seeds: tuple[int, ...] = ()
    first_seed: int = 0
    budget: int = 0
    psi: float = 0.7
    cutoff: int | None = None
    noise: str = "const"
    threshold: float = 0.8
    strength: float = 3.0
    direction_layers: tuple[int, int] | None = None
    fit_samples: int = 2000
    gates: Gates = Gates()
    keep_duplicates: bool = False
    detector: str = "yunet"
    format: str = "png"
    batch_size: int = 16


class Choice(NamedTuple):
    """One way to make a face.

    Attributes:
      name: the class's, or "" where there is only one way.
      label: index in the task's classes; -1 where the teacher says, or nobody.
      source: of the label, as in records; "" where the label is -1.
      number: the network's class; -1 for an unconditional one.
    """

    name: str
    label: int = schema.UNKNOWN
    source: str = ""
    number: int = -1


class Candidate(NamedTuple):
    """A face that may be made: a seed, and which of the choices."""

    seed: int
    choice: int


class Wanted(NamedTuple):
    """A request, as one network can meet it.

    Attributes:
      request: what was asked.
      choices: the ways to make a face.
      groups: names of the classes that are counted.
      by_teacher: whether the teacher's label says which class a face counts for.
      budget: pictures that are judged at most.
    """

    request: Request
    choices: list[Choice]
    groups: list[str]
    by_teacher: bool
    budget: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the task."""
        return schema.TASKS[self.request.task]

    def name(self, candidate: Candidate) -> str:
        """What the candidate's file is called; unique in a run."""
        choice = self.choices[candidate.choice].name
        return f"seed{candidate.seed:010}" + (f"_{choice}" if choice else "")

    def candidates(self) -> Iterator[Candidate]:
        """In order: the given seeds with each choice, or new ones dealt to the choices in turn."""
        if self.request.seeds:
            pairs = itertools.product(self.request.seeds, range(len(self.choices)))
            yield from itertools.starmap(Candidate, pairs)
            return
        for number in itertools.count():
            yield Candidate(self.request.first_seed + number, number % len(self.choices))


def resolve(
    request: Request, generator: Generator, *, has_teacher: bool, directions: Directions | None
) -> Wanted:
    """What a request means for a network.

    Raises:
      InputError: a flag whose value makes no sense, a class that the network or the directions
        do not have, or a combination that gives no label.
    """
    _check(request, generator)
    choices = _choices(request, generator, has_teacher, directions)
    by_teacher = has_teacher and all(choice.label < 0 for choice in choices)
    groups = [choice.name for choice in choices]
    if by_teacher:
        classes = schema.TASKS[request.task]
        groups = [classes[_label(word, request.task)] for word in request.classes] or [*classes]
    budget = request.budget or BUDGET_PER_FACE * request.count * len(groups)
    if request.seeds:
        budget = len(request.seeds) * len(choices)
    elif not 0 <= request.first_seed <= NUM_SEEDS - budget:
        raise InputError(
            f"--first_seed={request.first_seed} and a budget of {budget} pictures leave the seeds "
            "that there are, 0 to 2**32 - 1"
        )
    return Wanted(request, choices, groups, by_teacher, budget)


def _check(request: Request, generator: Generator) -> None:
    if bool(request.seeds) == bool(request.count):
        raise InputError("give --count=N faces of each class or --seeds=FIRST-LAST, one of them")
    for name in ("count", "budget"):
        if getattr(request, name) < 0:
            raise InputError(f"--{name} must be above 0, not {getattr(request, name)}")
    for name in ("psi", "strength"):
        if not math.isfinite(getattr(request, name)):
            raise InputError(f"--{name} must be a finite number, not {getattr(request, name)}")
    if not 0 <= request.threshold < 1:
        raise InputError(f"--threshold must be in [0, 1), not {request.threshold}")
    if request.cutoff is not None and not 0 <= request.cutoff <= generator.num_ws:
        raise InputError(f"--cutoff is 0 to {generator.num_ws} layers, not {request.cutoff}")
    if request.batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, not {request.batch_size}")
    if request.fit_samples < labels.MIN_FIT_FACES:
        raise InputError(
            f"--fit_samples must be at least {labels.MIN_FIT_FACES}, not {request.fit_samples}"
        )
    for name, accepted in (("noise", NOISE), ("format", FORMATS), ("detector", DETECTORS)):
        value = getattr(request, name)
        if value not in accepted:
            raise InputError(f"--{name} cannot be '{value}'{did_you_mean(value, accepted)}")
    if generator.config.img_channels != 3:
        raise InputError(f"the network makes {generator.config.img_channels} channels, not RGB")
    quality.check_gates(request.gates, generator.resolution)


def _choices(
    request: Request, generator: Generator, has_teacher: bool, directions: Directions | None
) -> list[Choice]:
    classes = schema.TASKS[request.task]
    if directions is not None:
        if generator.c_dim:
            raise InputError("--directions is for unconditional networks; this one has classes")
        if not has_teacher:
            raise InputError("--directions needs a --teacher: it confirms that the edit succeeded")
        known = [classes.index(name) for name in directions.classes]
        wanted = [_label(word, request.task) for word in request.classes] or known
        for label in wanted:
            if label not in known:
                raise InputError(
                    f"there is no direction for {classes[label]}; there are "
                    f"{', '.join(directions.classes)}"
                )
        return [Choice(classes[label], label, "direction") for label in wanted]
    if not generator.c_dim:
        if request.class_names:
            raise InputError("--class_names is for conditional networks; this one has no classes")
        if request.classes and not has_teacher:
            raise InputError("--classes needs a --teacher, for the network itself has no classes")
        return [Choice("")]
    found = network_classes(request, generator)
    if request.class_names or not has_teacher:
        chosen = [_named(word, found, request.task) for word in request.classes]
        return chosen or [choice for choice in found if choice.name != NO_LABEL]
    return found


def network_classes(request: Request, generator: Generator) -> list[Choice]:
    """The classes of a conditional network in its order, with the labels they are given."""
    names = request.class_names
    if not names:
        return [Choice(str(number), number=number) for number in range(generator.c_dim)]
    if len(names) != generator.c_dim:
        raise InputError(
            f"--class_names names {len(names)} classes; the network has {generator.c_dim}"
        )
    found = []
    for number, word in enumerate(names):
        if word == NO_LABEL:
            found.append(Choice(NO_LABEL, number=number))
        else:
            label = _label(word, request.task)
            name = schema.TASKS[request.task][label]
            found.append(Choice(name, label, "class", number))
    counts = collections.Counter(choice.name for choice in found if choice.name != NO_LABEL)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"--class_names names '{twice[0]}' twice")
    return found


def _named(word: str, found: Sequence[Choice], task: str) -> Choice:
    """The network's class of a name or a number."""
    try:
        number = int(word)
    except ValueError:
        label = _label(word, task)
        numbers = [choice.number for choice in found if choice.label == label]
        if not numbers:
            raise InputError(
                f"no class of the network is named '{word}'; --class_names names them"
            ) from None
        number = numbers[0]
    if not 0 <= number < len(found):
        raise InputError(f"the network has classes 0 to {len(found) - 1}, not {number}")
    if found[number].name == NO_LABEL:
        raise InputError(f"class {number} is '{NO_LABEL}' in --class_names: it is no {task}")
    return found[number]


def _label(word: str, task: str) -> int:
    return schema.emotion_index(word) if task == "emotion" else schema.interest_index(word)


def parse_seeds(text: str, flag: str = "--seeds") -> tuple[int, ...]:
    """Reads "0-99,200".

    Raises:
      InputError: something else, a seed outside 0 to 2**32 - 1, or one that comes twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"{flag} takes seeds such as 0-99,200, not '{text}'")
        start, stop = int(first), int(last if dash else first)
        if not start <= stop < NUM_SEEDS:
            raise InputError(f"{flag}: '{part}' is no range of seeds within 0 to 2**32 - 1")
        if len(seeds) + stop - start >= MAX_SEEDS:
            raise InputError(f"{flag} names more than {MAX_SEEDS} seeds")
        seeds.extend(range(start, stop + 1))
    if len(set(seeds)) != len(seeds):
        raise InputError(f"{flag} names a seed twice")
    return tuple(seeds)


def parse_psis(text: str, flag: str) -> tuple[float, ...]:
    """Reads "-1,0,0.7".

    Raises:
      InputError: something else, or a number that is not finite.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} takes truncations such as -1,0,0.7, not '{text}'") from error
    if not all(map(math.isfinite, values)):
        raise InputError(f"{flag}: every psi must be finite, not '{text}'")
    return values


def spelled(seeds: Sequence[int]) -> str:
    """Seeds as they are typed: "0-99,200"."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    default = Request()
    gates = default.gates
    parser.add_argument(
        "--network", type=Path, required=True, metavar="PATH", help="NVIDIA's .pkl or `convert`'s"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the same command goes on in it"
    )
    parser.add_argument("--generator", default="G_ema", choices=NETWORKS, help="of the file")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the computation")
    parser.add_argument(
        "--batch_size", type=int, default=default.batch_size, metavar="N", help="[%(default)s]"
    )

    group = parser.add_argument_group("which faces")
    group.add_argument("--count", type=int, default=0, metavar="N", help="of each class")
    group.add_argument("--seeds", metavar="SEEDS", help="instead: exactly these, such as 0-99,200")
    group.add_argument("--first_seed", type=int, default=0, metavar="N", help="of --count [0]")
    group.add_argument(
        "--budget", type=int, default=0, metavar="N", help="pictures judged at most [10 a face]"
    )
    group.add_argument(
        "--psi", type=float, default=default.psi, metavar="X", help="truncation [%(default)s]"
    )
    group.add_argument(
        "--cutoff", type=int, metavar="N", help="truncate so many of the first layers [all]"
    )
    group.add_argument("--noise", default=default.noise, choices=NOISE, help="[%(default)s]")
    group.add_argument("--format", default=default.format, choices=FORMATS, help="[%(default)s]")

    group = parser.add_argument_group("labels")
    group.add_argument("--task", default=default.task, choices=tuple(schema.TASKS))
    group.add_argument(
        "--class_names",
        metavar="NAME,...",
        help="of a conditional network's classes, in its order; '-' for one that is no label",
    )
    group.add_argument(
        "--classes", metavar="CLASS,...", help="only these, by name or the network's number"
    )
    group.add_argument(
        "--teacher", type=Path, metavar="WORKDIR", help="a run that gives or confirms the labels"
    )
    group.add_argument(
        "--threshold",
        type=float,
        default=default.threshold,
        metavar="P",
        help="calibrated confidence it must have [%(default)s]",
    )
    group.add_argument(
        "--test_sets",
        metavar="NAME:SPLIT,...",
        help="you will test on these, too: the teacher must not have seen their people",
    )
    group.add_argument(
        "--data_dir", type=Path, metavar="DIR", help="[where the teacher trained from]"
    )
    group.add_argument(
        "--directions", metavar="FILE|fit", help="in w: moves each face towards an emotion"
    )
    group.add_argument(
        "--strength",
        type=float,
        default=default.strength,
        metavar="X",
        help="of a direction, in standard deviations of w [%(default)s]",
    )
    group.add_argument(
        "--direction_layers", metavar="FIRST-LAST", help="that a direction changes [all]"
    )
    group.add_argument(
        "--fit_samples",
        type=int,
        default=default.fit_samples,
        metavar="N",
        help="pictures that directions are fitted to [%(default)s]",
    )

    group = parser.add_argument_group("filter (a limit of 0 lets everything through)")
    group.add_argument(
        "--detector", default=default.detector, choices=DETECTORS, help="of faces [%(default)s]"
    )
    group.add_argument(
        "--detector_model", default="", metavar="FILE", help="YuNet's [fetched once]"
    )
    for name, what in (
        ("size", "pixels a side"),
        ("contrast", "standard deviation of the grey levels"),
        ("sharpness", "variance of the Laplacian"),
    ):
        group.add_argument(
            f"--min_{name}",
            type=float,
            default=getattr(gates, name),
            metavar="X",
            help=f"{what} [%(default)g]",
        )
    group.add_argument(
        "--face_share",
        default=",".join(f"{share:g}" for share in gates.face_share),
        metavar="LEAST,MOST",
        help="part of the picture that the face's box covers [%(default)s]",
    )
    group.add_argument("--several_faces", action="store_true", help="are no reason to refuse")
    group.add_argument("--keep_duplicates", action="store_true", help="near-duplicates, too")

    group = parser.add_argument_group("measures")
    group.add_argument(
        "--real", metavar="NAME[:SPLIT]", help="a built dataset that the faces are compared with"
    )
    group.add_argument(
        "--features", type=Path, metavar="WORKDIR", help="the run whose features [--teacher]"
    )

    group = parser.add_argument_group("sheets (alone, or beside --count or --seeds)")
    group.add_argument("--sweep", metavar="SEEDS:PSI,...", help="-> truncation.jpg")
    group.add_argument("--mix", metavar="SEEDS:SEEDS", help="rows:columns -> mixing.jpg")
    group.add_argument(
        "--mix_layers", metavar="FIRST-LAST", help="that come from the column [the first half]"
    )
    group.add_argument("--interpolate", metavar="SEEDS", help="-> interpolation.mp4")
    group.add_argument(
        "--frames", type=int, default=60, metavar="N", help="from seed to seed [%(default)s]"
    )


def from_arguments(options: argparse.Namespace) -> Request:
    """The request that the flags make.

    Raises:
      InputError: a word that does not read.
    """
    least, _, most = options.face_share.partition(",")
    try:
        share = (float(least), float(most))
    except ValueError as error:
        raise InputError(f"--face_share is LEAST,MOST, not '{options.face_share}'") from error
    gates = Gates(
        options.min_size,
        options.min_contrast,
        options.min_sharpness,
        share,
        not options.several_faces,
    )
    same = (
        *("task", "count", "first_seed", "budget", "psi", "cutoff", "noise", "threshold"),
        *("strength", "fit_samples", "keep_duplicates", "detector", "format", "batch_size"),
    )
    return Request(
        **{name: getattr(options, name) for name in same},
        gates=gates,
        class_names=words(options.class_names),
        classes=words(options.classes),
        seeds=parse_seeds(options.seeds) if options.seeds else (),
        direction_layers=layers(options.direction_layers, "--direction_layers"),
    )


def words(text: str | None) -> tuple[str, ...]:
    """Reads "a,b"."""
    return tuple(word.strip() for word in text.split(",")) if text else ()


def layers(text: str | None, flag: str) -> tuple[int, int] | None:
    """Reads "0-6"; None if it is not given.

    Raises:
      InputError: something else.
    """
    if not text:
        return None
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise InputError(f"{flag} is FIRST-LAST, not '{text}'")
    return int(first), int(last if dash else first)


def dataset_and_split(text: str) -> tuple[str, str]:
    """Reads "name/config:split"; the split is "all" if it is not given."""
    name, _, split = text.partition(":")
    return name, split or "all"
