"""Serve a web page for trying a trained model.

A photo, a short clip or the camera's frames are sent to this server only. It predicts,
stores nothing, and listens on this machine only unless --host is given.
"""

import contextlib
import errno
import ipaddress
import os
import secrets
import socket
import time
import urllib.parse
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from fer_jax import compilations, results
from fer_jax.config import OneLineParser
from fer_jax.errors import InputError
from fer_jax.figures import class_colours
from fer_jax.inference.network import ENGINES
from fer_jax.inference.recognizer import FaceCrop, Recognizer, load
from fer_jax.media import faces, images
from fer_jax.media.video import Video, frame_image
from fer_jax.predict.timeline import Timeline

TEMPLATES = Path(__file__).parent
LOOPBACK = "127.0.0.1"
TOKEN = "FER_JAX_TOKEN"  # the variable of the environment
FACE_SIZE = 144  # pixels a side, of the faces on the page
MAX_HEATMAPS = 24  # per picture, of the largest faces


class Limits(NamedTuple):
    """What the server accepts."""

    picture_bytes: int = 32 * 2**20  # of an upload
    clip_bytes: int = 128 * 2**20
    pixels: int = 40_000_000  # of a picture, and of a clip's frame
    clip_s: float = 60.0  # the part of a clip that is processed, from its start
    frames_per_s: float = 5.0  # of a clip, that are processed
    computing_s: float = 120.0  # for one clip
    # For a request, for each part of an upload (four times as long for all of it), and for other
    # requests to end.
    waiting_s: int = 20
    requests: int = 32  # at the same time, half of them from one address; more are refused
    computing: int = 2  # at the same time; others wait


LIMITS = Limits()


def picture_result(
    recognizer: Recognizer, data: bytes, *, max_pixels: int, explain: bool
) -> dict[str, Any]:
    """Returns {"width", "height", "faces"} of an uploaded picture, faces as `Recognizer.predict`.

    With `explain` each face has its picture, too, and the largest ones a heatmap (data URIs "crop"
    and "look"). Raises InputError if the bytes are not an image, or it is too large.
    """
    picture = images.decode(data)
    height, width = picture.shape[:2]
    if height * width > max_pixels:
        raise InputError(f"{width} x {height} pixels are too many")
    (prediction,) = recognizer.stream([picture])
    found = recognizer.to_dicts(prediction)
    if explain:
        likeliest = prediction.probabilities.argmax(axis=1)
        shown = _face_images(recognizer, prediction.found, likeliest)
        found = [face | pictures for face, pictures in zip(found, shown, strict=True)]
    return {"width": width, "height": height, "faces": found}


def clip_lines(
    recognizer: Recognizer, video: Video, limits: Limits
) -> Generator[dict[str, Any], None, None]:
    """Predicts a clip frame by frame; yields what the page shows of it, as JSON objects.

    For each frame {"time_s", "width", "height", "faces": as `Recognizer.to_dicts` and "face", the
    number of the tracked face}; last {"people": [{"face", "first_s", "last_s", "frames", likeliest
    class, "probabilities": their means, "crop", "look"}], "others": number of faces that are not
    listed, "frames", "timeline": SVG, "remark": what was not processed}. Raises InputError if
    frames are too large, or none could be decoded.
    """
    if video.width * video.height > limits.pixels:
        raise InputError(f"frames of {video.width} x {video.height} pixels are too large")
    deadline = time.monotonic() + limits.computing_s
    timeline = Timeline(recognizer.network.task, start_s=0.0, smooth_s=0.0)
    missing, remark = 0, ""
    frames = video.frames(seconds=1 / limits.frames_per_s, end_s=limits.clip_s)
    predictions = recognizer.stream(frames, decode=frame_image, search_size=faces.LARGE_FACES)
    with contextlib.closing(predictions):
        for prediction in predictions:
            frame = prediction.item
            if prediction.reason:
                missing += 1
                continue
            image = frame_image(frame)
            found = faces.add_looks(image, [one.face for one in prediction.found])
            tracks = timeline.add(
                frame.timestamp_s, found, prediction.probabilities, prediction.found
            )
            yield {
                "time_s": frame.timestamp_s,
                "width": image.shape[1],
                "height": image.shape[0],
                "faces": [
                    {"face": track.number} | face
                    for track, face in zip(tracks, recognizer.to_dicts(prediction), strict=True)
                ],
            }
            if time.monotonic() > deadline:
                remark = f"Only the first {frame.timestamp_s:.1f} seconds were processed in time."
                break
    if not timeline.frames:
        raise InputError("no frame of this clip could be decoded")
    if missing and not remark:
        remark = f"The file ends early, after {timeline.end_s:.1f} seconds."
    elif not remark and video.length_s > limits.clip_s + 1:
        remark = f"Only the first {limits.clip_s:.0f} seconds of this clip were processed."
    yield _clip_summary(recognizer, timeline) | {"remark": remark}


