"""Pictures in, faces with class probabilities out.

A picture is decoded, its faces are detected and aligned as in the records, and the faces of many
pictures form one batch for the network. Threads decode and detect a fixed number of pictures ahead
of the network, so memory does not grow with the input.
"""

import concurrent.futures
import dataclasses
import functools
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import jax
import numpy as np

from fer_jax.errors import InputError, did_you_mean
from fer_jax.inference import promises
from fer_jax.inference.network import FEW_FACES, Network
from fer_jax.inference.network import load as load_network
from fer_jax.media import faces, images
from fer_jax.media.detector import make_detector
from fer_jax.media.faces import ALL_FACES

FACES = ("detect", "crop")
BATCH_SIZE = 32  # faces in one call of the network
OPACITY = 0.75  # of the colour at a heatmap's maximum
PICTURES_AHEAD = 8  # decoded and searched while the network computes

T = TypeVar("T")
R = TypeVar("R")


class FaceCrop(NamedTuple):
    """One aligned face of a picture."""

    face: faces.Face
    crop: np.ndarray  # uint8 RGB [s, s, 3], at the network's size
    view: np.ndarray  # uint8 RGB [t, t, 3], at the picture's resolution, as in records


class Prediction(NamedTuple):
    """The faces of one picture with their class probabilities."""

    item: Any  # the input
    found: list[FaceCrop]  # the largest first
    probabilities: np.ndarray  # float64 [faces, classes]
    reason: str = ""  # why the picture could not be read
    picture: np.ndarray | None = None  # uint8 BGR, reduced to the `keep_size` of `stream`
    scale: float = 1.0  # of `picture`; boxes are in pixels of the unreduced one


