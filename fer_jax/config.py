"""From a config file and `--config.field=value` words to one checked ConfigDict.

A config file defines `get_config()` (or `get_config(variant)`) and returns `default_config()`
with its experiment's fields changed. Every field exists in `default_config`, so a misspelled
one fails before any work starts.
"""

import argparse
import ast
import importlib.util
import inspect
import json
import math
import os
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ml_collections import ConfigDict

from fer_jax.errors import InputError, did_you_mean


class Config(ConfigDict):
    """A ConfigDict as a type checker must see it: what a field holds is known at run time.

    ml_collections annotates nothing, so a checker guesses from its code, and guesses another
    type when it reads the files in another order.
    """

    if TYPE_CHECKING:

        def __getattr__(self, attribute: str) -> Any: ...
        def __getitem__(self, key: str) -> Any: ...


def default_config() -> Config:
    """Every field of an experiment with its default. Blocks are keyword arguments.

    `sources` and `test_sets` hold dataset names, or blocks for `fer_jax.data.records.Source`
    (name, train, validation, test, weight) where the splits are not the usual three.
    """
    return Config(
        {
            "task": "emotion",  # or "interest"
            "sources": (),  # trained on: their training parts, mixed
            "test_sets": (),  # scored by `evaluate`, each on its own
            "exclusions": "",  # records to leave out: a file of `audit --write_exclusions`
            "corrupt_records": "stop",  # or "skip": left out of training, counted, not of a test
            "allow_leaks": False,  # train although people or pictures are on two sides
            "seed": 0,
            "batch_size": 128,  # over all devices
            "num_epochs": 50.0,
            "model": {
                "width": 1.0,
                "num_middle_blocks": 8,
                "head": "gap",  # or "mlp", the published 512-512 head
                "image_size": 224,
                "stem_stride": 2,  # of the first convolution; 1 for small pictures, such as 48 px
                "grayscale": False,  # the network sees grey alone: for training on grey pictures
                "dropout": 0.5,
                "dtype": "float32",  # or "bfloat16", or "float16" for GPUs without bf16 units
                "batch_norm_momentum": 0.99,
                "remat": False,  # on a GPU less memory for about a third more work
            },
            "init_from": "",  # Keras Xception weights to start from, or what convert made of them
            "input": "stream",  # decoded as needed; or once: "memmap" (workdir/decoded), "device"
            "frozen_statistics": False,  # BatchNorm keeps the statistics it started with
            "mixture": {
                "balance_sources": False,  # every source equally often
                "balance_classes": False,  # within a source, every class equally often
            },
            "augment": {
                "rotation_degrees": 30.0,
                "shift": 0.2,
                "shear": 0.2,
                "zoom": 0.2,
                "horizontal_flip": True,
                "brightness": 0.0,
                "contrast": 0.0,
                "saturation": 0.0,
                "erasing": 0.0,
                "mixup": 0.0,
                "cutmix": 0.0,
            },
            "loss": {
                "label_smoothing": 0.0,
                "class_weights": "none",  # or "balanced": inverse to the class's frequency
                "soft_labels": False,  # the annotators' votes where there are any
            },
            "optimizer": {
                "name": "adamw",  # or "adam", "sgd"
                "learning_rate": 1e-3,
                "weight_decay": 1e-4,
                "momentum": 0.9,
                "max_gradient_norm": 0.0,  # 0: not clipped
            },
            "schedule": {
                "name": "cosine",  # or "constant", "plateau"
                "warmup_epochs": 1.0,
                "plateau_patience": 20,  # validations without improvement
                "plateau_factor": 0.5,
            },
            "method": {
                "mixstyle": 0.0,  # probability of mixing styles after each early block
                "coral": 0.0,  # weight of the penalty on differences between the sources
                "sam": 0.0,  # radius of sharpness-aware minimization, such as 0.05
            },
            "test_time_flip": False,  # probabilities are the mean over a face and its mirror image
            "accumulation_steps": 1,
            "ema_decay": 0.0,  # 0: no average is kept
            "weight_average": "none",  # or "swad": over the valley of the validation loss
            "sharding": "data_parallel",  # or "fsdp"
            "profile": "",  # steps to trace into workdir/profile, such as "20-24"
            "log_every_steps": 20,
            "validate_every_epochs": 1.0,
            "selection_metric": "validation_balanced_accuracy",
            "early_stopping_patience": 0,  # validations without improvement; 0: never
            "keep_checkpoints": 2,  # the newest ones; the best is always kept
        }
    )


