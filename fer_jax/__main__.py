"""The command line: `fer-jax VERB ...`, or `python -m fer_jax VERB ...`."""

import importlib
import logging
import os
import sys
from collections.abc import Callable

import fer_jax
from fer_jax.errors import (
    DISK_FULL_ERRNOS,
    PREEMPTED,
    USER_FIXABLE_ERRNOS,
    InputError,
    Preempted,
    did_you_mean,
    disk_error_message,
)
from fer_jax.process import check_limits, keep_freed_memory, open_closed_streams

# verb: (the module whose `main(argv)` runs it, its line in --help)
VERBS = {
    "doctor": ("fer_jax.doctor", "check that this machine is ready: versions, devices, codecs"),
    "demo": ("fer_jax.demo", "run everything on rendered faces and write the report"),
    "collect": ("fer_jax.collect.collect", "download the videos of a list of links"),
    "build": ("fer_jax.data.build", "turn videos or images into a dataset of face records"),
    "audit": (
        "fer_jax.data.audit.leakage",
        "check for leakage between training, validation and test data",
    ),
    "train": ("fer_jax.training.train", "train a classifier or a face generator"),
    "reproduce": (
        "fer_jax.training.reproduce",
        "train a run again and say whether the numbers are equal",
    ),
    "convert": ("fer_jax.weights.convert", "convert Keras or NVIDIA weights to safetensors"),
    "evaluate": ("fer_jax.evaluation.evaluate", "evaluate a trained model on test sets"),
    "synthesize": ("fer_jax.synthesis.synthesize", "generate, label and filter synthetic faces"),
    "compare": ("fer_jax.evaluation.compare", "test whether one run is better than another"),
    "study": ("fer_jax.study.study", "compare mixtures of datasets on unseen people and content"),
    "report": ("fer_jax.report.report", "write report.html of an evaluated run or a study"),
    "predict": ("fer_jax.predict.predict", "predict the emotions of faces in images and videos"),
    "page": ("fer_jax.predict.page", "try a trained model in a browser"),
    "export": ("fer_jax.export.export", "export a trained run as safetensors, ONNX or StableHLO"),
    "benchmark": ("fer_jax.benchmark.benchmark", "compare speed with other libraries"),
}

# Verbs that need neither JAX nor many threads.
LIGHT = ("collect", "report")
# Verbs that a launcher may start as several processes of one run.
TOGETHER = ("train", "evaluate")


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit code.

    It is 2 for an error that the user can fix, 75 for a preempted run that resumes when the same
    command is run again.
    """
    open_closed_streams()
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: fer-jax VERB [--help] ...\n")
        print("\n".join(f"  {verb:<10} {what}" for verb, (_, what) in VERBS.items()))
        print("\nfer-jax VERB --help lists the options of a verb; fer-jax --version the version.")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"fer-jax {fer_jax.__version__}")
        return 0
    # Hides notes that libraries log about their own settings, and the traceback that Orbax logs
    # of each error before it raises it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Hides XLA's complaints about slow compilations; its errors are raised in Python, too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    keep_freed_memory()
    verb, *rest = argv
    if verb not in TOGETHER:
        return _run(verb, rest)
    # Imported here because it imports JAX, which other verbs start faster without.
    distributed = importlib.import_module("fer_jax.distributed")
    return distributed.exit_process(_run(verb, rest, before=_connect))


def _connect() -> None:
    distributed = importlib.import_module("fer_jax.distributed")
    distributed.initialize()
    if distributed.process_info_from_env(os.environ).processes > 1:
        importlib.import_module("fer_jax.models.kernels").agree(distributed.smallest)


def _run(verb: str, rest: list[str], before: Callable[[], None] = lambda: None) -> int:
    try:
        if verb not in VERBS:
            raise InputError(f"unknown verb '{verb}'{did_you_mean(verb, VERBS)}")
        if verb not in LIGHT:
            check_limits()
        rest = _take_jax_options(rest)
        before()
        return importlib.import_module(VERBS[verb][0]).main(rest) or 0
    except InputError as error:
        print(f"fer-jax: {error}", file=sys.stderr)
        return 2
    except Preempted as preempted:
        print(f"fer-jax: {preempted.message}", file=sys.stderr)
        return PREEMPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in USER_FIXABLE_ERRNOS:
            raise
        # A failed write to an open file does not name the file.
        where = f": {error.filename}" if error.filename else ""
        remedy = "; make room and rerun the same command" if error.errno in DISK_FULL_ERRNOS else ""
        print(f"fer-jax: {error.strerror}{where}{remedy}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # So the writers of records and of checkpoints, in C++, say that the disk is full.
        full = [os.strerror(number) for number in DISK_FULL_ERRNOS]
        if disk_error_message(error) not in full:
            raise
        print(
            f"fer-jax: {disk_error_message(error)}; make room and rerun the same command",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("fer-jax: interrupted; rerun the same command to resume", file=sys.stderr)
        return 130


def _take_jax_options(argv: list[str]) -> list[str]:
    """Applies JAX's own options, such as --jax_debug_nans, and returns the other arguments."""
    others = ["--help" if argument == "--helpfull" else argument for argument in argv]
    for option in [one for one in others if one.startswith(("--jax_", "--nojax_"))]:
        others.remove(option)
        jax = importlib.import_module("jax")
        name, equals, text = option.lstrip("-").partition("=")
        value: object = text if equals else not name.startswith("nojax_")
        name = name.removeprefix("no")
        if name not in jax.config.values:
            raise InputError(f"unknown option '--{name}'{did_you_mean(name, jax.config.values)}")
        kind = type(jax.config.values[name])
        words = {"true": True, "1": True, "false": False, "0": False}
        try:
            if isinstance(value, str) and kind is bool:
                value = words[value.lower()]
            elif isinstance(value, str) and kind in (int, float):
                value = kind(value)
            jax.config.update(name, value)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"--{name} cannot be '{text}': {error}") from error
    return others


if __name__ == "__main__":
    sys.exit(main())
