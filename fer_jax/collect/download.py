"""One URL to one video file with yt-dlp, in a process of its own.

A process, because only a process can be ended: a site that sends a byte a minute, a page on
which a pattern never finishes, or a file that a decoder does not survive cost one link and not
the run. What the process may do is narrowed before the first request leaves it.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import ipaddress
import json
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp
from yt_dlp.globals import plugin_dirs
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import GeoRestrictedError, UnsupportedError, YoutubeDLError

from fer_jax.errors import InputError

# reason: what a person can do about it. The first two are tried again within a run.
REASONS = {
    "network": "run the same command again",
    "rate_limited": "wait, then run the same command again, with fewer --workers",
    "blocked": "wait, or give --cookies; then run the same command again",
    "live": "run the same command again when it is over",
    "other": "see its detail in manifest.csv; a newer yt-dlp may know the site better",
    "removed": "take it off the list",
    "private": "take it off the list, or give --cookies and --retry_failed",
    "login": "give --cookies and --retry_failed",
    "age": "give --cookies and --retry_failed",
    "geo": "use --retry_failed from another country",
    "drm": "take it off the list",
    "several_videos": "list the address of each video instead",
    "no_format": "see its detail; --max_height and --retry_failed may help",
    "too_large": "use --max_bytes and --retry_failed",
    "not_a_video": "correct the address",
    "unsafe": "correct the address",
}
TRANSIENT = ("network", "rate_limited")
# These end the same way until somebody changes something, so a run leaves them alone.
PERMANENT = tuple(REASONS)[tuple(REASONS).index("removed") :]

STATUSES = {
    **{401: "login", 403: "blocked", 404: "removed", 410: "removed", 429: "rate_limited"},
    **{407: "network", 408: "network", 451: "geo"},
}
# How sites say it, as yt-dlp passes it on; the first that is found counts.
PHRASES = (
    ("no_format", r"ffmpeg|requested format|no (video )?formats"),
    ("unsafe", r"no connection adapters|unsupported url scheme|file:// urls"),
    ("network", r"got error:|timed? ?out|connection (reset|refused|aborted)|bytes read"),
    ("blocked", r"not a (ro)?bot|captcha|unusual traffic|rate-limited|try again later"),
    ("age", r"confirm your age|age.?restrict|inappropriate for some|age.?verif"),
    ("private", r"private|granted access"),
    ("geo", r"(your|this|the) (country|location|region)|geo.?(restrict|block)"),
    ("drm", r"\bdrm\b"),
    ("live", r"live (event|stream)|premiere|(is|currently) live|will begin"),
    ("login", r"members?.only|join this|log.?in|sign.?in|registered|password|pay|purchase|subscri"),
    ("removed", r"removed|deleted|terminated|no longer|(does not|doesn.t) exist|not? .*found"),
    ("removed", r"unavailable|not available|isn.t available"),
)

PROTOCOLS = "[protocol~='^(https?|m3u8_native|http_dash_segments)$']"
CODECS = "[vcodec~='^(avc1|h264|vp0?9)']"  # what every OpenCV decodes
SCRIPT_RUNTIMES = ("deno",)  # yt-dlp runs YouTube's player code in it, without any permission
MAX_PAGE_BYTES = 32 * 2**20
HEAD_BYTES = 512
RETRIES = 3
REPORT_EVERY_S = 0.5

# (offset, bytes there, ending) of the containers that sites serve.
CONTAINERS = (
    *((4, tag, ".mp4") for tag in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (8, b"AVI ", ".avi"),
    (0, b"FLV\x01", ".flv"),
    (0, b"OggS", ".ogv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ".wmv"),
    *((0, tag, ".mpg") for tag in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")),
)
STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")  # pictures in a video's container


class Failure(Exception):
    """A link that gave no video: one of `REASONS` and what the site said."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = clean(detail)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one download may take.

    Attributes:
      max_height: lines of the picture; formats that are known to have more are not chosen.
      max_bytes: of the file.
      rate_limit: bytes per second, None for no limit.
      cookies: the text of a cookies file, or empty.
      socket_timeout_s: a server that is silent for longer has stalled.
      deadline_s: of all attempts at one link together.
      retry_wait_s: before the second attempt; doubles with each.
    """

    max_height: int = 720
    max_bytes: int = 2**30
    rate_limit: int | None = None
    cookies: str = ""
    socket_timeout_s: float = 20
    deadline_s: float = 1800
    retry_wait_s: float = 2


def run(channel: connection.Connection, url: str, stem: Path, limits: Limits) -> None:
    """Downloads one link and says how it went: the body of the process.

    Args:
      channel: receives JSON: {"downloaded": bytes so far} now and then, and once at the end
        what `fetch` returned, or {"reason", "detail"}.
      url: as in `fetch`.
      stem: as in `fetch`.
      limits: as in `fetch`.
    """
    # Ctrl-C is the parent's; when the parent is gone, however it went, so is this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A crash is one link's failure, not a file in the user's folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Path(os.devnull).open("w") as nowhere:
        # Decoders write to the descriptors themselves.
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    reported = time.monotonic()

    def report(downloaded: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            channel.send_bytes(json.dumps({"downloaded": downloaded}).encode())

    refused = narrow(url)
    try:
        result = fetch(url, stem, limits, report)
    except Exception as error:
        failure = refused[0] if refused else classify(error)
        result = {"reason": failure.reason, "detail": failure.detail}
    channel.send_bytes(json.dumps(result).encode())


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def narrow(url: str) -> list[Failure]:
    """From here on this process reaches no private address and starts no program.

    A public site could otherwise send it to a router, a cloud's metadata or a neighbour. The
    private addresses of the URL's own host and of the proxies in use are what a person chose.

    Returns:
      A list that receives the addresses refused from now on. This cannot be undone.
    """
    chosen = {urlsplit(url).hostname}
    chosen |= {urlsplit(proxy).hostname for proxy in urllib.request.getproxies().values()}
    allowed: set[str] = set()
    for host in chosen - {None}:
        with contextlib.suppress(OSError, UnicodeError):
            allowed |= {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    refused: list[Failure] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            host = str(arguments[1][0])
            if host not in allowed and not _is_public(host):
                # No OSError: yt-dlp would take that for a bad connection and try again.
                refused.append(Failure("unsafe", f"the site leads to the private address {host}"))
                raise refused[-1]
        elif event in ("subprocess.Popen", "os.exec", "os.system", "os.posix_spawn"):
            program = os.path.basename(os.fsdecode(arguments[0] or ""))
            if program not in SCRIPT_RUNTIMES:
                raise PermissionError(f"{program} may not be started")  # as if it were not there

    sys.addaudithook(watch)
    return refused


def _is_public(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_global


def fetch(url: str, stem: Path, limits: Limits, report: Callable[[int], None]) -> dict[str, Any]:
    """Downloads the video of a URL, or goes on with an earlier attempt.

    Args:
      url: checked by `links.check_url`.
      stem: path of the file without an ending; everything written begins with it.
      limits: of size and time.
      report: is called with the bytes downloaded so far.

    Returns:
      What `inspect` finds, and "path", "bytes", "sha256", and "site_id", the site's name and
      its own id of the video ("youtube:...", or empty where ids mean nothing).

    Raises:
      Failure: no video, with the reason.
      yt_dlp.utils.YoutubeDLError, OSError: for `classify`.
    """

    def watch(status: dict[str, Any]) -> None:
        downloaded = status.get("downloaded_bytes") or 0
        if downloaded > limits.max_bytes:
            raise Failure("too_large", f"over {limits.max_bytes} bytes")
        report(downloaded)

    plugin_dirs.value = []
    settings: Any = options(limits) | {"progress_hooks": [watch]}  # a private type of its stubs
    downloader: Any = _Downloader(settings)
    info = downloader.extract_info(url, download=False)
    if info.get("entries") is not None:
        raise Failure("several_videos", "a page or list of several videos")
    if info.get("is_live"):
        raise Failure("live", "a live stream")
    size = info.get("filesize") or info.get("filesize_approx") or 0
    if size > limits.max_bytes:
        raise Failure("too_large", f"{size} bytes")

    path = _unfinished(stem, info)
    validator = path.with_suffix(".validator")
    if info["protocol"] in ("http", "https"):
        # Continue a file only where the server still has the same one.
        if validator.is_file() and Path(f"{path}.part").is_file():
            info["http_headers"] = {**info["http_headers"], "If-Range": validator.read_text()}
        downloader.validator = validator
    done, _ = downloader.dl(str(path), info)
    if not done:
        said = downloader.params["logger"].said
        reason = "too_large" if "max-filesize" in said else "other"
        raise Failure(reason, said or "yt-dlp gave up without a reason")
    found = inspect(path)
    site_id = "" if info["extractor"] == "generic" else f"{info['extractor']}:{info['id']}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    return {"path": str(path), "bytes": size, "sha256": digest, "site_id": site_id, **found}


def _unfinished(stem: Path, info: dict[str, Any]) -> Path:
    """Where a format is downloaded to: a part of one must not be continued with another."""
    chosen = [info.get(key) for key in ("format_id", "ext", "protocol", "height", "filesize")]
    return Path(f"{stem}_{hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]}")


class _Downloader(yt_dlp.YoutubeDL):
    """YoutubeDL that speaks http and https only and never reads an endless page."""

    validator: Path | None = None  # receives what identifies the version of a file

    def urlopen(self, req: Any) -> Any:
        url = req if isinstance(req, str) else req.url
        if urlsplit(url).scheme.lower() not in ("http", "https"):
            raise Failure("unsafe", f"the site leads to a {urlsplit(url).scheme}: address")
        response = super().urlopen(req)
        read = response.read

        def read_bounded(amt: int | None = None) -> bytes:
            if amt is not None:
                return read(amt)
            data = read(MAX_PAGE_BYTES + 1)
            if len(data) > MAX_PAGE_BYTES:
                raise Failure("not_a_video", "a page without an end")
            return data

        response.read = read_bounded
        if self.validator is not None:
            etag = response.headers.get("ETag", "")
            strong = etag if etag.startswith('"') else response.headers.get("Last-Modified")
            if strong:
                self.validator.write_text(strong)
            else:
                self.validator.unlink(missing_ok=True)
        return response


class _Log:
    """Keeps the last thing that yt-dlp said instead of printing it."""

    said = ""

    def debug(self, message: str) -> None:
        self.said = message

    warning = error = debug


def options(limits: Limits) -> dict[str, Any]:
    """yt-dlp's settings: video only, nothing but the file is written, no program is started."""
    fits = f"{PROTOCOLS}[height<=?{limits.max_height}]"

    def wait(n: int) -> float:
        return limits.retry_wait_s * 2**n

    return {
        "format": "/".join(f"{kind}{fits}{codec}" for codec in (CODECS, "") for kind in _KINDS),
        "noplaylist": True,
        "extract_flat": "in_playlist",  # a channel is recognised, not walked through
        "playlist_items": "1-2",
        "max_filesize": limits.max_bytes,
        "ratelimit": limits.rate_limit,
        "socket_timeout": limits.socket_timeout_s,
        "retries": RETRIES,
        "fragment_retries": RETRIES,
        "file_access_retries": RETRIES,
        "extractor_retries": 1,
        "retry_sleep_functions": {"http": wait, "fragment": wait, "extractor": wait},
        "skip_unavailable_fragments": False,  # or a video would be shorter and nobody know
        "continuedl": True,
        "external_downloader": "native",
        "fixup": "never",
        "updatetime": False,
        "cachedir": False,
        # A stream and not a file: yt-dlp writes the cookies back to where they came from.
        "cookiefile": io.StringIO(limits.cookies) if limits.cookies else None,
        "enable_file_urls": False,
        "color": "no_color",
        "quiet": True,
        "noprogress": True,
        "logger": _Log(),
    }