def default_generator() -> Config:
    """Every field of the training of a generator with its default.

    `sources` as in `default_config`; what is learned from is their training parts.
    """
    return Config(
        {
            "task": "emotion",  # whose classes are the network's; or "interest"
            "sources": (),
            "test_sets": (),  # whose people must not be seen
            "exclusions": "",  # as in `default_config`
            "corrupt_records": "stop",
            "allow_leaks": False,
            "seed": 0,
            "batch_size": 32,  # over all devices
            "num_images": 1_000_000,  # real ones that are seen, all repetitions counted
            "model": {
                "image_size": 64,  # a power of two
                "conditional": True,  # a face of an asked class; else of any
                "channel_base": 16384,  # a layer at resolution r has channel_base / r channels ...
                "channel_max": 512,  # ... but never more than this
                "latent_dim": 512,
                "mapping_layers": 2,
                "dtype": "float32",  # or "bfloat16"
            },
            "init_from": "",  # NVIDIA's file, what convert made of it, or another run's workdir
            "freeze_blocks": 0,  # of the discriminator, from the image on: FreezeD
            "input": "stream",  # as in `default_config`
            "grayscale": False,  # colours are left out: where grey and coloured sources are mixed
            "horizontal_flip": True,
            "mixture": {"balance_sources": False, "balance_classes": False},
            "learning_rate": 2e-3,
            "r1_gamma": 0.0,  # 0: 0.0002 image_size^2 / batch_size
            "r1_interval": 16,  # steps
            "path_weight": 2.0,  # of the path length penalty; 0: none
            "path_interval": 4,  # steps
            "style_mixing": 0.9,
            "class_weight": 0.0,  # of telling the classes apart, in both losses; 0: as published
            "average_images": 10_000.0,  # half-life of the average that is used
            "average_rampup": 0.05,
            "augment": {
                "groups": ("blit", "geometry", "colour"),
                "target": 0.6,  # of the discriminator's mean sign on real images; 0: none
                "images": 500_000.0,  # in which the probability can go from 0 to 1
            },
            "measure": {
                "every_images": 50_000,
                "images": 2_000,  # real and made ones that are compared
                "features": "pixels",  # or the workdir of a run of the classifier
            },
            "profile": "",  # as in `default_config`
            "log_every_steps": 20,
            "keep_checkpoints": 2,
        }
    )


def is_generator(config: Config) -> bool:
    """Whether a config is of a generator's training."""
    return "num_images" in config


def default_study() -> Config:
    """Every field of a study with its default.

    A scenario is a block: `name`, `sources` as in `default_config`, `oracle` (it is chosen with
    data of the test sets' kind) and any field of `run` by its dotted name, such as
    `{"name": "all", "sources": (...), "mixture.balance_sources": True}`.
    """
    return Config(
        {
            "question": "Which sources make the model hold on content it has never seen?",
            "protocol": "",  # who is trained on, selected on and tested on, in words
            "scenarios": (),
            "baseline": "",  # the scenario that the others are compared with; "": the first
            "test_sets": (),  # as in `default_config`; every scenario is tested on each
            "seeds": (0,),
            "equal_steps": True,  # an epoch of every scenario has as many steps as the baseline's
            "shared_classes": False,  # score only classes that all scenarios and test sets have
            "variants": (),  # of the predictions, beside the plain ones, such as "label_shift"
            "published": {  # what others reported of the protocol; 0: not reported
                "accuracy": 0.0,
                "pr_auc": 0.0,
                "roc_auc": 0.0,
                "source": "",
            },
            "run": default_config(),  # what the scenarios have in common
        }
    )


def default_data_dir() -> Path:
    """Where datasets go unless --data_dir says otherwise: $FER_JAX_DATA or ~/fer_jax_data."""
    return Path(os.environ.get("FER_JAX_DATA", "~/fer_jax_data")).expanduser()


