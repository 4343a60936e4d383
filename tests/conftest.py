"""Eight virtual devices and a shared compilation cache, before JAX is imported."""

import gc
import importlib.metadata
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

# A shell's background jobs ignore Ctrl-C, those of nohup SIGHUP, and so does what they start: then
# the tests of these fail.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Imported by a test itself, OpenVINO would report it, by a fork beside JAX's threads.
sys.modules.setdefault("openvino_telemetry", cast(Any, None))
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Compiling is most of the time of the tests. It takes half without most of the optimizations, and
# half of that with the older of two ways to emit code, where XLA still has it. Set to 0, the
# tests run what users run.
QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") not in ("0", "false")
OLDER = QUICK and importlib.metadata.version("jaxlib").startswith("0.10.")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *["--xla_cpu_use_fusion_emitters=false"] * OLDER,
    ]
)
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "fer_jax_test_compilations")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Tracing makes millions of small objects that live on: looking through them for cycles each time
# there are 700 more takes a third of its time.
gc.set_threshold(100_000, 20, 20)

import fer_jax  # noqa: E402, F401  (as below; it sets what OpenCV may open, before that is imported)

# isort: split
import cv2  # noqa: E402  (the environment above must be set before anything imports JAX)
import jax  # noqa: E402  (as above)
import numpy as np  # noqa: E402  (as above)
import pytest  # noqa: E402  (as above)
from flax import nnx  # noqa: E402  (as above)

from fer_jax.models import xception  # noqa: E402  (as above)
from fer_jax.models.layers import Separable  # noqa: E402  (as above)
from fer_jax.sharding import make_mesh  # noqa: E402  (as above)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="module", autouse=True)
def settings_stay() -> Iterator[None]:
    """Settings of JAX that a file changed would change how the files after it round."""
    before = dict(jax.config.values)
    yield
    assert {name: jax.config.values[name] for name in before} == before


@pytest.fixture(scope="module")
def short_network() -> Iterator[None]:
    """An Xception of fewer blocks, for tests of what is around the network: it compiles faster.

    Other processes that a test starts have the whole network.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xception, "Xception", ShortXception)
        yield


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Trains and evaluates on one of the eight devices: less to compile.

    Other processes that a test starts have all of them.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in ("training.start", "evaluation.evaluate"):
            patch.setattr(
                f"fer_jax.{module}.make_mesh", lambda _=None: make_mesh(jax.devices()[:1])
            )
        yield


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compiles what a test compiles as users have it."""
    setting = "jax_disable_most_optimizations"
    before = jax.config.read(setting)
    jax.config.update(setting, False)
    yield
    jax.config.update(setting, before)


class Skipped(nnx.Module):
    """Takes a block's place: keeps one pixel of as many as the block does."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        return x[:, :: self.stride, :: self.stride]


class ShortXception(xception.Xception):
    """The stem, the first block and the last convolution."""

    def __init__(self, *, rngs: nnx.Rngs, **model: Any) -> None:
        super().__init__(rngs=rngs, **model)
        for number in range(1, self.num_middle_blocks + 1):
            setattr(self, f"middle{number}", Skipped(1))
        self.entry2, self.entry3, self.exit1 = Skipped(2), Skipped(2), Skipped(2)
        self.exit2 = Skipped(1)
        channels = self.entry1.separable2.pointwise.kernel.shape[-1]
        self.exit3 = Separable(
            channels,
            self.exit3.pointwise.kernel.shape[-1],
            momentum=model.get("batch_norm_momentum", 0.99),
            rngs=rngs,
        )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real faces and goldens beside the checkout; absent, the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real data in {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def yunet_model(shared: Path) -> Path:
    """The file of the YuNet detector."""
    return shared / "models" / "face_detection_yunet_2023mar.onnx"


@pytest.fixture
def crashing_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started from here crash when they open a file named after that."""
    folder = Path(__file__).with_name("crashing_decoder")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP80"}


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """A function that writes uint8 BGR pictures as a video file and returns its path."""

    def write(
        path: Path, pictures: Iterable[np.ndarray], *, fps: float = 10, codec: str = ""
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = list(pictures)
        fourcc = cv2.VideoWriter.fourcc(*(codec or CODECS[path.suffix.lower()]))
        writer = cv2.VideoWriter(str(path), fourcc, fps, pictures[0].shape[1::-1])
        assert writer.isOpened()
        for picture in pictures:
            writer.write(picture)
        writer.release()
        return path

    return write
