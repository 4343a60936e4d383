"""The verbs: `python -m fer_jax VERB ...`."""

import importlib
import logging
import os
import sys
from collections.abc import Callable

from fer_jax.allocator import keep_freed_memory
from fer_jax.errors import USER_FIXABLE_ERRNOS, InputError, Preempted, did_you_mean

# verb: (the module whose `main(argv)` does it, what it does)
VERBS = {
    "doctor": ("fer_jax.doctor", "check versions, devices, codecs and disk"),
    "demo": ("fer_jax.demo", "the main job on the embedded data, with a report"),
    "collect": ("fer_jax.collect.collect", "download the videos of a list of links"),
    "build": ("fer_jax.data.build", "turn a source into a dataset of records"),
    "audit": ("fer_jax.data.audit.audit", "does anything of one side of a split stand on another"),
    "train": ("fer_jax.training.train", "train on a mixture of datasets"),
    "convert": ("fer_jax.weights.convert", "turn a network file into safetensors and a config"),
    "evaluate": ("fer_jax.evaluation.evaluate", "score a trained model on test sets"),
    "synthesize": ("fer_jax.synthesis.synthesize", "generate, label and filter faces"),
    "compare": ("fer_jax.evaluation.compare", "is one run better than another, beyond chance"),
    "study": ("fer_jax.study.study", "train scenarios, and say which holds on what is new"),
    "report": ("fer_jax.report.report", "write report.html of a scored run or a study"),
    "predict": ("fer_jax.predict.predict", "use a trained model on pictures and clips"),
    "page": ("fer_jax.predict.page", "try a trained model in a browser"),
    "export": ("fer_jax.export.export", "write a trained run as safetensors, ONNX, StableHLO"),
    "benchmark": ("fer_jax.benchmark.benchmark", "measure speed beside what others would take"),
}

# Verbs that several processes do as one, where a launcher started several.
TOGETHER = ("train", "evaluate")


def main(argv: list[str] | None = None) -> int:
    """Runs one verb.

    Returns:
      The exit code: 2 for a mistake that a person can mend, 75 where a signal ended what the
      same command continues.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: fer-jax VERB [--help] ...\n")
        print("\n".join(f"  {verb:<10} {what}" for verb, (_, what) in VERBS.items()))
        return 0 if argv else 2
    # Libraries' remarks about their own settings are not for the person at the terminal, nor the
    # traceback that Orbax prints of each error before it raises it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    keep_freed_memory()
    verb, *rest = argv
    if verb not in TOGETHER:
        return _run(verb, rest)
    # Here, since it imports JAX, which the other verbs may do without.
    distributed = importlib.import_module("fer_jax.distributed")
    return distributed.leave(_run(verb, rest, before=distributed.join))


def _run(verb: str, rest: list[str], before: Callable[[], None] = lambda: None) -> int:
    try:
        if verb not in VERBS:
            raise InputError(f"no verb '{verb}'{did_you_mean(verb, VERBS)}")
        before()
        return importlib.import_module(VERBS[verb][0]).main(rest) or 0
    except InputError as error:
        print(f"fer-jax: {error}", file=sys.stderr)
        return 2
    except Preempted as preempted:
        print(f"fer-jax: {preempted.message}", file=sys.stderr)
        return 75
    except BrokenPipeError:
        # Whoever read our output (such as `head`) has seen enough; nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in USER_FIXABLE_ERRNOS:
            raise
        # A write that finds no room does not know its file.
        where = f": {error.filename}" if error.filename else ""
        print(f"fer-jax: {error.strerror}{where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fer-jax: interrupted; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