def load_config(path_and_variant: str, check: Callable[[Config], Config] | None = None) -> Config:
    """Loads `configs/x.py` or `configs/x.py:variant`.

    Args:
      path_and_variant: of the file.
      check: what it must pass; None means `check_config`.

    Raises:
      InputError: no such file, no `get_config` in it, or it sets a field that does not exist.
    """
    path, _, variant = path_and_variant.partition(":")
    file = Path(path)
    if not file.is_file():
        nearby = [str(p) for p in sorted(file.parent.glob("*.py"))] if file.parent.is_dir() else []
        raise InputError(f"no config file '{path}'{did_you_mean(path, nearby)}")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # A config file is a person's own program: whatever it raises is theirs to mend.
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise InputError(_where_it_broke(file, error)) from error
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise InputError(f"'{path}' defines no get_config()")
    if variant and not inspect.signature(get_config).parameters:
        raise InputError(f"'{path}' has no variants; leave out ':{variant}'")
    try:
        config = get_config(variant) if variant else get_config()
        if not isinstance(config, ConfigDict):
            raise InputError(f"get_config() returns {type(config).__name__}, not a config")
        return (check or check_config)(Config(config.to_dict()))
    except InputError as error:
        raise InputError(f"{path_and_variant}: {error}") from error
    except Exception as error:
        raise InputError(_where_it_broke(file, error)) from error


def _where_it_broke(file: Path, error: Exception) -> str:
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == file.resolve()
    ]
    # ConfigDict's own message for an unknown field spans lines: the first says it all.
    reason = str(error).splitlines()
    said = reason[0] if reason else type(error).__name__
    return f"{file}, line {lines[-1]}: {said}" if lines else f"{file}: {said}"


def override(config: Config, field: str, text: str) -> None:
    """Sets one field from the command line, with the type that its default has.

    Args:
      config: changed in place.
      field: dotted, such as "optimizer.learning_rate".
      text: the value as typed; tuples are written with commas.

    Raises:
      InputError: the field does not exist, or the text does not read as its type.
    """
    *blocks, last = field.split(".")
    place: Any = config
    for name in [*blocks, last]:
        if not isinstance(place, ConfigDict) or name not in place:
            known = [key for key, _ in fields(config)]
            raise InputError(f"the config has no field '{field}'{did_you_mean(field, known)}")
        block, place = place, place[name]
    if isinstance(place, ConfigDict):
        inner = ", ".join(f"{field}.{name}" for name in place)
        raise InputError(f"'{field}' is a block; set one of its fields: {inner}")
    block[last] = _parse(field, text, place)


def _parse(field: str, text: str, default: Any) -> Any:
    kind = type(default)
    if kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise InputError(f"config.{field} is true or false, not '{text}'")
        return words[text.lower()]
    if kind is tuple:
        if text.startswith(("(", "[")):
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError) as error:
                raise InputError(f"config.{field}: '{text}' does not read as a tuple") from error
            # Python reads "('a')" as a word in brackets.
            return tuple(value) if isinstance(value, tuple | list) else (value,)
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError as error:
        what = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise InputError(f"config.{field} is {what}, not '{text}'") from error


