"""A config file and its overrides on the command line become one checked ConfigDict.

A config file defines `get_config()` or `get_config(variant)`. It returns `default_config()`,
`default_generator()` or `default_study()` with some fields changed; `fer_jax.fields` lists all
fields, so a misspelled one fails before any work starts.
"""

import argparse
import ast
import difflib
import importlib.util
import inspect
import json
import math
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ml_collections import ConfigDict

from fer_jax import forms, storage
from fer_jax.errors import InputError, did_you_mean
from fer_jax.fields import CLASSIFIER, GENERATOR, STUDY, Field, Fields

URL_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/")


class Config(ConfigDict):
    """A ConfigDict for the type checker: ml_collections has no annotations of its own."""

    if TYPE_CHECKING:

        def __getattr__(self, attribute: str) -> Any: ...
        def __getitem__(self, key: str) -> Any: ...


def default_config() -> Config:
    """Returns the fields of a classifier's training with their defaults.

    Blocks are keyword arguments. `sources` and `test_sets` hold dataset names, or blocks for
    `fer_jax.data.experiment.Source` (name, train, validation, test, weight) where the parts are not
    the usual three.
    """
    return _with_defaults(CLASSIFIER)


def default_generator() -> Config:
    """Returns the fields of a generator's training with their defaults."""
    return _with_defaults(GENERATOR)


def default_study() -> Config:
    """Returns the fields of a study with their defaults.

    A scenario is a block: `name`, `sources` as in `default_config`, `oracle` (whether it uses data
    like the test sets') and any field of `run` by its dotted name, such as
    `{"name": "all", "sources": (...), "mixture.balance_sources": True}`.
    """
    return _with_defaults(STUDY)


def _with_defaults(table: Fields) -> Config:
    config: dict[str, Any] = {}
    for name, field in table.items():
        *blocks, last = name.split(".")
        values = config
        for block in blocks:
            values = values.setdefault(block, {})
        values[last] = field.default
    # `check_fields` checks types: its messages name the whole field.
    return Config(config, type_safe=False)


def is_generator(config: Config) -> bool:
    """Returns whether a config is of a generator's training."""
    return "num_images" in config


def _fields_of(config: Config) -> Fields:
    return STUDY if "scenarios" in config else GENERATOR if is_generator(config) else CLASSIFIER


def default_data_dir() -> Path:
    """Returns the default of --data_dir: $FER_JAX_DATA or ~/fer_jax_data."""
    return Path(os.environ.get("FER_JAX_DATA", "~/fer_jax_data")).expanduser()


def load_config(path_and_variant: str, check: Callable[[Config], Config] | None = None) -> Config:
    """Loads `configs/x.py`, `configs/x.py:variant` or a workdir's config.json, and checks it.

    `check` is `check_config` by default. Raises InputError: no such file, no `get_config` in it, or
    a field or value that is not allowed; the message names the line where it is known.
    """
    path, _, variant = path_and_variant.partition(":")
    file = Path(path)
    if not file.is_file():
        nearby = [str(p) for p in sorted(file.parent.glob("*.py"))] if file.parent.is_dir() else []
        raise InputError(f"no config file '{path}'{did_you_mean(path, nearby)}")
    if file.suffix == ".json" and not variant:
        config = completed(from_dict(storage.read_json(file, "choose another file")))
    else:
        config = _from_program(file, path, variant)
    try:
        return (check or check_config)(Config(config.to_dict(), type_safe=False))
    except InputError as error:
        raise InputError(f"{path_and_variant}{_line_of_field(file, error)}: {error}") from error


