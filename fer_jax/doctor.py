"""Check that this machine is ready, and say what to do where it is not."""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections import Counter
from importlib import import_module, metadata, util
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_jax import compilations
from fer_jax.config import OneLineParser, default_data_dir

OK, WARNING, FAILED = "ok", "warning", "failed"
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
REINSTALL = "pip install -r requirements.txt"
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain"),
    *("array-record", "opencv-python-headless", "numpy", "ml-collections", "clu"),
    *("av", "yt-dlp", "yt-dlp-ejs", "deno"),
)
# Packages in versions that do not fit each other may install and fail here.
MODULES = ("flax.nnx", "tensorflow_datasets", "cv2", "av", "grain", "array_record.python")
# extra of pyproject.toml -> modules that it installs
EXTRAS = {
    "export": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "cuda": ("jax_cuda13_plugin",),
    "page": ("starlette", "uvicorn"),
    "bench": ("keras", "torch"),
}
LOW_DISK_GB = 10
VIDEO_CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"), ("VP80", ".mkv"), ("VP90", ".mkv"))


class Check(NamedTuple):
    """One line of the table; `remedy` says what to do."""

    name: str
    status: str
    detail: str
    remedy: str = ""


def tested_versions(requirements: str) -> dict[str, str]:
    """Returns {package: version pinned for this Python} from the text of requirements.txt."""
    from packaging.requirements import InvalidRequirement, Requirement

    pins = {}
    for line in requirements.splitlines():
        try:
            requirement = Requirement(line.split("\\")[0].split("#")[0].strip())
        except InvalidRequirement:
            continue
        version = str(requirement.specifier).removeprefix("==")
        if version and (requirement.marker is None or requirement.marker.evaluate()):
            pins[requirement.name] = version
    return pins


def check_version(name: str, installed: str | None, tested: str | None) -> Check:
    """Compares a package with the version that the tests ran with."""
    if installed is None:
        return Check(name, FAILED, "not installed", REINSTALL)
    if tested is None or installed == tested:
        return Check(name, OK, installed)
    return Check(name, WARNING, f"{installed}, tested with {tested}", REINSTALL)


def check_import(module: str) -> Check:
    """Imports a module and reports the first line of its error."""
    try:
        import_module(module)
    except (ImportError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return Check(f"import {module}", FAILED, reason, REINSTALL)
    return Check(f"import {module}", OK, "works")


def check_devices(backend: str, kinds: list[str], has_nvidia: bool) -> Check:
    """Warns if there is a GPU that JAX does not use."""
    detail = f"{len(kinds)} x {kinds[0]}" + ("" if kinds[0] == backend else f" ({backend})")
    if has_nvidia and backend == "cpu":
        return Check("devices", WARNING, f"{detail}; a GPU is not used", "pip install -e '.[cuda]'")
    return Check("devices", OK, detail)


def check_disk(directory: Path, free_bytes: int) -> Check:
    """Warns if there is little space for datasets."""
    detail = f"{free_bytes / 1e9:.0f} GB free at {directory}"
    if free_bytes < LOW_DISK_GB * 1e9:
        return Check("disk", WARNING, detail, "free some, or set FER_JAX_DATA to another disk")
    return Check("disk", OK, detail)


def check_kernels(reason: str) -> Check:
    """Says whether a network uses the compiled kernels on this CPU, and warns if it cannot."""
    if not reason:
        return Check("cpu kernels", OK, "compiled for this processor")
    if "=no" in reason:
        return Check("cpu kernels", OK, f"off: {reason}")
    remedy = "install g++ or clang++, or name a C++17 compiler in CXX"
    return Check("cpu kernels", WARNING, f"training is slower without them: {reason}", remedy)


def check_cache(directory: Path) -> Check:
    """Warns if compiled programs cannot be cached, so that every run compiles again."""
    if os.access(_existing(directory), os.W_OK):
        return Check("cache", OK, str(directory))
    remedy = "set JAX_COMPILATION_CACHE_DIR or XDG_CACHE_HOME to a folder that can be written"
    return Check("cache", WARNING, f"{directory} cannot be written", remedy)


def check_video() -> Check:
    """Writes and reads a clip with each codec: builds of OpenCV differ in what they support."""
    import cv2

    works: dict[bool, list[str]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        for codec, suffix in VIDEO_CODECS:
            path = f"{folder}/{codec}{suffix}"
            writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*codec), 10, (64, 64))
            for value in (0, 120, 240):
                writer.write(np.full((64, 64, 3), value, np.uint8))
            writer.release()
            reader = cv2.VideoCapture(path)
            works[all(reader.read()[0] for _ in range(3))].append(codec)
            reader.release()
    if works[False]:
        return Check("video", WARNING, f"{', '.join(works[False])} do not work", "reinstall OpenCV")
    return Check("video", OK, f"{', '.join(works[True])} work")


