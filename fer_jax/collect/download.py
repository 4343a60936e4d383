"""One URL to one video file with yt-dlp, in a process of its own.

A process, because only a process can be ended: a site that sends a byte a minute, a page on which a
pattern never finishes, or a file that crashes a decoder costs one link and not the run. What the
process may do is restricted before it sends its first request.
"""

import contextlib
import email.utils
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

import av  # noqa: F401 (loaded before the fork, for `inspect`)
import yt_dlp
from deno import find_deno_bin
from yt_dlp.extractor import gen_extractor_classes
from yt_dlp.globals import plugin_dirs
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import (
    ExtractorError,
    GeoRestrictedError,
    UnsupportedError,
    UserNotLive,
    YoutubeDLError,
    is_html,
)

from fer_jax import storage
from fer_jax.collect.failures import (
    DISK_FULL,
    ON_REQUEST,
    REASONS,
    DownloadLimits,
    Failure,
    reason_of_message,
    reason_of_status,
)
from fer_jax.errors import InputError

# Downloads are forked from a process that imports this module. Compiling the URL patterns of all
# sites here, once, saves each of them most of its start.
for _site in gen_extractor_classes():
    _site.suitable("https://127.0.0.1/")

PROTOCOLS = "[protocol~='^(https?|m3u8_native|http_dash_segments)$']"
CODECS = "[vcodec~='^(avc1|h264|vp0?9)']"  # every OpenCV decodes these
SCRIPT_RUNTIME = os.path.realpath(find_deno_bin())  # runs YouTube's player code
MAX_PAGE_BYTES = 32 * 2**20
HEAD_BYTES = 512
RETRIES = 3
REPORT_EVERY_S = 0.5