def _from_program(file: Path, path: str, variant: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # A config file is the user's own program: any exception in it is for the user to fix.
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise InputError(_failed_line(file, error)) from error
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise InputError(f"'{path}' defines no get_config()")
    if variant and not inspect.signature(get_config).parameters:
        raise InputError(f"'{path}' has no variants; leave out ':{variant}'")
    try:
        config = get_config(variant) if variant else get_config()
    except Exception as error:
        raise InputError(_failed_line(file, error)) from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise InputError(
            f"{path}: get_config() must return the config, got {kind}; is a `return` missing?"
        )
    return config


def _failed_line(file: Path, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == file.resolve()]
    message = next(iter(str(error).splitlines()), type(error).__name__)
    if isinstance(error, AttributeError | KeyError) and "ml_collections" in frames[-1].filename:
        # ConfigDict's message quotes the name among quotation marks and suggestions.
        name = next(iter(re.findall(r"\w+", message)), "")
        message = unknown_field(name, {**CLASSIFIER, **GENERATOR, **STUDY})
    return f"{file}, line {lines[-1]}: {message}" if lines else f"{file}: {message}"


def _line_of_field(file: Path, error: InputError) -> str:
    """Returns ", line N" where one line of a config file mentions the field of an error."""
    field = re.search(r"config\.([\w.]+)|'([\w.]+)'", str(error))
    if not field:
        return ""
    last = (field[1] or field[2]).split(".")[-1]
    texts = file.read_text(errors="replace").splitlines()
    numbers = [n for n, text in enumerate(texts, 1) if re.search(rf"\b{last}\b", text)]
    return f", line {numbers[0]}" if len(numbers) == 1 else ""


# Names that other codebases use.
ALIASES = {
    **{"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "epochs": "num_epochs"},
    **{"optim": "optimizer.name", "datasets": "sources", "image_width": "image_size"},
}


def unknown_field(name: str, known: Iterable[str]) -> str:
    """Returns the message for a field that does not exist, with the field that may be meant."""
    known = list(known)
    blocks = {field.rpartition(".")[0] for field in known} - {""}
    close = difflib.get_close_matches(name, [*known, *blocks], n=1, cutoff=0.6)
    meant = meant_field(name, known) or next(iter(close), "")
    hint = f"did you mean '{meant}'?" if meant else "--help lists the fields"
    return f"the config has no field '{name}'; {hint}"


def meant_field(name: str, known: Iterable[str]) -> str:
    """Returns the field whose last name is `name`'s, or an alias of it; "" if there is none."""
    last = name.split(".")[-1]
    last = ALIASES.get(last, last)
    return next((field for field in known if f".{field}".endswith(f".{last}")), "")


def override(config: Config, field: str, text: str | None) -> None:
    """Sets one field, such as "optimizer.learning_rate", in place, with the type of its value.

    `text` is the value as typed; tuples are written with commas. None sets a true/false field to
    true. Raises InputError if the field does not exist, or the text does not read as its type.
    """
    *blocks, last = field.split(".")
    value: Any = config
    for name in [*blocks, last]:
        if not isinstance(value, ConfigDict) or name not in value:
            raise InputError(unknown_field(field, [key for key, _ in fields(config)]))
        block, value = value, value[name]
    if isinstance(value, ConfigDict):
        inner = ", ".join(f"{field}.{name}" for name in value)
        raise InputError(f"'{field}' is a block; set one of its fields: {inner}")
    if text is None and not isinstance(value, bool):
        raise InputError(f"config.{field} needs a value: --config.{field}=VALUE")
    block[last] = _parse(field, "true" if text is None else text, value)


TYPES = {
    **{bool: "true or false", int: "a whole number", float: "a number"},
    **{str: "a string", tuple: "a tuple of names or blocks"},
}


def _parse(field: str, text: str, default: Any) -> Any:
    kind = type(default)
    if kind is bool:
        values = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in values:
            raise InputError(f"config.{field} must be true or false, got '{text}'")
        return values[text.lower()]
    if kind is tuple:
        if text.startswith(("(", "[")):
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError) as error:
                raise InputError(f"config.{field}: '{text}' does not read as a tuple") from error
            # Python reads "('a')" as a string.
            return tuple(value) if isinstance(value, tuple | list) else (value,)
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(f"config.{field} must be {TYPES[kind]}, got '{text}'") from error


def check_config(config: Config) -> Config:
    """Refuses a config that no classifier can be trained with."""
    if "scenarios" in config:
        raise InputError("this is a study's config; run it with `fer-jax study`")
    if is_generator(config):
        raise InputError("this is a generator's config; run it with `fer-jax train`")
    check_fields(config, CLASSIFIER)
    if config.method.coral and len(config.sources) < 2:
        raise InputError(
            f"config.method.coral aligns datasets, and config.sources has {len(config.sources)}; "
            "name at least two, or set it to 0"
        )
    if config.method.coral and (config.augment.mixup or config.augment.cutmix):
        raise InputError(
            "config.method.coral aligns datasets, and config.augment.mixup and cutmix blend their "
            "images; set one of them to 0"
        )
    if config.weight_average != "none" and (config.ema_decay or config.early_stopping_patience):
        raise InputError(
            f"config.weight_average={config.weight_average} has its own average and its own end; "
            "set config.ema_decay and config.early_stopping_patience to 0"
        )
    if config.freeze != "none" and not config.init_from:
        raise InputError(
            f"config.freeze={config.freeze} keeps layers of a trained network; name one with "
            "--config.init_from=RUN"
        )
    if config.freeze != "none" and config.weight_average != "none":
        raise InputError(
            f"config.weight_average={config.weight_average} estimates BatchNorm's statistics, and "
            f"config.freeze={config.freeze} keeps them; set one of them to none"
        )
    if config.features and config.init_from:
        raise InputError(
            "config.features has a network of its own, and config.init_from is another; set one of "
            "them"
        )
    if config.features and (config.mixture.balance_sources or config.mixture.balance_classes):
        raise InputError(
            "config.mixture samples images, and a linear head is trained on all of them; set "
            "config.loss.class_weights=balanced instead"
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
    "in (0, 1]": lambda x: 0 < x <= 1,
}


def check_fields(config: Config, table: Fields) -> None:
    """Refuses fields, types and values that a table does not allow."""
    _convert(config, table)
    values = dict(fields(config))
    for name in values:
        if name not in table:
            if inner := [field for field in table if field.startswith(f"{name}.")]:
                raise InputError(f"'{name}' is a block; set one of its fields: {', '.join(inner)}")
            raise InputError(unknown_field(name, table))
    _check_values(values, table)
    for name in ("keep_checkpoints", "run.keep_checkpoints"):
        if values.get(name, 2) < 2:
            raise InputError(
                f"config.{name} must be at least 2, because the newest checkpoint may be "
                f"corrupted, got {values[name]}"
            )


def _check_values(values: dict[str, Any], table: Fields) -> None:
    if lacking := table.keys() - values.keys():
        raise InputError(
            f"the config lacks {', '.join(sorted(lacking))}; start from default_config(), "
            "default_generator() or default_study()"
        )
    for name, field in table.items():
        _check_value(name, values[name], field)


def _convert(config: ConfigDict, table: Fields, prefix: str = "") -> None:
    """Makes whole numbers floats and lists tuples where the fields are of these types, in place."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _convert(value, table, f"{prefix}{name}.")
        elif field := table.get(f"{prefix}{name}"):
            kinds = (type(value), type(field.default))
            if kinds in ((int, float), (list, tuple)):
                config[name] = kinds[1](value)


def _check_value(name: str, value: Any, field: Field) -> None:
    kind = type(field.default)
    if type(value) is not kind:
        raise InputError(f"config.{name} must be {TYPES[kind]}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"config.{name} must be finite, got {value}")
    allowed = field.allowed
    if isinstance(allowed, tuple) and value not in allowed:
        raise InputError(f"config.{name} cannot be '{value}'{did_you_mean(value, allowed)}")
    if isinstance(allowed, str) and allowed and not RANGES[allowed](value):
        raise InputError(f"config.{name} must be {allowed}, got {value}")


def fields(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every field."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            for inner, inner_value in fields(value):
                yield f"{name}.{inner}", inner_value
        else:
            yield name, value


def to_json(config: Config) -> str:
    """Returns the text of a workdir's config.json, without secrets."""

    def without_secrets(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_secrets(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [without_secrets(inner) for inner in value]
        return storage.redact_secrets(value) if isinstance(value, str) else value

    return json.dumps(without_secrets(config.to_dict()), indent=2) + "\n"


def from_dict(content: dict[str, Any]) -> Config:
    """Makes a config of what a JSON file has; lists become tuples again."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(tuples(inner) for inner in value) if isinstance(value, list) else value

    return Config(tuples(content), type_safe=False)


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote."""
    return from_dict(json.loads(text))


def read_config(workdir: Path, *, of_generator: bool = False) -> Config:
    """Returns the config of a run; fields that were added since have their defaults.

    Raises InputError if the folder holds no run, or one of the other kind (`of_generator`), its
    config.json is damaged, or a link leads out of it.
    """
    storage.check_links(workdir)
    file = workdir / "config.json"
    if not file.is_file():
        raise InputError(f"'{workdir}' holds no run (no config.json); train with --workdir first")
    content = storage.read_json(file, "choose another workdir")
    try:
        config = completed(from_dict(content))
        # Fields that there are no more may be there.
        table = _fields_of(config)
        _convert(config, table)
        _check_values(dict(fields(config)), table)
    except (ValueError, TypeError) as error:  # of names, too, that no field can have
        message = str(error).splitlines()[0]
        raise InputError(
            f"'{file}' was not written by this version of fer_jax: {message}"
        ) from error
    if is_generator(config) != of_generator:
        kind = "a classifier" if of_generator else "a generator (`fer-jax synthesize` uses it)"
        raise InputError(f"'{workdir}' holds the training of {kind}; choose another workdir")
    return config


def read_environment(workdir: Path, remedy: str = "") -> dict[str, Any]:
    """Returns the environment.json of a run, {} without one; `remedy` ends the error's message."""
    return storage.read_json(workdir / "environment.json", remedy, forms.ENVIRONMENT)


def completed(config: Config) -> Config:
    """Adds fields that are newer than the config, with their defaults, in place."""
    _fill(config, _with_defaults(_fields_of(config)))
    return config


def _fill(config: Any, defaults: Any) -> None:
    for name, value in defaults.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
            _fill(config[name], value)


def named_path(text: str) -> Path:
    """Reads an option that names a file or a folder."""
    if not text:  # a shell's variable that is not set; it would be the current folder
        raise argparse.ArgumentTypeError("it is empty; name a path")
    return Path(text)


def output_path(text: str) -> Path:
    """Reads an option that names what is to be written, if it can be written there."""
    path = named_path(text)
    if reason := storage.why_not_writable(path):
        raise argparse.ArgumentTypeError(f"'{path}' cannot be written: {reason}")
    return path


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line with exit code 2, like all errors of users."""

    def __init__(
        self,
        prog: str,
        description: str | None = None,
        *,
        show_defaults: bool = False,
        formatter: type[argparse.HelpFormatter] = argparse.RawDescriptionHelpFormatter,
        epilog: str | None = None,
    ) -> None:
        if show_defaults:
            formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=formatter
        )
        self.register("type", Path, named_path)

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As its base, and refuses URLs, which would otherwise become folders such as "gs:"."""
        parsed, rest = super().parse_known_args(args, namespace)
        for name, value in vars(parsed).items():
            if isinstance(value, Path) and (scheme := URL_SCHEME.match(str(value))):
                self.error(
                    f"--{name} must be a path of this machine, got a URL of '{scheme[1]}'; mount "
                    "the bucket, or copy the folder"
                )
        return parsed, rest


def parse_with_config(
    parser: argparse.ArgumentParser,
    argv: list[str],
    *,
    defaults: Callable[[], Config] = default_config,
    check: Callable[[Config], Config] = check_config,
) -> tuple[argparse.Namespace, Config]:
    """Parses a verb's options, loads its config file, applies the overrides and checks the result.

    `parser` has the verb's own options; `--config` is added. `--help` lists the fields of the
    config that is named, else of `defaults`. Raises what `load_config` and `override` raise.
    """
    parser.add_argument("--config", metavar="FILE[:VARIANT]", required=True)
    argv, overrides = _split_overrides(argv)
    if "--help" in argv or "-h" in argv:
        named = argparse.ArgumentParser(add_help=False)
        named.add_argument("--config")
        file = named.parse_known_args(argv)[0].config
        config = load_config(file, check) if file else defaults()
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = f"config fields and their values:\n{_help(config)}"
    arguments, rest = parser.parse_known_args(argv)
    config = load_config(arguments.config, check)
    if rest:
        name, _, value = rest[0].lstrip("-").partition("=")
        # The parser has no public list of its options.
        known = [flag for action in parser._actions for flag in action.option_strings]
        hint = did_you_mean(rest[0].partition("=")[0], known)
        if field := meant_field(name, [key for key, _ in fields(config)]):
            hint = f"; write --config.{field}={value or 'VALUE'}"
        raise InputError(f"unknown option '{rest[0]}'{hint}")
    for field, value in overrides:
        override(config, field, value)
    return arguments, check(config)


def _split_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Splits arguments into other options and (field, value) of the fields that are set.

    Accepts what ml_collections accepts: --config.field=value, --config.field value, and for fields
    that are true or false --config.field and --noconfig.field. A value of None stands for true.
    """
    others, overrides, waiting = [], [], list(argv)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if name.startswith("--noconfig.") and not equals:
            overrides.append((name.removeprefix("--noconfig."), "false"))
        elif not name.startswith("--config."):
            others.append(argument)
        elif equals:
            overrides.append((name.removeprefix("--config."), value))
        else:
            has_value = bool(waiting) and not waiting[0].startswith("--")
            following = waiting.pop(0) if has_value else None
            overrides.append((name.removeprefix("--config."), following))
    return others, overrides


def _help(config: Config) -> str:
    table = _fields_of(config)
    lines = []
    for name, value in fields(config):
        option = f"  --config.{name}={as_typed(value)}"
        lines.append(f"{option:<44}  {describe(table[name])}")
    return "\n".join(lines)


def describe(field: Field) -> str:
    """Returns a field's meaning and the values that it takes."""
    if not field.allowed:
        return field.meaning
    is_range = isinstance(field.allowed, str)
    values = field.allowed if is_range else f"one of {', '.join(field.allowed)}"
    return f"{field.meaning}; {values}"


def as_typed(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if not isinstance(value, tuple):
        return str(value)
    if all(isinstance(part, str) for part in value):
        return ",".join(value)
    return repr(tuple(dict(part) if isinstance(part, ConfigDict) else part for part in value))