def check_script_runtime() -> Check:
    """Starts Deno, in which yt-dlp runs YouTube's scripts; without it formats or videos lack."""
    try:
        program = import_module("deno").find_deno_bin()
        ran = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        detail = f"does not start, so YouTube's videos cannot be collected: {error}"
        return Check("scripts", WARNING, detail, REINSTALL)
    return Check("scripts", OK, f"Deno {ran.stdout.split()[1]} runs those of video sites")


def check_extras() -> Check:
    """Lists the optional parts that are installed."""
    missing = [name for name, modules in EXTRAS.items() if not all(map(util.find_spec, modules))]
    detail = f"installed: {', '.join(name for name in EXTRAS if name not in missing) or 'none'}"
    remedy = f"pip install -e '.[{','.join(missing)}]' adds the others" if missing else ""
    return Check("extras", OK, detail, remedy)


def diagnose(data_dir: Path) -> list[Check]:
    """Runs all checks; the disk is checked where `data_dir` is or will be."""
    tested = tested_versions(REQUIREMENTS.read_text()) if REQUIREMENTS.is_file() else {}
    checks = [Check("python", OK, platform.python_version())]
    checks += [check_version(name, _installed(name), tested.get(name)) for name in PACKAGES]
    checks += [check_import(name) for name in MODULES]
    if any(one.status == FAILED for one in checks if one.name.startswith("import")):
        return checks
    import jax

    from fer_jax.models import kernels

    kinds = [device.device_kind for device in jax.devices()]
    has_nvidia = shutil.which("nvidia-smi") is not None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or compilations.folder()
    data_dir = _existing(data_dir)
    return [
        *checks,
        check_devices(jax.default_backend(), kinds, has_nvidia),
        Check("processor", OK, f"{os.cpu_count()} cores, {memory:.0f} GiB memory{_bfloat16()}"),
        *([check_kernels(kernels.why_not())] if jax.default_backend() == "cpu" else []),
        check_video(),
        check_script_runtime(),
        check_extras(),
        check_cache(Path(cache)),
        check_disk(data_dir, shutil.disk_usage(data_dir).free),
    ]


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.resolve().parents) if p.exists())


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _bfloat16() -> str:
    flags = compilations.cpu_info("flags", "Features").split()
    units = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return f", {units[0]}: bfloat16 in hardware" if units else ""


def main(argv: list[str]) -> int:
    """Runs the verb `doctor`; the exit code is 1 if a check failed."""
    parser = OneLineParser("fer-jax doctor", __doc__, show_defaults=True)
    parser.add_argument("--data_dir", type=Path, default=default_data_dir(), help="for datasets")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    checks = diagnose(arguments.data_dir)
    counts = Counter(one.status for one in checks)
    if arguments.json:
        print(json.dumps([one._asdict() for one in checks], indent=2))
    else:
        width = max(len(one.name) for one in checks)
        for name, status, detail, remedy in checks:
            print(f"{status:<8}{name:<{width}}  {detail}{f'  -> {remedy}' if remedy else ''}")
        print(", ".join(f"{counts[status]} {status}" for status in (OK, WARNING, FAILED)))
    return int(counts[FAILED] > 0)