@dataclasses.dataclass(frozen=True, repr=False)
class Recognizer:
    """A trained network with a face detector in front of it, from `load`."""

    network: Network
    detector_model: str = ""  # YuNet's file; "" for the downloaded one

    def __repr__(self) -> str:
        file = self.detector_model or "downloaded once to ~/.cache/fer_jax"
        return f"{self.network}\n  detector: YuNet, {file}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.network.classes

    def predict(
        self, pictures: Any, *, faces: str = "detect", certainty: float | None = None
    ) -> list[Any]:
        """Predicts the class of every face in pictures.

        A picture is a path, the bytes of an image file, a PIL image or an array, uint8 RGB [height,
        width, 3]; several are a list or an array [n, height, width, 3]. `faces` is "detect", or
        "crop", which takes the centre square of each picture for the face, as in published sets of
        tight crops.

        Returns a picture's faces, the largest first; for a list or a batch, a list of such lists in
        its order. A face is a dict:
          "box": [x, y, width, height], in pixels of the picture as it is shown (rotated as its EXIF
            says), from its upper left corner;
          "score": of the detection, 0 to 1;
          "emotion", or "interest" for models of that task: the likeliest class;
          "probabilities": {class: 0 to 1}, in the order of `classes`; they sum to 1;
          with a `certainty` from 0.5 to 0.99 also "answer": the class, or None for "not known", and
            "candidates": the classes of which one is right as often as that, the likeliest first,
            for new people of the sources that the model was trained on (see
            `evaluation/certainty.py`; `evaluate` the run first).
        Raises InputError if the model has no such certainty, and if one of them is not a picture;
        names it. `stream` continues after such a picture.
        """
        one = is_picture(pictures)
        predictions = []
        if certainty is not None:
            promises.of_model(self.network.about, certainty)  # before any picture is read
        for prediction in self.stream([pictures] if one else pictures, faces=faces):
            _check_read(prediction, len(predictions))
            predictions.append(self.to_dicts(prediction, certainty))
        return predictions[0] if one else predictions

    def features(self, pictures: Any, *, faces: str = "detect") -> np.ndarray:
        """Returns what the network's last layer sees of the largest face of each picture.

        `pictures` and `faces` are those of `predict`. Returns float32 [n, d], or [d] for one
        picture; d is 2048 times the network's width. A picture without a face has a row of NaN.
        Raises InputError as `predict` does, and for a model in another engine than JAX.
        """
        one = is_picture(pictures)
        find = self._finder(faces, as_picture, ALL_FACES, 0)
        crops, has_face = [], []
        size = self.network.image_size
        given = [pictures] if one else pictures
        for number, prediction in enumerate(prefetch_map(given, find, depth=PICTURES_AHEAD)):
            _check_read(prediction, number)
            has_face.append(bool(prediction.found))
            if prediction.found:
                crops.append(prediction.found[0].crop)
        found = self.network.features(crops or np.zeros((1, size, size, 3), np.uint8))
        rows = np.full((len(has_face), found.shape[1]), np.nan, np.float32)
        if crops:
            rows[has_face] = found
        return rows[0] if one else rows

    def stream(
        self,
        pictures: Iterable[Any],
        *,
        faces: str = "detect",
        decode: Callable[[Any], np.ndarray] | None = None,
        search_size: int = ALL_FACES,
        keep_size: int = 0,
    ) -> Generator[Prediction, None, None]:
        """Yields a prediction per picture (as in `predict`, also without end), in order.

        `decode` turns an item of `pictures` into uint8 BGR [height, width, 3], in threads, or
        raises InputError; None: they are pictures as in `predict`. `search_size` is the longer
        side, in pixels, at which faces are searched for, `keep_size` that of the pictures that
        predictions keep; 0 for none. InputError of `pictures` itself is raised after the
        predictions of the pictures before; a picture that cannot be read is a prediction with a
        `reason`.
        """
        find = self._finder(faces, decode or as_picture, search_size, keep_size)
        waiting: list[Prediction] = []
        num_faces = 0
        try:
            for prediction in prefetch_map(pictures, find, depth=PICTURES_AHEAD):
                waiting.append(prediction)
                num_faces += len(prediction.found)
                if num_faces >= BATCH_SIZE or len(waiting) >= PICTURES_AHEAD:
                    yield from self._predicted(waiting)
                    waiting, num_faces = [], 0
        except InputError:
            # The pictures before the error still get their predictions.
            yield from self._predicted(waiting)
            raise
        yield from self._predicted(waiting)

    def detector(self) -> faces.Detector:
        """Returns the face detector; InputError if YuNet's file cannot be downloaded."""
        return make_detector("yunet", self.detector_model, fast=True)

    def to_dicts(
        self, prediction: Prediction, certainty: float | None = None
    ) -> list[dict[str, Any]]:
        """Returns the faces of a prediction as `predict` does."""
        found = [
            {
                "box": [float(value) for value in found.face.box],
                "score": float(found.face.score),
                self.network.task: self.classes[int(np.argmax(row))],
                "probabilities": dict(zip(self.classes, map(float, row), strict=True)),
            }
            for found, row in zip(prediction.found, prediction.probabilities, strict=True)
        ]
        if certainty is not None:
            for one, row in zip(found, prediction.probabilities, strict=True):
                one |= self.answer(row, certainty)
        return found

    def answer(self, probabilities: np.ndarray, certainty: float) -> dict[str, Any]:
        """Returns "answer" and "candidates", as `predict` does, of float [classes]."""
        of_sets, of_answers = promises.of_model(self.network.about, certainty)
        chosen = promises.sets(probabilities[None], of_sets)[0]
        order = np.argsort(-probabilities, kind="stable")
        known = probabilities.max() >= of_answers
        return {
            "answer": self.classes[int(order[0])] if known else None,
            "candidates": [self.classes[i] for i in order if chosen[i]],
        }

    def heatmaps(
        self, found: Sequence[FaceCrop], classes: Sequence[int] | np.ndarray
    ) -> list[np.ndarray]:
        """Draws over each face, uint8 RGB [t, t, 3], what speaks for its class; [] without JAX."""
        if self.network.engine != "jax" or not found:
            return []
        crops = np.stack([one.crop for one in found])
        maps, _ = self.network.explain(crops, np.asarray(classes))
        return [overlay(one.view, heat) for one, heat in zip(found, maps, strict=True)]

    def _predicted(self, waiting: Sequence[Prediction]) -> Iterator[Prediction]:
        if crops := [found.crop for prediction in waiting for found in prediction.found]:
            rows = self.network.probabilities(np.stack(crops))
        else:
            rows = np.zeros((0, len(self.classes)))
        start = 0
        for prediction in waiting:
            end = start + len(prediction.found)
            yield prediction._replace(probabilities=rows[start:end])
            start = end

    def _finder(
        self, how: str, decode: Callable[[Any], np.ndarray], search_size: int, keep_size: int
    ) -> Callable[[Any], Prediction]:
        if how not in FACES:
            raise InputError(
                f"faces must be {' or '.join(FACES)}, got '{how}'{did_you_mean(how, FACES)}"
            )
        detect = self.detector() if how == "detect" else None
        no_rows = np.zeros((0, len(self.classes)))

        def find(item: Any) -> Prediction:
            try:
                picture = decode(item)
            except InputError as error:
                return Prediction(item, [], no_rows, str(error))
            network = self.network
            found = [
                FaceCrop(face, images.resized(view, network.image_size), view)
                for face, view in faces.detect_and_crop(
                    picture, detect, search_size, margin=network.margin
                )
            ]
            kept, scale = None, 1.0
            if keep_size:
                scale = min(1.0, keep_size / max(picture.shape[:2]))
                sides = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
                kept = cv2.resize(picture, sides, interpolation=cv2.INTER_AREA)
            return Prediction(item, found, no_rows, "", kept, scale)

        return find


