"""The verb `page`: a web page on which anybody at this machine can try a trained model.

A photo, a short clip or the camera's pictures go to this server and nowhere else; it looks at
them, answers, and keeps nothing. It listens on this machine alone unless --host says otherwise,
answers only to requests that its own page makes, and takes a bounded amount of everything.
"""

import argparse
import base64
import contextlib
import errno
import http.server
import ipaddress
import itertools
import json
import secrets
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Generator, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from fer_jax import compilations
from fer_jax.config import OneLineParser
from fer_jax.errors import InputError
from fer_jax.evaluation import results
from fer_jax.inference.load import ENGINES
from fer_jax.inference.recognizer import FaceCrop, Recognizer, load
from fer_jax.media import faces, images
from fer_jax.media.video import Frame, Video
from fer_jax.predict.drawing import colours
from fer_jax.predict.timeline import Timeline

TEMPLATES = Path(__file__).parent
LOOPBACK = "127.0.0.1"
FACE_SIZE = 144  # pixels a side, of the faces on the page
MAX_EXPLAINED = 24  # faces of a picture, the largest ones


class Limits(NamedTuple):
    """How much the server takes.

    Attributes:
      picture_bytes: of an upload.
      clip_bytes: likewise.
      pixels: of a picture, and of a clip's frame.
      clip_s: so much of a clip is looked at.
      frames_per_s: so often.
      computing_s: for one clip.
      waiting_s: for a part of an upload to arrive, for a whole one four times as much, and for
        other requests to be done with.
      requests: at the same time; others are turned away.
      computing: at the same time; others wait.
    """

    picture_bytes: int = 32 * 2**20
    clip_bytes: int = 128 * 2**20
    pixels: int = 40_000_000
    clip_s: float = 60.0
    frames_per_s: float = 5.0
    computing_s: float = 120.0
    waiting_s: float = 20.0
    requests: int = 16
    computing: int = 2


LIMITS = Limits()