_KINDS = ("bv", "bv*")  # without sound if there is such a thing, else with it


def inspect(path: Path) -> dict[str, Any]:
    """Whether a file is a video.

    Returns:
      "suffix", and as the container claims them "frames" (0: unknown), "duration_s", "width"
      and "height" in pixels.

    Raises:
      Failure: it is no container of moving pictures, or its first frame cannot be decoded.
    """
    with path.open("rb") as file:
        suffix = container(file.read(HEAD_BYTES))
    # Without this a decoder would open a picture, or a playlist that names other files.
    if not suffix:
        raise Failure("not_a_video", "the file is no video")
    # Here and not above: the process that the downloads are forked from has no threads so.
    from fer_jax.media.video import Video

    try:
        with Video(path) as video:
            frame = next(video.frames(every=1), None)
    except InputError as error:
        raise Failure("not_a_video", str(error)) from error
    if frame is None or frame.image is None:
        raise Failure("not_a_video", "no frame of the file can be decoded")
    return {
        "suffix": suffix,
        "frames": video.claimed,
        "duration_s": round(video.claimed / video.fps, 3),
        "width": video.width,
        "height": video.height,
    }


def container(head: bytes) -> str:
    """The ending that fits a file's first bytes; empty if they begin no video."""
    if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS:
        return ""
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return ".ts"
    for offset, magic, suffix in CONTAINERS:
        if head[offset : offset + len(magic)] == magic:
            return ".webm" if suffix == ".mkv" and b"webm" in head[:64] else suffix
    return ""