def _clip_summary(recognizer: Recognizer, timeline: Timeline) -> dict[str, Any]:
    rows = {row["face"]: row for row in timeline.finish()}
    clearest = [track.clearest[1] for track in timeline.plotted if track.clearest]
    likeliest = [int(np.argmax(track.total)) for track in timeline.plotted]
    shown = _face_images(recognizer, clearest, likeliest)
    people = []
    for track, pictures in zip(timeline.plotted, shown, strict=True):
        row = rows[track.number]
        kept = ("face", "first_s", "last_s", "frames", recognizer.network.task)
        means = {name: row[f"mean_{name}"] for name in recognizer.classes}
        people.append({key: row[key] for key in kept} | {"probabilities": means} | pictures)
    return {
        "people": people,
        "others": len(rows) - len(people),
        "frames": timeline.frames,
        "timeline": str(timeline.plot("Probabilities over time")),
    }


def _face_images(
    recognizer: Recognizer, found: Sequence[FaceCrop], likeliest: Sequence[int] | np.ndarray
) -> list[dict[str, str]]:
    """Returns {"crop"} of each face and "look", its heatmap, of the first ones, as data URIs."""
    shown = [{"crop": _data_uri(one.view)} for one in found]
    heatmaps = recognizer.heatmaps(found[:MAX_HEATMAPS], likeliest[:MAX_HEATMAPS])
    for one, heatmap in zip(shown, heatmaps):  # noqa: B905 (there may be fewer heatmaps)
        one["look"] = _data_uri(heatmap)
    return shown


def _data_uri(face: np.ndarray) -> str:
    return images.data_uri(images.encode_jpeg(images.resized(face, FACE_SIZE)))


def render(recognizer: Recognizer, limits: Limits) -> str:
    """Returns the page's HTML, with NONCE where the nonce of each response belongs."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    network = recognizer.network
    scored = None
    with contextlib.suppress(InputError):  # of another version; the page works without scores
        scored = results.read(network.folder)
    if scored and (scored["checkpoint"]["step"] != network.step or not scored["sets"]):
        scored = None
    known = {
        "task": network.task,
        "classes": list(network.classes),
        "colours": class_colours(network.task),
        "limits": limits._asdict(),
    }
    return environment.get_template("page.html").render(
        network=network,
        known=known,
        limits=limits,
        colours=dict(zip(network.classes, class_colours(network.task), strict=True)),
        sources=[one if isinstance(one, str) else one["name"] for one in network.config.sources],
        scored=scored,
        number=results.number,
        interval=results.interval,
        suffixes=sorted(images.IMAGE_SUFFIXES),
    )


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; port 0 takes a free one. InputError if that is not possible."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        message = {
            errno.EADDRINUSE: f"port {port} is in use; choose another with --port",
            errno.EACCES: f"port {port} needs root; choose one above 1023 with --port",
        }.get(error.errno or 0, f"cannot listen on --host={host} ({error.strerror or error})")
        raise InputError(message) from error


def warm_up(recognizer: Recognizer) -> None:
    """Compiles what a picture with one face needs; InputError without a face detector."""
    size = recognizer.network.image_size
    blank = np.zeros((size, size, 3), np.uint8)
    recognizer.predict(blank)
    (prediction,) = recognizer.stream([blank], faces="crop")
    _face_images(recognizer, prediction.found, [0])


def main(argv: list[str]) -> None:
    """The verb `page`."""
    parser = OneLineParser("fer-jax page", __doc__)
    parser.add_argument(
        "--model", type=Path, required=True, help="a run's workdir, a checkpoint, an export"
    )
    parser.add_argument("--host", default=LOOPBACK, help=f"IP address or name [{LOOPBACK}]")
    parser.add_argument("--port", type=int, default=8000, help="[8000]; 0: one that is free")
    parser.add_argument("--engine", default="", choices=ENGINES, help="[by the model's file]")
    parser.add_argument("--detector_model", default="", help="YuNet's file [downloaded once]")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port < 2**16:
        raise InputError(f"--port must be in 0 to 65535, got {arguments.port}")
    try:
        from fer_jax.predict.server import make_server  # the extra `page`
    except ImportError as error:
        raise InputError(
            f"the page needs {error.name}, which is not installed; pip install -e '.[page]'"
        ) from error
    compilations.enable_compilation_cache()
    recognizer = load(arguments.model, arguments.engine, detector_model=arguments.detector_model)
    with listen(arguments.host, arguments.port) as listening:
        # Before the first request, which would wait for it.
        warm_up(recognizer)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        is_local = _is_loopback(arguments.host)
        token = os.environ.get(TOKEN, "" if is_local else secrets.token_urlsafe(16))
        query = f"?token={urllib.parse.quote(token)}" if token else ""
        print(f"http://{host}:{listening.getsockname()[1]}/{query}  (Ctrl-C ends it)", flush=True)
        if not is_local:
            print(
                "Everybody who has this URL and can reach this machine can use the page, "
                "unencrypted; their browsers will not give it a camera.",
                flush=True,
            )
        try:
            make_server(recognizer, host=arguments.host, token=token).run(sockets=[listening])
        except KeyboardInterrupt:
            print("ended")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