def check_config(config: Config) -> Config:
    """Refuses a config with fields, types or values that no experiment can have.

    Raises:
      InputError: names the field, its value and what is accepted.
    """
    if "scenarios" in config:
        raise InputError("this is a study's config; run it with `fer-jax study`")
    if is_generator(config):
        raise InputError("this is a generator's config; run it with `fer-jax train`")
    check_fields(config, default_config)
    check_values(
        config,
        choices={
            "task": ("emotion", "interest"),
            "model.head": ("gap", "mlp"),
            "model.dtype": ("float32", "bfloat16", "float16"),
            "loss.class_weights": ("none", "balanced"),
            "optimizer.name": ("adamw", "adam", "sgd"),
            "schedule.name": ("cosine", "constant", "plateau"),
            "weight_average": ("none", "swad"),
            "sharding": ("data_parallel", "fsdp"),
            "corrupt_records": ("stop", "skip"),
            "input": ("stream", "memmap", "device"),
            "selection_metric": (
                "validation_loss",
                "validation_accuracy",
                "validation_balanced_accuracy",
                "validation_macro_f1",
            ),
        },
        ranges={
            "at least 1": (
                *("batch_size", "accumulation_steps", "log_every_steps"),
                "schedule.plateau_patience",
            ),
            "above 0": (
                *("num_epochs", "validate_every_epochs", "optimizer.learning_rate"),
                "schedule.plateau_factor",
            ),
            "at least 0": (
                *("seed", "early_stopping_patience", "schedule.warmup_epochs", "method.coral"),
                *("optimizer.weight_decay", "optimizer.max_gradient_norm", "method.sam"),
            ),
            "in [0, 1)": (
                *("ema_decay", "model.dropout", "model.batch_norm_momentum"),
                *("loss.label_smoothing", "optimizer.momentum"),
            ),
            "in [0, 1]": ("method.mixstyle",),
        },
    )
    if config.method.coral and len(config.sources) < 2:
        raise InputError(
            "config.method.coral compares sources, and config.sources has "
            f"{len(config.sources)}; name at least two, or set it to 0"
        )
    if config.method.coral and (config.augment.mixup or config.augment.cutmix):
        raise InputError(
            "config.method.coral compares sources, and config.augment.mixup and cutmix blend their "
            "images; set one of them to 0"
        )
    if config.weight_average != "none" and (config.ema_decay or config.early_stopping_patience):
        raise InputError(
            f"config.weight_average={config.weight_average} has its own average and its own end; "
            "set config.ema_decay and config.early_stopping_patience to 0"
        )
    if config.batch_size % config.accumulation_steps:
        raise InputError(
            f"config.batch_size {config.batch_size} is not divisible by "
            f"config.accumulation_steps {config.accumulation_steps}"
        )
    return config


RANGES: dict[str, Callable[[float], bool]] = {
    "at least 1": lambda x: x >= 1,
    "above 0": lambda x: x > 0,
    "at least 0": lambda x: x >= 0,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "in [0, 1]": lambda x: 0 <= x <= 1,
}


def check_values(
    config: Config,
    *,
    choices: Mapping[str, Collection[str]],
    ranges: Mapping[str, Collection[str]],
) -> None:
    """Refuses words that stand for nothing, and numbers out of range.

    Args:
      config: of a training, a classifier's or a generator's.
      choices: from the name of a field to what it accepts.
      ranges: from a key of `RANGES` to the names of the fields that must lie there.

    Raises:
      InputError: names the field, its value and what is accepted.
    """
    values = dict(fields(config))
    for name, accepted in choices.items():
        if values[name] not in accepted:
            hint = did_you_mean(values[name], accepted)
            raise InputError(f"config.{name} cannot be '{values[name]}'{hint}")
    for where, names in ranges.items():
        for name in names:
            if not RANGES[where](values[name]):
                raise InputError(f"config.{name} must be {where}, not {values[name]}")
    if config.keep_checkpoints < 2:
        raise InputError(
            "config.keep_checkpoints must be at least 2, so that one is whole when another is "
            f"damaged, not {config.keep_checkpoints}"
        )


