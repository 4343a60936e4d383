"""Pictures to faces with what each shows: the way from any input to a model's answer.

A picture is decoded, its faces are found, aligned to the framing of the records and given to the
network, many pictures' faces together. Decoding and detecting run in threads ahead of the
network, a fixed number of pictures and no further, so that memory does not grow with the input.
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
import numpy as np

from fer_jax.errors import InputError, did_you_mean
from fer_jax.inference.engines import Engine, open_engine
from fer_jax.inference.explain import overlay
from fer_jax.media import faces, images
from fer_jax.media.detector import make_detector

FACES = ("detect", "crop")
BATCH_SIZE = 32  # faces that the network is given at once
PICTURES_AHEAD = 8  # decoded and searched, or being so, while the network works

T = TypeVar("T")
R = TypeVar("R")


class Found(NamedTuple):
    """One face of a picture, before the network has seen it.

    Attributes:
      face: where it is.
      crop: uint8 RGB [s, s, 3], aligned, at the network's size.
      view: uint8 RGB [t, t, 3], the same as the picture has it, as a record would hold it.
    """

    face: faces.Face
    crop: np.ndarray
    view: np.ndarray


class Answer(NamedTuple):
    """A picture's faces and what the network says of them.

    Attributes:
      item: what came in.
      found: the faces, the largest first.
      probabilities: float32 [faces, classes].
      reason: why there is no answer; empty where there is one, be it of no face.
      picture: uint8 BGR, reduced as `stream` was asked to keep it; None where it was not.
      scale: of `picture`; the boxes are in pixels of the whole one.
    """

    item: Any
    found: list[Found]
    probabilities: np.ndarray
    reason: str = ""
    picture: np.ndarray | None = None
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """A trained network with a face detector in front of it, from `load`.

    Attributes:
      engine: what runs the network.
      detector_model: the file of the YuNet detector; "" for the one that is kept or fetched.
    """

    engine: Engine
    detector_model: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """What the probabilities are of, in order."""
        return self.engine.classes

    def predict(self, pictures: Any, *, faces: str = "detect") -> list[Any]:
        """Says what the faces of pictures show.

        Args:
          pictures: one picture, or a list or batch of them. A picture is a path, a PIL image or
            an array, uint8 RGB [height, width, 3]; a batch is an array [n, height, width, 3].
          faces: "detect" finds them; "crop" takes each picture for one tight crop of a face, as
            published sets of faces hold them, and looks at its centre square.

        Returns:
          A list of the picture's faces, the largest first and empty where there is none; for a
          list or a batch, a list of such lists in its order. A face is a dict:
            "box": [x, y, width, height], in pixels of the picture as it is shown (turned the
              way its EXIF says), from its upper left corner;
            "score": the detector's, 0 to 1;
            "emotion", or "interest" of a model of that task: the likeliest class;
            "probabilities": {class: 0 to 1}, in the order of `classes`, adding up to 1.

        Raises:
          InputError: something is no picture; the message names it. Nothing is answered then:
            `stream` goes on.
        """
        one = is_picture(pictures)
        answers = []
        for answer in self.stream([pictures] if one else pictures, faces=faces):
            if answer.reason:
                raise InputError(f"{name_of(answer.item, len(answers))}: {answer.reason}")
            answers.append(self.described(answer))
        return answers[0] if one else answers

    def stream(
        self,
        pictures: Iterable[Any],
        *,
        faces: str = "detect",
        decode: Callable[[Any], np.ndarray] | None = None,
        search_size: int = faces.ALL_FACES,
        keep_size: int = 0,
    ) -> Generator[Answer, None, None]:
        """`predict` for inputs of any length: an answer per picture, in order, as they come.

        Args:
          pictures: as in `predict`, also without end.
          faces: likewise.
          decode: turns one of them into uint8 BGR [height, width, 3], or raises InputError; None
            for pictures as in `predict`. Runs in threads.
          search_size: pixels of the longer side at which a picture is searched for faces.
          keep_size: the answers hold their pictures, of at most so many pixels at the longer side;
            0: they do not.

        Yields:
          `Answer`s; one that has a `reason` instead of faces could not be read.

        Raises:
          InputError: what `pictures` itself raised, after those that it gave.
        """
        find = self._finder(faces, decode or as_picture, search_size, keep_size)
        waiting: list[Answer] = []
        num_faces = 0
        try:
            for answer in ahead(pictures, find, depth=PICTURES_AHEAD):
                waiting.append(answer)
                num_faces += len(answer.found)
                if num_faces >= BATCH_SIZE or len(waiting) >= PICTURES_AHEAD:
                    yield from self._answered(waiting)
                    waiting, num_faces = [], 0
        except InputError:
            # No more pictures come; those that came are answered.
            yield from self._answered(waiting)
            raise
        yield from self._answered(waiting)

    def detector(self) -> faces.Detector:
        """What finds the faces.

        Raises:
          InputError: YuNet's file is not to be had, or is no such network.
        """
        return make_detector(self.detector_model)

    def described(self, answer: Answer) -> list[dict[str, Any]]:
        """The faces of an answer as `predict` returns them."""
        return [
            {
                "box": [float(value) for value in found.face.box],
                "score": float(found.face.score),
                self.engine.task: self.classes[int(np.argmax(row))],
                "probabilities": dict(zip(self.classes, map(float, row), strict=True)),
            }
            for found, row in zip(answer.found, answer.probabilities, strict=True)
        ]

    def looks(self, found: Sequence[Found], classes: Sequence[int]) -> list[np.ndarray]:
        """Where the network looked for what speaks for a class (`explain.grad_cam`).

        Args:
          found: n faces.
          classes: int [n], the class that each is asked about.

        Returns:
          n views of them, uint8 RGB, that glow there; none where the engine has no gradient.
        """
        if self.engine.explain is None or not found:
            return []
        crops = np.stack([one.crop for one in found])
        maps, _ = self.engine.explain(crops, np.asarray(classes))
        return [overlay(one.view, heat) for one, heat in zip(found, maps, strict=True)]

    def _answered(self, waiting: Sequence[Answer]) -> Iterator[Answer]:
        """The network's part, for some pictures' faces at once."""
        crops = [found.crop for answer in waiting for found in answer.found]
        no_rows = np.zeros((0, len(self.classes)), np.float32)
        rows = self.engine.probabilities(np.stack(crops)) if crops else no_rows
        start = 0
        for answer in waiting:
            end = start + len(answer.found)
            yield answer._replace(probabilities=rows[start:end])
            start = end

    def _finder(
        self, how: str, decode: Callable[[Any], np.ndarray], search_size: int, keep_size: int
    ) -> Callable[[Any], Answer]:
        """(a picture) -> an answer of its faces, which the network has still to see."""
        if how not in FACES:
            raise InputError(f"faces cannot be '{how}'{did_you_mean(how, FACES)}")
        detect = self.detector() if how == "detect" else None
        nothing = np.zeros((0, len(self.classes)), np.float32)

        def find(item: Any) -> Answer:
            try:
                picture = decode(item)
            except InputError as error:
                return Answer(item, [], nothing, str(error))
            size, margin = self.engine.image_size, self.engine.about.get("margin", 0.0)
            found = find_faces(picture, detect, search_size, size, margin)
            kept, scale = None, 1.0
            if keep_size:
                scale = min(1.0, keep_size / max(picture.shape[:2]))
                sides = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
                kept = cv2.resize(picture, sides, interpolation=cv2.INTER_AREA)
            return Answer(item, found, nothing, "", kept, scale)

        return find


def find_faces(
    picture: np.ndarray,
    detect: faces.Detector | None,
    search_size: int,
    crop_size: int,
    margin: float,
) -> list[Found]:
    """The faces of a picture, cut out as `build` cuts them for the records.

    Args:
      picture: uint8 BGR [height, width, 3].
      detect: None where the picture is a face.
      search_size: pixels of the longer side at which it is searched.
      crop_size: pixels a side of the network's input.
      margin: by which the tight framing is widened, as for the records that it learned from.

    Returns:
      The faces, the largest first.
    """
    if detect is None:
        crop, box = images.square(picture)
        return [_cut(faces.Face(box, 1.0, None), crop, crop_size)]
    found = sorted(detect(picture, search_size), key=lambda face: -face.box[2] * face.box[3])
    # What the detector places wholly outside is nothing that can be looked at.
    height, width = picture.shape[:2]
    found = [
        face
        for face in found
        if face.box[0] < width
        and face.box[1] < height
        and face.box[0] + face.box[2] > 0
        and face.box[1] + face.box[3] > 0
    ]
    return [_cut(face, faces.align(picture, face, margin=margin), crop_size) for face in found]


def _cut(face: faces.Face, crop: np.ndarray, size: int) -> Found:
    view = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
    return Found(face, images.resized(view, size), view)


def is_picture(value: Any) -> bool:
    """Whether something is one picture, rather than several of them."""
    if isinstance(value, np.ndarray):
        return value.ndim != 4
    return isinstance(value, str | os.PathLike) or not isinstance(value, Iterable)


def as_picture(value: Any) -> np.ndarray:
    """Whatever stands for a picture as uint8 BGR [height, width, 3].

    Raises:
      InputError: it does not; in a few words.
    """
    if isinstance(value, str | os.PathLike):
        return cv2.cvtColor(images.read(Path(value)), cv2.COLOR_RGB2BGR)
    if hasattr(value, "convert") and hasattr(value, "getexif"):
        # A PIL image, which only somebody who has PIL can have.
        from PIL import ImageOps

        value = np.asarray(ImageOps.exif_transpose(value).convert("RGB"))
    if not isinstance(value, np.ndarray):
        raise InputError(f"{type(value).__name__} is no path, PIL image or array")
    if value.dtype != np.uint8:
        raise InputError(f"an array of {value.dtype}, where uint8 from 0 to 255 is needed")
    if value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise InputError(f"an array {list(value.shape)}, where RGB [height, width, 3] is needed")
    return cv2.cvtColor(np.ascontiguousarray(value), cv2.COLOR_RGB2BGR)


def name_of(item: Any, number: int) -> str:
    """What a message calls a picture."""
    return f"'{item}'" if isinstance(item, str | os.PathLike) else f"picture {number}"


def ahead(items: Iterable[T], work: Callable[[T], R], *, depth: int) -> Generator[R, None, None]:
    """What a function makes of each item, in order, worked out by threads before it is asked for.

    Args:
      items: drawn in a thread of their own, one after the other.
      work: called from as many threads as there are cores.
      depth: so many items at most are drawn and not yet yielded.

    Raises:
      Whatever `items` or `work` raises, in its place in the order.
    """
    ready: queue.Queue[concurrent.futures.Future[R] | None] = queue.Queue()
    room, stopped = threading.Semaphore(depth), threading.Event()

    def draw() -> None:
        try:
            for item in items:
                room.acquire()
                if stopped.is_set():
                    return
                ready.put(_threads().submit(work, item))
            ready.put(None)
        except BaseException as error:  # whatever it is, it is raised where it is waited for
            failed: concurrent.futures.Future[R] = concurrent.futures.Future()
            failed.set_exception(error)
            ready.put(failed)

    drawing = threading.Thread(target=draw, daemon=True)
    drawing.start()
    try:
        while (future := ready.get()) is not None:
            yield future.result()
            room.release()
    finally:
        stopped.set()
        room.release()
        drawing.join()
        left = [future for future in ready.queue if future is not None and not future.cancel()]
        concurrent.futures.wait(left)


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """Kept from one call to the next, for each of them holds a detector."""
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "fer_jax")


def load(path: str | os.PathLike[str], engine: str = "", *, detector_model: str = "") -> Recognizer:
    """Opens a trained model, to be used on whatever there is.

    Args:
      path: a run's workdir, one of its checkpoints (WORKDIR/checkpoints/STEP), the folder that
        `export` wrote, or a file in it.
      engine: "jax", "onnxruntime" or "openvino"; "" for the one that the kind of file is for.
      detector_model: the file of the YuNet face detector; "" for the one in ~/.cache/fer_jax,
        which is fetched once, when a face is to be found for the first time.

    Raises:
      InputError: nothing that was trained is there, or it cannot be read.
    """
    return Recognizer(open_engine(Path(path), engine), detector_model)