class Refusal(Exception):
    """A request that is not answered; the message is for the person, in words."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(http.server.ThreadingHTTPServer):
    """The page's server; `serve_forever` runs it, `shutdown` ends it."""

    daemon_threads = True

    def __init__(self, recognizer: Recognizer, host: str, port: int, limits: Limits = LIMITS):
        """Starts listening.

        Args:
          recognizer: answers.
          host: the address to listen on.
          port: likewise; 0 takes one that is free.
          limits: what is taken.

        Raises:
          InputError: the port is in use or not allowed, or the address is not this machine's.
        """
        self.recognizer, self.limits = recognizer, limits
        self.page = _page(recognizer, limits)
        self.requests = threading.BoundedSemaphore(limits.requests)
        self.computing = threading.BoundedSemaphore(limits.computing)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise InputError(_why_not(error, host, port)) from error
        names = {socket.gethostname(), "localhost", host}
        self.names = {name.lower() for name in names}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A defect of ours keeps its traceback; that somebody left is none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this server.

        A page elsewhere can have its own name resolve to this machine's address (DNS rebinding),
        and its requests then bear that name; they cannot bear an address.
        """
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return name in self.names


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride] (the one that made it)
    server_version, sys_version = "fer_jax", ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.waiting_s)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is kept, not even who asked."""

    def do_GET(self) -> None:
        self._answered(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answered(self._post)

    def _answered(self, answer: Any) -> None:
        if not self.server.requests.acquire(blocking=False):
            self._refuse(Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests; try again"))
            return
        try:
            self._check_origin()
            answer()
        except Refusal as refusal:
            self._refuse(refusal)
        except InputError as error:
            self._refuse(Refusal(HTTPStatus.BAD_REQUEST, str(error)))
        finally:
            self.server.requests.release()

    def _check_origin(self) -> None:
        host = self.headers.get("Host", "")
        if not self.server.is_ours(host):
            raise Refusal(HTTPStatus.FORBIDDEN, "this address is not the page's own")
        origin = self.headers.get("Origin")
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            raise Refusal(HTTPStatus.FORBIDDEN, "only the page itself may ask")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Refusal(HTTPStatus.FORBIDDEN, "only the page itself may ask")

    def _get(self) -> None:
        if self.path.partition("?")[0] != "/":
            raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")
        nonce = secrets.token_urlsafe(16)
        body = self.server.page.replace("NONCE", nonce).encode()
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src data: blob:; media-src blob: mediastream:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._begin(HTTPStatus.OK, "text/html; charset=utf-8", len(body), policy)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _post(self) -> None:
        where = self.path.partition("?")
        if where[0] == "/picture":
            self._picture(explain=where[2] != "live")
        elif where[0] == "/clip":
            self._clip()
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _picture(self, *, explain: bool) -> None:
        data = b"".join(self._upload(self.server.limits.picture_bytes))
        with self._turn():
            picture = images.decode(data)
            height, width = picture.shape[:2]
            if height * width > self.server.limits.pixels:
                raise InputError(f"{width} x {height} pixels are too many")
            recognizer = self.server.recognizer
            (answer,) = recognizer.stream([picture])
            shown = recognizer.to_dicts(answer)
            if explain:
                looks = _looks(recognizer, answer.found, answer.probabilities.argmax(axis=1))
                shown = [face | look for face, look in zip(shown, looks, strict=True)]
        self._json({"width": width, "height": height, "faces": shown})

    def _clip(self) -> None:
        limits = self.server.limits
        # Nothing is left behind, however this ends: an open file needs no name.
        with tempfile.NamedTemporaryFile(prefix="fer_jax_", suffix=".clip") as file:
            for part in self._upload(limits.clip_bytes):
                file.write(part)
            file.flush()
            video = Video(Path(file.name))
        with video, self._turn():
            if video.width * video.height > limits.pixels:
                raise InputError(f"frames of {video.width} x {video.height} pixels are too large")
            # Closed before the clip is, from which it still draws.
            with contextlib.closing(clip_lines(self.server.recognizer, video, limits)) as lines:
                # The first is waited for: until then a clip can still be refused.
                first = next(lines)
                self._begin(HTTPStatus.OK, "application/x-ndjson", None)
                for line in itertools.chain([first], lines):
                    self.wfile.write(json.dumps(line).encode() + b"\n")

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Waits until fewer others are computing."""
        if not self.server.computing.acquire(timeout=self.server.limits.waiting_s):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "others are being answered; try again")
        try:
            yield
        finally:
            self.server.computing.release()

    def _upload(self, limit: int) -> Iterator[bytes]:
        """The body, part by part."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "an upload must say how long it is")
        left, deadline = int(length), time.monotonic() + 4 * self.server.limits.waiting_s
        too_large = left > limit
        # Of what is too large some is let in and dropped: a browser that is cut off while it
        # sends does not read why.
        left = min(left, 4 * limit)
        while left:
            if time.monotonic() > deadline:
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the upload took too long")
            part = self.rfile.read1(min(left, 2**18))
            if not part:
                raise ConnectionError("the upload broke off")
            left -= len(part)
            if not too_large:
                yield part
        if too_large:
            message = f"the file is larger than {limit // 2**20} MiB"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)

    def _refuse(self, refusal: Refusal) -> None:
        self._json({"error": str(refusal)}, refusal.status)

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(value).encode()
        self._begin(status, "application/json", len(body))
        self.wfile.write(body)

    def _begin(
        self, status: HTTPStatus, kind: str, length: int | None, policy: str = "default-src 'none'"
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        if length is not None:
            headers["Content-Length"] = str(length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def clip_lines(
    recognizer: Recognizer, video: Video, limits: Limits
) -> Generator[dict[str, Any], None, None]:
    """What the page is told of a clip, while it is looked at.

    Args:
      recognizer: answers.
      video: the clip.
      limits: how much of it is looked at, and how long.

    Yields:
      For each frame {"time_s", "width", "height", "faces": as `Recognizer.to_dicts` and
      "face", the number that a person keeps}; at the end {"people": [{"face", "first_s",
      "last_s", "frames", likeliest class, "probabilities": their means, "crop", "look"}],
      "timeline": SVG, "remark": what is missing}.

    Raises:
      InputError: not one frame could be decoded.
    """
    deadline = time.monotonic() + limits.computing_s
    timeline = Timeline(recognizer.network.task, start_s=0.0, smooth_s=0.0)
    missing, remark = 0, ""

    def frames() -> Iterator[Frame]:
        yield from video.frames(seconds=1 / limits.frames_per_s, end_s=limits.clip_s)

    answers = recognizer.stream(frames(), decode=_frame_image, search_size=faces.LARGE_FACES)
    for answer in answers:
        frame: Frame = answer.item
        if answer.reason:
            missing += 1
            continue
        found = [one.face for one in answer.found]
        tracks = timeline.add(frame.timestamp_s, found, answer.probabilities, answer.found)
        height, width = _frame_image(frame).shape[:2]
        described = recognizer.to_dicts(answer)
        yield {
            "time_s": frame.timestamp_s,
            "width": width,
            "height": height,
            "faces": [
                {"face": track.number} | face for track, face in zip(tracks, described, strict=True)
            ],
        }
        if time.monotonic() > deadline:
            remark = f"Looked at the first {frame.timestamp_s:.1f} seconds only: time was up."
            break
    if not timeline.frames:
        raise InputError("no frame of this clip could be decoded")
    if missing and not remark:
        remark = (
            f"The file ends early, {timeline.end_s:.1f} seconds in; what was there is answered."
        )
    elif not remark and video.claimed / video.fps > limits.clip_s + 1:
        remark = f"Looked at the first {limits.clip_s:.0f} seconds of this clip only."
    rows = {row["face"]: row for row in timeline.finish()}
    people: list[dict[str, Any]] = []
    clearest = [track.clearest[1] for track in timeline.plotted if track.clearest]
    likeliest = [int(np.argmax(track.total)) for track in timeline.plotted]
    looks = _looks(recognizer, clearest, likeliest)
    for track, look in zip(timeline.plotted, looks, strict=True):
        row = rows[track.number]
        kept = ("face", "first_s", "last_s", "frames", recognizer.network.task)
        means = {name: row[f"mean_{name}"] for name in recognizer.classes}
        people.append({key: row[key] for key in kept} | {"probabilities": means} | look)
    yield {
        "people": people,
        "others": len(rows) - len(people),
        "frames": timeline.frames,
        "timeline": str(timeline.plot("Probabilities over time")),
        "remark": remark,
    }


def _frame_image(frame: Frame) -> np.ndarray:
    if frame.image is None:
        raise InputError("the file ends before this frame")
    return frame.image


def _looks(
    recognizer: Recognizer, found: Sequence[FaceCrop], likeliest: Sequence[int]
) -> list[dict[str, str]]:
    """The faces as they were cut out, and of the first ones where the network looked."""
    shown = [{"crop": _data_uri(one.view)} for one in found]
    looks = recognizer.heatmaps(found[:MAX_EXPLAINED], likeliest[:MAX_EXPLAINED])
    for one, look in zip(shown, looks):  # noqa: B905 (there may be fewer looks)
        one["look"] = _data_uri(look)
    return shown


def _data_uri(face: np.ndarray) -> str:
    data = images.encode_jpeg(images.resized(face, FACE_SIZE))
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _page(recognizer: Recognizer, limits: Limits) -> str:
    """The page, with NONCE where each request's own goes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    network = recognizer.network
    known = {
        "task": network.task,
        "classes": list(network.classes),
        "colours": colours(network.task),
        "limits": limits._asdict(),
    }
    return environment.get_template("page.html").render(
        network=network,
        known=known,
        limits=limits,
        colours=dict(zip(network.classes, colours(network.task), strict=True)),
        sources=_sources(network.about["config"]),
        scored=_scored(network.folder),
        number=results.number,
        interval=results.interval,
        suffixes=sorted(images.IMAGE_SUFFIXES),
    )


def _sources(config: Any) -> list[str]:
    return [one if isinstance(one, str) else one["name"] for one in config["sources"]]


def _scored(folder: Path) -> dict[str, Any] | None:
    """A run's results.json; None where there is none that can be read."""
    try:
        scored = json.loads((folder / "results.json").read_text())
        return scored if scored["sets"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} is not for everybody's use; choose one above 1023 with --port"
    return f"cannot listen on --host={host} ({error.strerror or error})"


def main(argv: list[str]) -> None:
    """The verb `page`."""
    parser = OneLineParser(
        prog="fer-jax page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="a run's workdir, a checkpoint, an export"
    )
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen on [{LOOPBACK}]")
    parser.add_argument("--port", type=int, default=8000, help="[8000]; 0: one that is free")
    parser.add_argument("--engine", default="", choices=ENGINES, help="[by the model's file]")
    parser.add_argument("--detector_model", default="", help="YuNet's file [fetched once]")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port < 2**16:
        raise InputError(f"--port must be in 0 to 65535, not {arguments.port}")
    compilations.enable_compilation_cache()
    recognizer = load(arguments.model, arguments.engine, detector_model=arguments.detector_model)
    with Server(recognizer, arguments.host, arguments.port) as server:
        # The first visitor does not wait for compilations, or for the detector.
        warm_up(recognizer)
        address = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"http://{address}:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        if not _is_loopback(arguments.host):
            print(
                "Everybody who can reach this machine can use it, unencrypted; their browsers "
                "will not give it a camera.",
                flush=True,
            )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def warm_up(recognizer: Recognizer) -> None:
    """Compiles what a picture of one face needs, and finds the detector's file or says how."""
    size = recognizer.network.image_size
    blank = np.zeros((size, size, 3), np.uint8)
    recognizer.predict(blank)
    (answer,) = recognizer.stream([blank], faces="crop")
    _looks(recognizer, answer.found, [0])