def check_fields(config: Config, defaults: Callable[[], Config]) -> None:
    """Refuses other fields, and other types of them, than the defaults have.

    Raises:
      InputError: names the field.
    """
    known = dict(fields(defaults()))
    lacking = known.keys() - dict(fields(config)).keys()
    for name, value in fields(config):
        if name not in known:
            raise InputError(f"the config has no field '{name}'{did_you_mean(name, known)}")
        wanted = type(known[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise InputError(
                f"config.{name} is of type {wanted.__name__}, not {type(value).__name__}: {value!r}"
            )
        if wanted is float and not math.isfinite(value):
            raise InputError(f"config.{name} must be finite, not {value}")
    if lacking:
        raise InputError(
            f"the config lacks {', '.join(sorted(lacking))}; start from {defaults.__name__}()"
        )


def fields(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Every field as (dotted name, value), in order; blocks are walked into."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            for inner, inner_value in fields(value):
                yield f"{name}.{inner}", inner_value
        else:
            yield name, value


# What may let somebody in: the user of a URL, and whatever is named like a secret.
SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]+(?=@)"), "***"),
    (
        re.compile(
            r"(?i)(\b[\w.-]*(?:password|passwd|secret|token|api_?key|access_?key|credential|signature)"
            r"[\w.-]*[=:]|[?&]sig=)[^\s&;,]+"
        ),
        r"\1***",
    ),
)


def redacted(text: str) -> str:
    """A text as it may be written into a workdir, which people pass on: secrets as "***"."""
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


def to_json(config: Config) -> str:
    """The config as it is kept in a workdir, without secrets."""

    def without_secrets(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_secrets(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [without_secrets(inner) for inner in value]
        return redacted(value) if isinstance(value, str) else value

    return json.dumps(without_secrets(config.to_dict()), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote (JSON has no tuples: lists come back as tuples)."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(tuples(inner) for inner in value) if isinstance(value, list) else value

    return Config(tuples(json.loads(text)))


def check_links(workdir: Path) -> None:
    """Refuses a workdir in which a link leads out of it: what is written would land elsewhere.

    Raises:
      InputError: names the link.
    """
    inside = workdir.resolve()
    for folder, folders, files in os.walk(workdir):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise InputError(f"'{path}' is a link out of the workdir; put what it names there")


def read_config(workdir: Path, *, of_generator: bool = False) -> Config:
    """The config of a run; a field that came after the run has its default.

    Args:
      workdir: of the run.
      of_generator: whether it should be a generator's training.

    Raises:
      InputError: the folder holds no run or one of the other kind, its config.json is damaged,
        or a link leads out of it.
    """
    check_links(workdir)
    file = workdir / "config.json"
    if not file.is_file():
        raise InputError(f"'{workdir}' holds no run (no config.json); train with --workdir first")
    try:
        config = from_json(file.read_text())
    except ValueError as error:
        raise InputError(f"'{file}' is damaged ({error}); choose another workdir") from error
    if is_generator(config) != of_generator:
        kind = "a classifier" if of_generator else "a generator (`fer-jax synthesize` uses it)"
        raise InputError(f"'{workdir}' holds the training of {kind}; choose another workdir")
    return completed(config)


def completed(config: Config) -> Config:
    """Gives fields that came after the config was written their defaults, in place."""
    _fill(config, default_generator() if is_generator(config) else default_config())
    return config


def _fill(config: Any, defaults: Any) -> None:
    for name, value in defaults.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
            _fill(config[name], value)


class OneLineParser(argparse.ArgumentParser):
    """argparse, with mistakes reported like every other mistake: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage."""
        raise InputError(f"{message} (see {self.prog} --help)")


def parse_with_config(
    parser: argparse.ArgumentParser,
    argv: list[str],
    *,
    defaults: Callable[[], Config] = default_config,
    check: Callable[[Config], Config] = check_config,
) -> tuple[argparse.Namespace, Config]:
    """Parses a verb's words, its config file and the overrides of it.

    Args:
      parser: the verb's own flags; `--config` is added here, and `--help` lists the fields
        of the config that is named (else the defaults).
      argv: the words after the verb.
      defaults: makes the config whose fields `--help` lists where no file is named.
      check: what the config must pass.

    Raises:
      InputError: an unknown word, or anything `load_config` and `override` refuse.
    """
    parser.add_argument("--config", metavar="FILE[:VARIANT]", required=True)
    named = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if "--help" in argv or "-h" in argv:
        config = load_config(named[-1], check) if named else defaults()
        lines = [f"  --config.{name}={_as_typed(value)}" for name, value in fields(config)]
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "config fields and their defaults:\n" + "\n".join(lines)
    arguments, rest = parser.parse_known_args(argv)
    config = load_config(arguments.config, check)
    for word in rest:
        field, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not equals:
            # argparse's own list of flags, for the hint.
            flags = [flag for action in parser._actions for flag in action.option_strings]
            hint = did_you_mean(word.partition("=")[0], flags)
            if word.startswith("--config."):
                hint = "; write --config.FIELD=VALUE"
            raise InputError(f"unknown option '{word}'{hint}")
        override(config, field, value)
    return arguments, check(config)


def _as_typed(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    if all(isinstance(part, str) for part in value):
        return ",".join(value)
    return repr(tuple(dict(part) if isinstance(part, ConfigDict) else part for part in value))