# (offset, bytes there, file suffix) of the containers that sites serve.
CONTAINERS = (
    *((4, tag, ".mp4") for tag in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (8, b"AVI ", ".avi"),
    (0, b"FLV\x01", ".flv"),
    (0, b"OggS", ".ogv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ".wmv"),
    *((0, tag, ".mpg") for tag in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")),
)
STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")  # images in a video's container


def run(channel: connection.Connection, url: str, stem: Path, limits: DownloadLimits) -> None:
    """Downloads one link; the body of the process.

    `channel` receives JSON: {"downloaded": bytes so far} now and then, and once at the end what
    `fetch` returned, or {"reason", "detail"}.
    """
    # The parent handles Ctrl-C. When it ends, however that happens, so does this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A crash leaves no core file in the user's folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Path(os.devnull).open("w") as devnull:
        # Decoders write to the descriptors directly.
        os.dup2(devnull.fileno(), 1)
        os.dup2(devnull.fileno(), 2)
    reported = time.monotonic()

    def report(downloaded: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            channel.send_bytes(json.dumps({"downloaded": downloaded}).encode())

    refused = restrict(url, limits.proxy)
    try:
        result = fetch(url, stem, limits, report)
    except Exception as error:
        failure = refused[0] if refused else classify(error)
        result = {
            "reason": failure.reason,
            "detail": failure.detail,
            "retry_after_s": failure.retry_after_s,
        }
    channel.send_bytes(json.dumps(result).encode())


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def restrict(url: str, proxy: str = "") -> list[Failure]:
    """Keeps this process from private addresses and from starting programs; cannot be undone.

    A public site could otherwise send it to a router or a cloud's metadata service. The addresses
    of the URL's own host and of the proxies in use are allowed, because the user chose them.
    Returns a list that receives a failure for every address that is refused from now on.
    """
    chosen = {urlsplit(url).hostname, urlsplit(proxy).hostname}
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
                # Not an OSError, which yt-dlp would retry.
                refused.append(Failure("unsafe", f"the site leads to the private address {host}"))
                raise refused[-1]
        elif event in ("subprocess.Popen", "os.exec", "os.system", "os.posix_spawn"):
            program = os.fsdecode(arguments[0] or "")
            if not program or program != SCRIPT_RUNTIME:
                # yt-dlp takes it for missing.
                raise PermissionError(f"{program} may not be started")

    sys.addaudithook(watch)
    return refused


def _is_public(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_global


def fetch(
    url: str, stem: Path, limits: DownloadLimits, report: Callable[[int], None]
) -> dict[str, Any]:
    """Downloads the video of a URL, or resumes an earlier attempt.

    The names of all files begin with `stem`. `report` is called with the bytes downloaded so far.
    Returns what `inspect` returns, and "path", "bytes", "sha256", and "site_id", the site's name
    and its own id of the video ("youtube:..."), or empty where ids mean nothing. Raises Failure
    with the reason if there is no video, and what `classify` takes.
    """

    def watch(status: dict[str, Any]) -> None:
        downloaded = status.get("downloaded_bytes") or 0
        if downloaded > limits.max_bytes:
            raise Failure("too_large", f"over {limits.max_bytes} bytes")
        report(downloaded)

    plugin_dirs.value = []
    settings: Any = options(limits) | {"progress_hooks": [watch]}  # its type is private
    downloader: Any = _Downloader(settings)
    info = downloader.extract_info(url, download=False)
    if info.get("entries") is not None:
        raise Failure("several_videos", "a page or list of several videos")
    if info.get("is_live"):
        raise Failure("live", "a live stream")
    size = info.get("filesize") or info.get("filesize_approx") or 0
    if size > limits.max_bytes:
        raise Failure("too_large", f"{size} bytes")

    # One format must not be resumed with another.
    chosen = [info.get(key) for key in ("format_id", "ext", "protocol", "height", "filesize")]
    path = Path(f"{stem}_{hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]}")
    validator = path.with_suffix(".validator")
    if info["protocol"] in ("http", "https"):
        # Resumes only if the server still has the same file.
        if validator.is_file() and Path(f"{path}.part").is_file():
            info["http_headers"] = {**info["http_headers"], "If-Range": validator.read_text()}
        downloader.validator = validator
    done, _ = downloader.dl(str(path), info)
    if not done:
        message = downloader.params["logger"].last
        reason = "too_large" if "max-filesize" in message else "other"
        raise Failure(reason, message or "yt-dlp gave up without a reason")
    try:
        found = inspect(path)
    except Failure:
        path.unlink()  # the next run would take it for the video
        raise
    site_id = "" if info["extractor"] == "generic" else f"{info['extractor']}:{info['id']}"
    size, digest = path.stat().st_size, storage.sha256(path)
    return {"path": str(path), "bytes": size, "sha256": digest, "site_id": site_id, **found}


class _Downloader(yt_dlp.YoutubeDL):
    """YoutubeDL that uses http and https only and does not read endless pages."""

    validator: Path | None = None  # receives the identifier of the file's version

    def urlopen(self, req: Any) -> Any:
        url = req if isinstance(req, str) else req.url
        if urlsplit(url).scheme.lower() not in ("http", "https"):
            raise Failure("unsafe", f"the site leads to a {urlsplit(url).scheme}: URL")
        response = super().urlopen(req)
        read = response.read

        def read_bounded(amt: int | None = None) -> bytes:
            if amt is not None:
                return read(amt)
            data = read(MAX_PAGE_BYTES + 1)
            if len(data) > MAX_PAGE_BYTES:
                raise Failure("not_a_video", "an endless page")
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
    """Keeps the last message of yt-dlp instead of printing it."""

    last = ""

    def debug(self, message: str) -> None:
        self.last = message

    warning = error = debug


def options(limits: DownloadLimits) -> dict[str, Any]:
    """Returns the settings of yt-dlp: video only, no other files, no programs."""
    kinds = ("bv", "bv*")  # without sound if there is such a stream, else with it
    fits = f"{PROTOCOLS}[height<=?{limits.max_height}]"

    def wait(n: int) -> float:
        return limits.retry_wait_s * 2**n

    return {
        "format": "/".join(f"{kind}{fits}{codec}" for codec in (CODECS, "") for kind in kinds),
        "noplaylist": True,
        "extract_flat": "in_playlist",  # a channel is recognized, not listed
        "playlist_items": "1-2",
        "max_filesize": limits.max_bytes,
        "ratelimit": limits.rate_limit,
        "sleep_interval": limits.sleep_s,
        "sleep_interval_requests": limits.sleep_s,
        "proxy": limits.proxy or None,  # None: the environment's
        "js_runtimes": {"deno": {"path": SCRIPT_RUNTIME}},
        "socket_timeout": limits.socket_timeout_s,
        "retries": RETRIES,
        "fragment_retries": RETRIES,
        "file_access_retries": RETRIES,
        "extractor_retries": 1,
        "retry_sleep_functions": {"http": wait, "fragment": wait, "extractor": wait},
        "skip_unavailable_fragments": False,  # a video with gaps is a failure
        "continuedl": True,
        "external_downloader": "native",
        "fixup": "never",
        "updatetime": False,
        "cachedir": False,
        # Not the file itself, because yt-dlp writes cookies back.
        "cookiefile": io.StringIO(limits.cookies) if limits.cookies else None,
        "enable_file_urls": False,
        "color": "no_color",
        "quiet": True,
        "noprogress": True,
        "logger": _Log(),
    }


def inspect(path: Path) -> dict[str, Any]:
    """Checks that a file is a video.

    Returns "suffix", and as the container states them "frames" (0: unknown), "duration_s", "width"
    and "height" in pixels. Raises Failure for a web page, no container of video, or a first frame
    that cannot be decoded.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    suffix = container(head)
    if is_html(head):
        raise Failure("blocked", "the site sends a web page in place of the video")
    # A decoder would also open an image, or a playlist that names other files.
    if not suffix:
        raise Failure("not_a_video", "the file is not a video")
    # Imported here, because OpenCV starts threads, which must not be there before the fork.
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
        "duration_s": round(video.length_s, 3),
        "width": video.width,
        "height": video.height,
    }


def container(head: bytes) -> str:
    """Returns the suffix for a file's first bytes, "" if they are not those of a video."""
    if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS:
        return ""
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return ".ts"
    for offset, magic, suffix in CONTAINERS:
        if head[offset : offset + len(magic)] == magic:
            return ".webm" if suffix == ".mkv" and b"webm" in head[:64] else suffix
    return ""


def classify(error: BaseException) -> Failure:
    """Returns why a download failed, from the exceptions behind an exception, then its message."""
    causes = list(_causes(error))
    # The innermost message of yt-dlp; exceptions of other kinds are defects.
    messages = [str(getattr(c, "orig_msg", c)) for c in causes if isinstance(c, YoutubeDLError)]
    detail = messages[-1] if messages else f"{type(error).__name__}: {error}"
    for cause in causes:
        if isinstance(cause, Failure):
            return cause
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return Failure(DISK_FULL, detail)
        if isinstance(cause, GeoRestrictedError):
            return Failure("geo", detail)
        if isinstance(cause, UnsupportedError):
            # It may be a page that says to come back later.
            return Failure("unavailable", "yt-dlp finds no video on the page")
        if isinstance(cause, UserNotLive):
            return Failure("live", detail)
        if isinstance(cause, HTTPError):
            pause = _retry_after_s(cause.response.headers.get("Retry-After"))
            return Failure(reason_of_status(cause.status), detail, pause)
        if isinstance(cause, TransportError):
            return Failure("network", detail)
    if "No space left on device" in detail:
        return Failure(DISK_FULL, detail)
    if "Requested format is not available" in detail:
        return Failure("no_format", "no video stream of at most --max_height over http")
    if status := re.search(r"HTTP Error (\d{3})", detail):
        return Failure(reason_of_status(int(status[1])), detail)
    reason = reason_of_message(detail) if messages else "other"
    # What an extractor did not expect may be a change of the site.
    unexpected = any(isinstance(c, ExtractorError) and not c.expected for c in causes)
    if unexpected and REASONS[reason].retry == ON_REQUEST:
        reason = "other"
    return Failure(reason, detail)


def _retry_after_s(text: str | None) -> float:
    """Returns the seconds of a Retry-After header, which has them or a date; 0 if neither."""
    if not text:
        return 0.0
    if text.strip().isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those that yt-dlp wrapped in it, outermost first."""
    while isinstance(error, BaseException):
        yield error
        wrapped = getattr(error, "exc_info", None)
        error = (wrapped[1] if wrapped else None) or getattr(error, "cause", None)
