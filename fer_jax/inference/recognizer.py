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
from fer_jax.inference.explain import overlay
from fer_jax.inference.load import FEW_FACES, Network
from fer_jax.inference.load import load as load_network
from fer_jax.media import faces, images
from fer_jax.media.detector import make_detector

FACES = ("detect", "crop")
BATCH_SIZE = 32  # faces in one call of the network
PICTURES_AHEAD = 8  # decoded and searched while the network computes

T = TypeVar("T")
R = TypeVar("R")


class FaceCrop(NamedTuple):
    """One aligned face of a picture.

    Attributes:
      face: the detection.
      crop: uint8 RGB [s, s, 3], at the network's size.
      view: uint8 RGB [t, t, 3], at the picture's own resolution, as a record would hold it.
    """

    face: faces.Face
    crop: np.ndarray
    view: np.ndarray


class Prediction(NamedTuple):
    """The faces of one picture with their class probabilities.

    Attributes:
      item: the input.
      found: the faces, the largest first.
      probabilities: float64 [faces, classes].
      reason: why the picture could not be read; empty if it was, also if it shows no face.
      picture: uint8 BGR, reduced to `stream`'s `keep_size`; None without one.
      scale: of `picture`; boxes are in pixels of the unreduced one.
    """

    item: Any
    found: list[FaceCrop]
    probabilities: np.ndarray
    reason: str = ""
    picture: np.ndarray | None = None
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """A trained network with a face detector in front of it, from `load`.

    Attributes:
      network: the network.
      detector_model: the file of the YuNet detector; "" for the downloaded one.
    """

    network: Network
    detector_model: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.network.classes

    def predict(self, pictures: Any, *, faces: str = "detect") -> list[Any]:
        """Predicts the class of every face in pictures.

        Args:
          pictures: one picture, or a list or batch of them. A picture is a path, a PIL image or
            an array, uint8 RGB [height, width, 3]; a batch is an array [n, height, width, 3].
          faces: "detect" finds them; "crop" takes the centre square of each picture for the face,
            as in published sets of tight crops.

        Returns:
          A list of the picture's faces, the largest first and empty where there is none; for a
          list or a batch, a list of such lists in its order. A face is a dict:
            "box": [x, y, width, height], in pixels of the picture as it is shown (turned the
              way its EXIF says), from its upper left corner;
            "score": the detector's, 0 to 1;
            "emotion", or "interest" of a model of that task: the likeliest class;
            "probabilities": {class: 0 to 1}, in the order of `classes`, adding up to 1.

        Raises:
          InputError: one of them is not a picture; the message names it. `stream` continues
            after such a picture.
        """
        one = is_picture(pictures)
        predictions = []
        for prediction in self.stream([pictures] if one else pictures, faces=faces):
            if prediction.reason:
                item = prediction.item
                is_path = isinstance(item, str | os.PathLike)
                name = f"'{item}'" if is_path else f"picture {len(predictions)}"
                raise InputError(f"{name}: {prediction.reason}")
            predictions.append(self.to_dicts(prediction))
        return predictions[0] if one else predictions

    def stream(
        self,
        pictures: Iterable[Any],
        *,
        faces: str = "detect",
        decode: Callable[[Any], np.ndarray] | None = None,
        search_size: int = faces.ALL_FACES,
        keep_size: int = 0,
    ) -> Generator[Prediction, None, None]:
        """Yields a prediction per picture, in order, for inputs of any length.

        Args:
          pictures: as in `predict`, also without end.
          faces: likewise.
          decode: turns one of them into uint8 BGR [height, width, 3], or raises InputError; None
            for pictures as in `predict`. Runs in threads.
          search_size: the longer side, in pixels, at which faces are searched for.
          keep_size: the longer side, in pixels, of the pictures that predictions keep; 0 for none.

        Yields:
          `Prediction`s; one with a `reason` could not be read.

        Raises:
          InputError: from `pictures` itself, after the predictions of the pictures before.
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
        """Opens the face detector.

        Raises:
          InputError: YuNet's file cannot be downloaded, or is another file.
        """
        return make_detector(self.detector_model)

    def to_dicts(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Returns the faces of a prediction as `predict` does."""
        return [
            {
                "box": [float(value) for value in found.face.box],
                "score": float(found.face.score),
                self.network.task: self.classes[int(np.argmax(row))],
                "probabilities": dict(zip(self.classes, map(float, row), strict=True)),
            }
            for found, row in zip(prediction.found, prediction.probabilities, strict=True)
        ]

    def heatmaps(self, found: Sequence[FaceCrop], classes: Sequence[int]) -> list[np.ndarray]:
        """Draws over each face which parts speak for its class in `classes` (`explain.grad_cam`).

        Returns:
          uint8 RGB [t, t, 3] for each face; [] for engines other than JAX.
        """
        if self.network.engine != "jax" or not found:
            return []
        crops = np.stack([one.crop for one in found])
        maps, _ = self.network.explain(crops, np.asarray(classes))
        return [overlay(one.view, heat) for one, heat in zip(found, maps, strict=True)]

    def _predicted(self, waiting: Sequence[Prediction]) -> Iterator[Prediction]:
        """Runs the network once on the faces of several pictures."""
        crops = [found.crop for prediction in waiting for found in prediction.found]
        if crops:
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
        """Returns the function that decodes a picture and cuts out its faces."""
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
            crop_size, margin = self.network.image_size, self.network.margin
            found = find_faces(picture, detect, search_size, crop_size, margin)
            kept, scale = None, 1.0
            if keep_size:
                scale = min(1.0, keep_size / max(picture.shape[:2]))
                sides = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
                kept = cv2.resize(picture, sides, interpolation=cv2.INTER_AREA)
            return Prediction(item, found, no_rows, "", kept, scale)

        return find