def _check_read(prediction: Prediction, number: int) -> None:
    """Raises InputError, which names the picture, if it could not be read."""
    if prediction.reason:
        is_path = isinstance(prediction.item, str | os.PathLike)
        name = f"'{prediction.item}'" if is_path else f"picture {number}"
        raise InputError(f"{name}: {prediction.reason}")


def is_picture(value: Any) -> bool:
    """Whether a value stands for one picture rather than several."""
    if isinstance(value, np.ndarray):
        return value.ndim != 4
    return isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Iterable)


def as_picture(value: Any) -> np.ndarray:
    """Converts a path, PIL image or RGB array to uint8 BGR [height, width, 3]; else InputError."""
    if isinstance(value, str | os.PathLike):
        return cv2.cvtColor(images.read(Path(value)), cv2.COLOR_RGB2BGR)
    if isinstance(value, bytes):
        return cv2.cvtColor(images.decode(value), cv2.COLOR_RGB2BGR)
    if hasattr(value, "convert") and hasattr(value, "getexif"):
        # Looks like a PIL image, so PIL is installed.
        from PIL import ImageOps

        value = ImageOps.exif_transpose(value)
        if value.mode.startswith(("I", "F")):
            # As a file is read: PIL would clip 16 bits to 8 instead of scaling them.
            grey = np.asarray(value, np.float64)
            grey = np.clip(grey / (256 if value.mode != "F" or grey.max() > 255 else 1), 0, 255)
            value = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
        else:
            value = np.asarray(value.convert("RGB"))
    if not isinstance(value, np.ndarray):
        raise InputError(f"{type(value).__name__} is not a path, bytes, PIL image or array")
    if value.dtype != np.uint8:
        raise InputError(f"the array must be uint8 from 0 to 255, got {value.dtype}")
    if value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise InputError(f"the array must be RGB [height, width, 3], got {list(value.shape)}")
    return cv2.cvtColor(np.ascontiguousarray(value), cv2.COLOR_RGB2BGR)


def prefetch_map(
    items: Iterable[T], work: Callable[[T], R], *, depth: int
) -> Generator[R, None, None]:
    """Yields work(item) for each item, in order, computed ahead in as many threads as cores.

    Items are iterated in one more thread; at most `depth` of them are taken and not yet yielded.
    An error of `items` or `work` is raised at its place in the order.
    """
    ready: queue.Queue[concurrent.futures.Future[R] | None] = queue.Queue()
    room, stopped = threading.Semaphore(depth), threading.Event()

    def submit() -> None:
        try:
            for item in items:
                room.acquire()
                if stopped.is_set():
                    return
                ready.put(_threads().submit(work, item))
            ready.put(None)
        except BaseException as error:  # raised when its result is read
            failed: concurrent.futures.Future[R] = concurrent.futures.Future()
            failed.set_exception(error)
            ready.put(failed)

    submitting = threading.Thread(target=submit, daemon=True)
    submitting.start()
    try:
        while (future := ready.get()) is not None:
            yield future.result()
            room.release()
    finally:
        stopped.set()
        room.release()
        submitting.join()
        left = [future for future in ready.queue if future is not None and not future.cancel()]
        concurrent.futures.wait(left)


def overlay(face: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draws a heatmap over a face in grey, uint8 RGB [h, w, 3].

    `heat` is float [g, g], not negative, in any unit: colours are relative to its largest value.
    """
    height, width = face.shape[:2]
    largest = heat.max()
    relative = (heat / largest if largest > 0 else np.zeros_like(heat)).astype(np.float32)
    relative = cv2.resize(relative, (width, height), interpolation=cv2.INTER_LINEAR)
    levels = np.round(255 * relative).astype(np.uint8)
    glow = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[..., None]
    # Squared, because a map of few cells is far from 0 everywhere and would tint the whole face.
    covered = OPACITY * relative[..., None] ** 2
    return np.round(grey * (1 - covered) + glow * covered).astype(np.uint8)


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """Returns the threads, which all calls share because each holds a detector."""
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "fer_jax")


def load(path: str | os.PathLike[str], engine: str = "", *, detector_model: str = "") -> Recognizer:
    """Loads a trained model; see `fer_jax.load`."""
    network = load_network(
        Path(path), engine=engine, batch_sizes=FEW_FACES, devices=jax.local_devices()[:1]
    )
    return Recognizer(network, detector_model)