def classify(error: BaseException) -> Failure:
    """Why a download failed, by the exceptions behind an exception, then by its words."""
    if isinstance(error, Failure):
        return error
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, Failure):
            return cause
    # yt-dlp's own words, the innermost; an exception of another kind is a defect somewhere.
    worded = [cause for cause in causes if isinstance(cause, YoutubeDLError)]
    if worded:
        detail = str(getattr(worded[-1], "orig_msg", worded[-1]))
    else:
        detail = f"{type(error).__name__}: {error}"
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return Failure("disk_full", detail)
        if isinstance(cause, GeoRestrictedError):
            return Failure("geo", detail)
        if isinstance(cause, UnsupportedError):
            return Failure("not_a_video", "yt-dlp finds no video on the page")
        if isinstance(cause, HTTPError):
            return Failure(_by_status(cause.status), detail)
        if isinstance(cause, TransportError):
            return Failure("network", detail)
    if "No space left on device" in detail:
        return Failure("disk_full", detail)
    if "Requested format is not available" in detail:
        return Failure("no_format", "no stream of pictures of at most --max_height over http")
    if status := re.search(r"HTTP Error (\d{3})", detail):
        return Failure(_by_status(int(status[1])), detail)
    said = detail.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    for reason, phrase in PHRASES if worded else ():
        if re.search(phrase, said):
            return Failure(reason, detail)
    return Failure("other", detail)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what yt-dlp wrapped in it, outermost first."""
    seen: BaseException | None = error
    while isinstance(seen, BaseException):
        yield seen
        wrapped = getattr(seen, "exc_info", None)
        seen = (wrapped[1] if wrapped else None) or getattr(seen, "cause", None)


def _by_status(status: int) -> str:
    return STATUSES.get(status, "network" if status >= 500 else "other")


def clean(text: str) -> str:
    """A site's words as one short line that is safe to print and to open in a spreadsheet."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"^ERROR:|\[(download|generic)\]|; please report.*", "", text)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(text.split()).lstrip("=+-@ ")[:200]
