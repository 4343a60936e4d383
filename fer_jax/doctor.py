"""The verb `doctor`: is this machine ready, and if not, what to do about it."""

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import OneLineParser, default_data_dir

OK, WARNING, FAILED = "ok", "warning", "failed"
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain"),
    *("array-record", "opencv-python-headless", "numpy", "ml-collections", "clu", "yt-dlp"),
)
LOW_DISK_GB = 10
VIDEO_CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"), ("VP80", ".mkv"), ("VP90", ".mkv"))

Check = dict[str, str]


def check(name: str, status: str, detail: str, remedy: str = "") -> Check:
    """One line of the table: what was looked at, how it is, and what to do."""
    return {"name": name, "status": status, "detail": detail, "remedy": remedy}


def tested_versions(requirements: str) -> dict[str, str]:
    """Package -> version pinned for this Python, from the text of requirements.txt."""
    from packaging.requirements import InvalidRequirement, Requirement

    pins = {}
    for line in requirements.splitlines():
        try:
            requirement = Requirement(line.split("\\")[0].split("#")[0].strip())
        except InvalidRequirement:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate()
        version = str(requirement.specifier).removeprefix("==")
        if applies and version:
            pins[requirement.name] = version
    return pins


def check_version(name: str, installed: str | None, tested: str | None) -> Check:
    """Compares a package with the version that the tests ran with."""
    if installed is None:
        return check(name, FAILED, "not installed", "pip install -r requirements.txt")
    if tested is None or installed == tested:
        return check(name, OK, installed)
    return check(
        name, WARNING, f"{installed}, tested with {tested}", "pip install -r requirements.txt"
    )


def check_import(module: str) -> Check:
    """Imports a module: some pairs of versions install together and fail here."""
    try:
        import_module(module)
    except (ImportError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return check(f"import {module}", FAILED, reason, "pip install -r requirements.txt")
    return check(f"import {module}", OK, "works")


def check_devices(backend: str, kinds: list[str], has_nvidia: bool) -> Check:
    """Whether JAX uses the accelerator that is there."""
    detail = f"{len(kinds)} x {kinds[0]} ({backend})"
    if has_nvidia and backend == "cpu":
        return check("devices", WARNING, f"{detail}; a GPU is not used", "pip install -e '.[cuda]'")
    return check("devices", OK, detail)


def check_disk(directory: Path, free_bytes: int) -> Check:
    """Free disk where the datasets go."""
    detail = f"{free_bytes / 1e9:.0f} GB free at {directory}"
    if free_bytes < LOW_DISK_GB * 1e9:
        return check("disk", WARNING, detail, "free some, or set FER_JAX_DATA to another disk")
    return check("disk", OK, detail)


def check_arithmetic() -> Check:
    """A matrix product on the device gives what it gives on the host."""
    import jax

    a = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        error = float(np.abs(np.asarray(jax.numpy.dot(a, a)) - a @ a).max())
    if error > 1e-3:
        return check("arithmetic", FAILED, f"a product is off by {error}", "check the driver")
    return check("arithmetic", OK, "a matrix product is right")


def check_images() -> Check:
    """JPEG and PNG survive a round trip."""
    import cv2

    y, x = np.mgrid[:32, :32]
    picture = np.dstack([x * 8, y * 8, x * 4 + y * 4]).astype(np.uint8)
    for suffix, tolerance in ((".jpg", 24), (".png", 0)):
        back = cv2.imdecode(cv2.imencode(suffix, picture)[1], cv2.IMREAD_COLOR)
        if back is None or np.abs(back.astype(int) - picture).max() > tolerance:
            return check("images", FAILED, f"{suffix} cannot be read back", "reinstall OpenCV")
    return check("images", OK, "JPEG and PNG")


def check_video() -> Check:
    """Which codecs OpenCV writes and reads back."""
    import cv2

    works, fails = [], []
    with tempfile.TemporaryDirectory() as folder:
        for codec, suffix in VIDEO_CODECS:
            path = str(Path(folder) / f"{codec}{suffix}")
            writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*codec), 10, (64, 64))
            for value in (0, 120, 240):
                writer.write(np.full((64, 64, 3), value, np.uint8))
            writer.release()
            reader = cv2.VideoCapture(path)
            frames = sum(reader.read()[0] for _ in range(3))
            reader.release()
            (works if frames == 3 else fails).append(codec)
    detail = f"{', '.join(works) or 'none'} work"
    if fails:
        return check("video", WARNING, f"{detail}; {', '.join(fails)} do not", "reinstall OpenCV")
    return check("video", OK, detail)


def check_shards() -> Check:
    """array_record writes and reads a shard."""
    array_record_module: Any = import_module("array_record.python.array_record_module")

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "x.array_record")
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        writer.write(b"record")
        writer.close()
        if array_record_module.ArrayRecordReader(path).read([0]) != [b"record"]:
            return check("shards", FAILED, "a record differs", "reinstall array-record")
    return check("shards", OK, "array_record writes and reads")


def diagnose(data_dir: Path) -> list[Check]:
    """All checks.

    Args:
      data_dir: where datasets go; its nearest existing parent is looked at.

    Returns:
      One {"name", "status", "detail", "remedy"} each; status is ok, warning or failed.
    """
    tested = tested_versions(REQUIREMENTS.read_text()) if REQUIREMENTS.is_file() else {}
    checks = [check("python", OK, platform.python_version())]
    checks += [check_version(name, _installed(name), tested.get(name)) for name in PACKAGES]
    imports = [check_import(name) for name in ("flax.nnx", "tensorflow_datasets", "cv2", "grain")]
    checks += imports
    if any(one["status"] == FAILED for one in imports):
        return checks
    import jax

    has_nvidia = shutil.which("nvidia-smi") is not None
    kinds = [device.device_kind for device in jax.devices()]
    checks.append(check_devices(jax.default_backend(), kinds, has_nvidia))
    checks.append(check("processor", OK, _processor()))
    working: tuple[Callable[[], Check], ...] = (
        check_arithmetic,
        check_images,
        check_video,
        check_shards,
    )
    checks += [run() for run in working]
    existing = next(p for p in (data_dir, *data_dir.resolve().parents) if p.exists())
    checks.append(check_disk(existing, shutil.disk_usage(existing).free))
    return checks


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    detail = f"{os.cpu_count()} cores, {memory:.0f} GiB memory"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    units = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return detail + (f", {units[0]}: bfloat16 in hardware" if units else "")


def main(argv: list[str]) -> int:
    """The verb `doctor`; exit code 1 if something failed."""
    parser = OneLineParser(
        prog="fer-jax doctor",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    arguments = parser.parse_args(argv)
    checks = diagnose(arguments.data_dir)
    print(json.dumps(checks, indent=2) if arguments.json else table(checks))
    return int(any(one["status"] == FAILED for one in checks))


def table(checks: list[Check]) -> str:
    """The checks as aligned lines, with a count at the end."""
    width = max(len(one["name"]) for one in checks)
    lines = []
    for one in checks:
        remedy = f"  -> {one['remedy']}" if one["remedy"] else ""
        lines.append(f"{one['status']:<8}{one['name']:<{width}}  {one['detail']}{remedy}")
    counts: Any = {status: 0 for status in (OK, WARNING, FAILED)}
    for one in checks:
        counts[one["status"]] += 1
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items())])