def find_faces(
    picture: np.ndarray,
    detect: faces.Detector | None,
    search_size: int,
    crop_size: int,
    margin: float,
) -> list[FaceCrop]:
    """Detects the faces of a picture and crops them as `build` does, the largest first.

    Args:
      picture: uint8 BGR [height, width, 3].
      detect: None if the picture itself is a crop of a face.
      search_size: the longer side, in pixels, at which faces are searched for.
      crop_size: the side of the network's input in pixels.
      margin: the share by which the tight crop is widened.
    """
    if detect is None:
        crop, box = images.square(picture)
        found = [(faces.Face(box, 1.0, None), cv2.cvtColor(crop, cv2.COLOR_BGR2RGB))]
    else:
        found = [
            (face, faces.crop(picture, face, margin=margin))
            for face in faces.largest_first(detect(picture, search_size))
            if not faces.is_outside(picture, face)
        ]
    return [FaceCrop(face, images.resized(view, crop_size), view) for face, view in found]


def is_picture(value: Any) -> bool:
    """Whether a value stands for one picture rather than several."""
    if isinstance(value, np.ndarray):
        return value.ndim != 4
    return isinstance(value, str | os.PathLike) or not isinstance(value, Iterable)


def as_picture(value: Any) -> np.ndarray:
    """Converts a path, PIL image or RGB array to uint8 BGR [height, width, 3].

    Raises:
      InputError: the value is none of them.
    """
    if isinstance(value, str | os.PathLike):
        return cv2.cvtColor(images.read(Path(value)), cv2.COLOR_RGB2BGR)
    if hasattr(value, "convert") and hasattr(value, "getexif"):
        # Looks like a PIL image, so PIL is installed.
        from PIL import ImageOps

        value = np.asarray(ImageOps.exif_transpose(value).convert("RGB"))
    if not isinstance(value, np.ndarray):
        raise InputError(f"{type(value).__name__} is not a path, PIL image or array")
    if value.dtype != np.uint8:
        raise InputError(f"the array must be uint8 from 0 to 255, got {value.dtype}")
    if value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise InputError(f"the array must be RGB [height, width, 3], got {list(value.shape)}")
    return cv2.cvtColor(np.ascontiguousarray(value), cv2.COLOR_RGB2BGR)


def prefetch_map(
    items: Iterable[T], work: Callable[[T], R], *, depth: int
) -> Generator[R, None, None]:
    """Yields work(item) for each item, in order, computed ahead in threads.

    Args:
      items: iterated in one thread.
      work: called from as many threads as there are cores.
      depth: how many items at most are taken and not yet yielded.

    Raises:
      Whatever `items` or `work` raises, at its place in the order.
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
        except BaseException as error:  # raised where its result is waited for
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
