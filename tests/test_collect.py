"""The real yt-dlp against a web server on this machine that plays the sites' part."""

import contextlib
import csv
import dataclasses
import datetime
import email.utils
import errno
import hashlib
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yt_dlp
from hypothesis import given
from hypothesis import strategies as st
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError

from fer_jax.__main__ import main
from fer_jax.collect import manifest
from fer_jax.collect.collect import collect
from fer_jax.collect.download import classify, container
from fer_jax.collect.failures import ON_REQUEST, REASONS, DownloadLimits, clean
from fer_jax.collect.links import check_url, read_links, video_key
from fer_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
# Short waits: the server is on this machine.
QUICK = DownloadLimits(socket_timeout_s=1.5, deadline_s=20, retry_wait_s=0.05, host_pause_s=0.2)


class Site(ThreadingHTTPServer):
    """Answers each path with a function of the request; remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.pages: dict[str, Callable[[Request], None]] = {}
        self.asked: list[tuple[str, str]] = []  # path, Range
        self.open = threading.Event()  # set when the server goes: nobody waits on

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what is tested here."""

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)


class Request(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
        else:
            page(self)

    def log_message(self, *_: Any) -> None:
        pass

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            headers["Content-Length"] = str(length)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


def text(html: str, status: int = 200) -> Callable[[Request], None]:
    def page(request: Request) -> None:
        request.head(status, len(html.encode()), Content_Type="text/html")
        request.wfile.write(html.encode())

    return page


def embed(*sources: str) -> Callable[[Request], None]:
    videos = "".join(
        f'<video><source src="{source}" type="video/mp4"></video>' for source in sources
    )
    return text(f"<html><head><title>An ad</title></head><body>{videos}</body></html>")


def data(
    content: bytes,
    kind: str = "video/mp4",
    *,
    upto: int | None = None,
    pace: float = 0.0,
    etag: str | None = None,
) -> Callable[[Request], None]:
    """A file with Range, If-Range and ETag; stops after `upto` bytes, waits `pace` per 64 KiB."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:12]}"' if etag is None else etag

    def page(request: Request) -> None:
        start, status = 0, 200
        headers = {"Content_Type": kind, "ETag": etag}
        wanted = request.headers.get("Range")
        if wanted and request.headers.get("If-Range", etag) == etag:
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        request.head(status, len(content) - start, **headers)
        stop = len(content) if upto is None else min(len(content), max(start, upto))
        for at in range(start, stop, 65536):
            request.wfile.write(content[at : min(stop, at + 65536)])
            if pace and request.server.open.wait(pace):
                return

    return page


def once(first: Callable[[Request], None], then: Callable[[Request], None], times: int = 1) -> Any:
    """A page that is something else the first times it is asked for."""
    seen = iter([first] * times)
    return lambda request: next(seen, then)(request)


def drip(request: Request) -> None:
    """A byte now and then, each within any timeout: only the deadline ends it."""
    request.head(200, 10**6, Content_Type="video/mp4")
    while not request.server.open.wait(0.2):
        request.wfile.write(b"x")
        request.wfile.flush()


def silent(request: Request) -> None:
    request.server.open.wait()


def unannounced(request: Request, content: bytes) -> None:
    """A file whose length the server does not say."""
    request.head(200, None, Content_Type="video/mp4")
    request.wfile.write(content)


def stall(request: Request) -> None:
    request.head(200, 10**6, Content_Type="video/mp4")
    request.wfile.write(b"x" * 100)
    request.wfile.flush()
    request.server.open.wait()


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.open.set()
    server.shutdown()
    thread.join()
    server.server_close()


def written(path: Path, codec: str, frames: int, size: int) -> Path:
    """A small video of noise."""
    random = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (size, size))
    for _ in range(frames):
        writer.write(random.integers(0, 256, (size, size, 3), dtype=np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="session")
def clips(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Two small clips and one of about a megabyte: real ones where there are any."""
    try:
        folder = request.getfixturevalue("shared") / "data" / "videos"
        names = ("clip_05.mp4", "clip_37.webm", "clip_12.mp4", "clip_24.mp4")
        return [(folder / name).read_bytes() for name in names]
    except pytest.skip.Exception:
        folder = tmp_path_factory.mktemp("clips")
        return [
            written(folder / "a.mp4", "mp4v", 8, 96).read_bytes(),
            written(folder / "b.webm", "VP80", 8, 96).read_bytes(),
            written(folder / "c.mp4", "mp4v", 12, 128).read_bytes(),
            written(folder / "d.mp4", "mp4v", 60, 224).read_bytes(),
        ]


def write_list(folder: Path, *rows: str, header: str = "url,category,reaction_type") -> Path:
    file = folder / "links.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def labelled(*urls: str) -> list[str]:
    return [f"{url},car_tech,interested" for url in urls]


def by_url(output: Path) -> dict[str, dict[str, str]]:
    return {row["url"]: row for row in manifest.read(output)}


def ledger(output: Path) -> list[dict[str, str]]:
    with (output / "ledger.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_list_of_all_kinds(
    site: Site, clips: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small, webm, other, large = clips
    picture = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    site.pages = {
        "/watch/1": embed("/media/1.mp4"),
        "/media/1.mp4": data(small),
        "/a/video.webm": data(webm, "video/webm"),
        "/b/video.webm": data(other, "video/mp4"),
        "/moved": lambda request: request.head(302, 0, Location="/a/video.webm"),
        "/busy": once(text("busy", 503), embed("/media/1.mp4"), times=2),
        "/two": embed("/media/1.mp4", "/b/video.webm"),
        "/text.mp4": data(b"not a video\n" * 99),
        "/picture.mp4": data(picture),
        "/playlist.mp4": data(b"ffconcat version 1.0\nfile /etc/passwd\n"),
        "/half.mp4": data(small[: len(small) // 20]),
        "/nothing": text("<html><body>no video here</body></html>"),
        "/large.mp4": data(large),
        "/endless.mp4": lambda request: unannounced(request, large),
        "/sound.mp3": data(b"ID3" + bytes(999), "audio/mpeg"),
        "/private": text("", 403),
        "/law": text("", 451),
    }
    expected = {
        **dict.fromkeys(("/watch/1", "/a/video.webm", "/b/video.webm", "/moved", "/busy"), "done"),
        **dict.fromkeys(("/gone", "/embeds-gone"), "removed"),
        **dict.fromkeys(("/text.mp4", "/picture.mp4", "/playlist.mp4", "/half.mp4"), "not_a_video"),
        **{"/nothing": "unavailable", "/two": "several_videos", "/sound.mp3": "no_format"},
        **dict.fromkeys(("/large.mp4", "/endless.mp4"), "too_large"),
        **{"/private": "blocked", "/law": "geo"},
    }
    site.pages["/embeds-gone"] = embed("/media/gone.mp4")
    rows = labelled(*map(site.url, expected))
    rows += labelled("--exec", "../x", "file:///etc/passwd", "-dQw4w9WgXcQ", "ytsearch:x", rows[0])
    rows[-1] = rows[0]
    links = write_list(tmp_path, *rows)
    output = tmp_path / "out"
    limits = dataclasses.replace(QUICK, max_bytes=len(large) - 1)
    before = everything(tmp_path)

    counts = collect(links, output, limits)
    states = {url.removeprefix(site.url("")): row for url, row in by_url(output).items()}
    assert {path: row["reason"] or row["status"] for path, row in states.items()} == expected
    assert counts == {"done": 5, "failed": len(expected) - 5, "refused": 6}
    assert sum(counts.values()) == len(rows)
    # What is not done has a ledger row, and only that.
    rest = ledger(output)
    assert len(rest) == len(rows) - 5
    assert [(row["item"], row["reason"]) for row in rest if row["status"] == "refused"] == [
        *((word, "not an http:// or https:// URL") for word in ("--exec", "../x")),
        ("file:///etc/passwd", "not an http:// or https:// URL"),
        *((word, "not an http:// or https:// URL") for word in ("-dQw4w9WgXcQ", "ytsearch:x")),
        (site.url("/watch/1"), "duplicate"),
    ]
    assert rest[0]["line"] == str(2 + list(expected).index("/gone"))
    # The files are what was served, under names of ours, and nothing else is left anywhere.
    served = {"/watch/1": small, "/a/video.webm": webm, "/b/video.webm": other, "/busy": small}
    for path, content in (served | {"/moved": webm}).items():
        row = states[path]
        assert row["file"].startswith(f"videos/{video_key(site.url(path))}.")
        assert (output / row["file"]).read_bytes() == content
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert int(row["bytes"]) == len(content) and int(row["frames"]) > 0
        assert row["category"] == "car_tech" and row["reaction_type"] == "interested"
    assert states["/busy"]["attempts"] == "3"
    made = {"out", "out/videos", "out/partial", "out/manifest.csv", "out/ledger.csv", "out/.lock"}
    assert everything(tmp_path) - before == made | {
        f"out/{row['file']}" for row in states.values() if row["file"]
    }
    printed = capsys.readouterr().out
    assert f"{links}: {len(rows)} rows" in printed
    assert "done          5   5 videos" in printed and "2 x removed: take it off" in printed

    # Again: only what may have changed by itself is asked for.
    site.asked.clear()
    assert collect(links, output, limits) == counts
    assert {path for path, _ in site.asked} == {"/private", "/law", "/sound.mp3", "/nothing"}
    # And what cannot is, with the flag.
    site.asked.clear()
    site.pages["/gone"] = data(small)
    again = collect(links, output, limits, retry_failed=True)
    assert again["done"] == 6 and sum(again.values()) == len(rows)
    assert {"/gone", "/law", "/two"} <= {path for path, _ in site.asked}
    assert not {"/watch/1", "/media/1.mp4", "/moved"} & {path for path, _ in site.asked[:1]}


def run_verb(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fer_jax", "collect", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def part_bytes(output: Path) -> int:
    return sum(file.stat().st_size for file in (output / "partial").glob("*.part"))


def test_a_cut_connection_is_continued_where_it_broke(
    site: Site, clips: list[bytes], tmp_path: Path
):
    large = clips[3]
    # The page stage asks for the file once, too.
    broken = data(large, upto=200_000)
    site.pages = {"/v.mp4": once(broken, data(large), times=2)}
    links = write_list(tmp_path, *labelled(site.url("/v.mp4")))
    assert collect(links, tmp_path / "out", QUICK)["done"] == 1
    (row,) = manifest.read(tmp_path / "out")
    assert (tmp_path / "out" / row["file"]).read_bytes() == large
    ranges = [asked for _, asked in site.asked]
    assert ranges[:2] == ["", ""]
    assert ranges[2].startswith("bytes=") and ranges[2] != "bytes=0-"


def test_ctrl_c_leaves_a_manifest_and_the_same_command_continues(
    site: Site, clips: list[bytes], tmp_path: Path
):
    small, _, _, large = clips
    site.pages = {"/a.mp4": data(small), "/b.mp4": data(large, pace=0.3)}
    rows = labelled(site.url("/a.mp4"), site.url("/b.mp4"))
    links = write_list(tmp_path, *rows)
    output = tmp_path / "out"
    words = (str(links), f"--output={output}")
    process = run_verb(*words)

    def half_way() -> bool:
        done = output.is_dir() and by_url(output).get(site.url("/a.mp4"), {}).get("status")
        return done == "done" and part_bytes(output) > 100_000

    wait_for(half_way)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
    printed, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert errors == "fer-jax: interrupted; rerun the same command to resume\n"
    assert "pending       1" in printed and "done          1" in printed
    states = by_url(output)
    assert states[site.url("/b.mp4")]["status"] == "pending"
    assert [row["status"] for row in ledger(output)] == ["pending"]
    kept = part_bytes(output)
    assert 0 < kept < len(large)

    site.pages["/b.mp4"] = data(large)
    site.asked.clear()
    again = run_verb(*words)
    printed, errors = again.communicate(timeout=30)
    assert (again.returncode, errors) == (0, "")
    assert "done          2" in printed
    assert site.asked == [("/b.mp4", ""), ("/b.mp4", f"bytes={kept}-")]
    assert (output / by_url(output)[site.url("/b.mp4")]["file"]).read_bytes() == large
    assert everything(output / "partial") == set() and ledger(output) == []


def test_ctrl_c_at_any_moment_is_one_line(site: Site, clips: list[bytes], tmp_path: Path):
    site.pages = {f"/{n}.mp4": data(clips[0]) for n in range(6)}
    links = write_list(tmp_path, *labelled(*map(site.url, site.pages)))
    for pause in (0.0, 1.0):
        output = tmp_path / f"out_{pause}"
        process = run_verb(str(links), f"--output={output}")
        wait_for((output / "partial").is_dir)
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=20)
        assert process.returncode == 130, errors
        assert errors == "fer-jax: interrupted; rerun the same command to resume\n"
        done = sum(row["status"] == "done" for row in manifest.read(output))
        assert f"done     {done:>6}" in printed
        assert f"pending  {6 - done:>6}" in printed
        assert len(ledger(output)) == 6 - done
        assert len(everything(output / "videos")) == done
        assert collect(links, output, QUICK)["done"] == 6


def test_nothing_goes_on_when_the_run_is_killed(site: Site, clips: list[bytes], tmp_path: Path):
    large = clips[3]
    written = []

    def dripping_page(request: Request) -> None:
        request.head(200, None, Content_Type="text/html")
        while not request.server.open.wait(0.1):
            request.wfile.write(b"<html>")
            written.append(time.monotonic())

    site.pages = {"/b.mp4": data(large, pace=0.2), "/page": dripping_page}
    links = write_list(tmp_path, *labelled(site.url("/b.mp4"), site.url("/page")))
    output = tmp_path / "out"
    process = run_verb(str(links), f"--output={output}")
    wait_for(lambda: part_bytes(output) > 0 and written)
    # A second run in the same folder would write the same file.
    with pytest.raises(InputError, match="is in use by process"):
        collect(links, output, QUICK)
    process.kill()
    process.communicate()
    time.sleep(0.5)
    kept = part_bytes(output)
    time.sleep(0.7)
    assert part_bytes(output) == kept < len(large)
    assert time.monotonic() - written[-1] > 0.5
    site.pages = {"/b.mp4": data(large)}
    assert collect(links, output, QUICK)["done"] == 1
    assert (output / manifest.read(output)[0]["file"]).read_bytes() == large


def test_a_file_that_changed_meanwhile_is_not_glued_to_its_old_half(
    site: Site, clips: list[bytes], tmp_path: Path
):
    old, new = clips[2], clips[3]
    output = tmp_path / "out"
    links = write_list(tmp_path, *labelled(site.url("/v.mp4")))
    site.pages["/v.mp4"] = data(old, upto=70_000)
    quick = dataclasses.replace(QUICK, retry_wait_s=0.01)
    assert collect(links, output, quick)["failed"] == 1
    assert manifest.read(output)[0]["reason"] == "network"
    assert 0 < part_bytes(output) <= 70_000
    site.pages["/v.mp4"] = data(new)
    assert collect(links, output, quick)["done"] == 1
    assert (output / manifest.read(output)[0]["file"]).read_bytes() == new

    # A server that names no version: another format is another file.
    output = tmp_path / "without"
    site.pages["/v.mp4"] = data(old, upto=70_000, etag="")
    assert collect(links, output, quick)["failed"] == 1
    site.pages["/v.mp4"] = data(new, "video/webm", etag="")
    assert collect(links, output, quick)["done"] == 1
    assert (output / manifest.read(output)[0]["file"]).read_bytes() == new
    assert everything(output / "partial") == set()


def test_a_page_without_an_end_is_left(site: Site, tmp_path: Path):
    def endless(request: Request) -> None:
        request.head(200, None, Content_Type="text/html")
        request.wfile.write(b"<html><body>")
        while not request.server.open.is_set():
            request.wfile.write(b"<p>and so on</p>" * 65536)

    site.pages = {"/": endless}
    links = write_list(tmp_path, *labelled(site.url("/")))
    assert collect(links, tmp_path / "out", QUICK)["failed"] == 1
    (row,) = manifest.read(tmp_path / "out")
    assert (row["reason"], row["detail"]) == ("not_a_video", "an endless page")


def test_stalled_and_dripping_servers_cost_one_link_each(
    site: Site, clips: list[bytes], tmp_path: Path
):
    site.pages = {
        "/stall.mp4": once(data(clips[0]), stall),  # the page answers, the file does not
        "/drip.mp4": drip,
    }
    links = write_list(tmp_path, *labelled(*map(site.url, site.pages)))
    started = time.monotonic()
    limits = dataclasses.replace(QUICK, deadline_s=2)
    assert collect(links, tmp_path / "out", limits)["failed"] == 2
    assert time.monotonic() - started < 25
    assert {row["reason"] for row in manifest.read(tmp_path / "out")} == {"network"}
    assert by_url(tmp_path / "out")[site.url("/drip.mp4")]["detail"] == "not finished in 2 s"

    # Nothing here waits longer than a socket; the deadline leaves a busy machine its time.
    site.pages = {"/silent": silent, "/good.mp4": data(clips[0]), "/busy": text("busy", 503)}
    links = write_list(tmp_path, *labelled(*map(site.url, site.pages)))
    limits = dataclasses.replace(QUICK, socket_timeout_s=1, deadline_s=120)
    counts = collect(links, tmp_path / "out", limits)
    assert counts == {"done": 1, "failed": 2, "refused": 0}
    states = by_url(tmp_path / "out")
    assert [states[site.url(path)]["reason"] for path in site.pages] == ["network", "", "network"]
    assert "timed out" in states[site.url("/silent")]["detail"]
    assert "503" in states[site.url("/busy")]["detail"]
    assert states[site.url("/busy")]["attempts"] == "3" == str(site.count("/busy"))


def test_pages_in_place_of_videos_live_streams_and_broken_ones_are_asked_again(
    site: Site, clips: list[bytes], tmp_path: Path
):
    small, _, _, large = clips
    robot = "<!DOCTYPE html><html><body>Are you a robot?</body></html>"
    pieces = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/piece.mp4\n#EXTINF:9,\n/end.mp4\n"

    def stream(listed: str) -> Callable[[Request], None]:
        return data(listed.encode(), "application/vnd.apple.mpegurl")

    # Through a proxy, so that the server can play a site that yt-dlp knows.
    host = "http://videos.invalid"
    member = "http://germanupa.de/mediathek/x"
    site.pages = {
        f"{host}/page.mp4": text(robot),
        f"{host}/gone.mp4": text("gone", 410),
        f"{host}/robot": embed("/robot.mp4"),
        f"{host}/live.m3u8": stream(pieces),
        f"{host}/stops.m3u8": stream(f"{pieces}#EXT-X-ENDLIST\n"),
        member: text('<html><div class="login-wrapper"></div></html>'),
    }
    expected = {
        f"{host}/page.mp4": "unavailable",
        f"{host}/gone.mp4": "removed",
        f"{host}/robot": "blocked",
        f"{host}/live.m3u8": "live",
        f"{host}/stops.m3u8": "network",
        member: "members",
    }
    links = write_list(tmp_path, *labelled(*site.pages))
    site.pages |= {
        f"{host}/robot.mp4": text(robot),
        f"{host}/piece.mp4": data(large[:200_000]),
        f"{host}/end.mp4": data(large[200_000:], upto=90_000),
    }
    output = tmp_path / "out"
    limits = dataclasses.replace(QUICK, proxy=site.url(""), retry_wait_s=0.01)
    assert collect(links, output, limits, workers=6) == {"failed": 6, "refused": 0}
    assert {url: row["reason"] for url, row in by_url(output).items()} == expected
    assert [(row["item"], row["reason"].split(":")[0]) for row in ledger(output)] == [
        *expected.items()
    ]

    # What can be finished is finished, and nothing of before is in it.
    site.asked.clear()
    site.pages |= {
        f"{host}/robot.mp4": data(small),
        f"{host}/live.m3u8": stream(f"{pieces}#EXT-X-ENDLIST\n"),
        f"{host}/end.mp4": data(large[200_000:]),
    }
    assert collect(links, output, limits, workers=6) == {"done": 3, "failed": 3, "refused": 0}
    done = {url: row for url, row in by_url(output).items() if row["status"] == "done"}
    for url, row in done.items():
        content = small if "robot" in url else large
        assert (output / row["file"]).read_bytes() == content
    rest = {row["item"]: row["reason"].split(":")[0] for row in ledger(output)}
    assert done.keys().isdisjoint(rest) and rest.items() <= expected.items()
    asked = {path for path, _ in site.asked}
    assert {member, f"{host}/page.mp4"} <= asked and f"{host}/gone.mp4" not in asked


def test_a_lost_or_changed_file_is_downloaded_again(site: Site, clips: list[bytes], tmp_path: Path):
    paths = ("/a.mp4", "/b.mp4", "/c.mp4", "/d.mp4")
    site.pages = {path: data(clips[0]) for path in paths}
    output = tmp_path / "out"
    links = write_list(tmp_path, *labelled(*map(site.url, paths)))
    collect(links, output, QUICK)
    states = by_url(output)
    (output / states[site.url("/a.mp4")]["file"]).unlink()
    with (output / states[site.url("/b.mp4")]["file"]).open("ab") as file:
        file.write(b"more")
    # A manifest that names another file is not believed, even if that is as large.
    (tmp_path / "other.mp4").write_bytes(clips[0])
    text = (output / "manifest.csv").read_text()
    named = states[site.url("/c.mp4")]["file"]
    (output / "manifest.csv").write_text(text.replace(named, "../other.mp4"))
    site.asked.clear()
    assert collect(links, output, QUICK)["done"] == 4
    assert {path for path, _ in site.asked} == {"/a.mp4", "/b.mp4", "/c.mp4"}
    for row in manifest.read(output):
        assert (output / row["file"]).read_bytes() == clips[0]
    assert len(everything(output / "videos")) == 4

    # A link that leaves the list and comes back is remembered, not downloaded again.
    site.asked.clear()
    write_list(tmp_path, *labelled(site.url("/a.mp4")))
    assert collect(links, output, QUICK) == {"done": 1, "refused": 0}
    assert [row["status"] for row in manifest.read(output)] == ["done", *["unlisted"] * 3]
    write_list(tmp_path, *labelled(*map(site.url, paths)))
    assert collect(links, output, QUICK) == {"done": 4, "refused": 0}
    assert site.asked == []


def test_windows_of_one_video_share_one_download(site: Site, clips: list[bytes], tmp_path: Path):
    site.pages = {"/v.mp4": data(clips[0])}
    url = site.url("/v.mp4")
    header = "url,category,emotion,start_s,end_s,subject_id"
    rows = [f"{url},ads,happy,,0.5,NA", f"{url},ads,sad,0.5,,", f"{url},ads,sad,0.50,,"]
    rows += [f"{url},ads,fear,0.5,,"]
    links = write_list(tmp_path, *rows, header=header)
    output = tmp_path / "out"
    assert collect(links, output, QUICK) == {"done": 2, "refused": 2}
    assert [row["reason"] for row in ledger(output)] == [
        "duplicate",
        "duplicate with other labels",
    ]
    assert site.count("/v.mp4") == 2  # as a page and as a file
    first, second = manifest.read(output)
    assert first["file"] == second["file"]
    assert [first[k] for k in ("start_s", "end_s", "emotion")] == ["", "0.5", "happiness"]
    assert first["subject_id"] == "NA"
    assert [second[k] for k in ("start_s", "end_s", "emotion")] == ["0.5", "", "sadness"]


def test_a_site_cannot_lead_to_private_addresses_files_or_programs(
    site: Site, clips: list[bytes], tmp_path: Path
):
    neighbour = Site.__new__(Site)
    ThreadingHTTPServer.__init__(neighbour, ("127.0.0.2", 0), Request)
    neighbour.pages, neighbour.asked = {"/v.mp4": data(clips[0])}, []
    neighbour.open = threading.Event()
    thread = threading.Thread(target=neighbour.serve_forever, args=(0.05,))
    thread.start()
    private = f"http://127.0.0.2:{neighbour.server_address[1]}/v.mp4"
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clips[0])
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ffmpeg", "ffprobe", "rtmpdump"):
        program = programs / name
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran_{name}\necho ffmpeg version 7\n")
        program.chmod(0o755)
    site.pages = {
        "/to-neighbour": lambda request: request.head(302, 0, Location=private),
        "/embeds-neighbour": embed(private),
        "/to-file": lambda request: request.head(302, 0, Location=f"file://{secret}"),
        "/embeds-file": embed(f"file://{secret}"),
        "/embeds-ftp": embed("ftp://127.0.0.1/v.mp4"),
        "/embeds-rtmp": embed("rtmp://127.0.0.1/v.mp4"),
        # What the native downloader cannot do, yt-dlp would hand to ffmpeg.
        "/sample.m3u8": data(
            b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=SAMPLE-AES,URI=k\n"
            b"#EXTINF:1,\n/s.ts\n#EXT-X-ENDLIST\n",
            "application/vnd.apple.mpegurl",
        ),
        "/named": embed(site.url("/v.mp4?../../../../x")),
        "/v.mp4?../../../../x": data(clips[0]),
    }
    links = write_list(tmp_path, *labelled(*map(site.url, site.pages)))
    output = tmp_path / "out"
    try:
        process = run_verb(
            str(links), f"--output={output}", PATH=f"{programs}:{os.environ['PATH']}"
        )
        printed, errors = process.communicate(timeout=90)
    finally:
        neighbour.shutdown()
        thread.join()
        neighbour.server_close()
    assert errors == "", printed
    reasons = {p: by_url(output)[site.url(p)]["reason"] for p in site.pages}
    assert reasons.pop("/named") == "" and reasons.pop("/v.mp4?../../../../x") == ""
    assert reasons.pop("/to-neighbour") == reasons.pop("/embeds-neighbour") == "unsafe"
    assert reasons == {
        "/to-file": "unsafe",
        **dict.fromkeys(("/embeds-file", "/embeds-ftp", "/embeds-rtmp"), "no_format"),
        "/sample.m3u8": "no_format",
    }
    assert "ffmpeg could not be found" in by_url(output)[site.url("/sample.m3u8")]["detail"]
    assert neighbour.asked == []
    assert not list(tmp_path.glob("ran_*"))
    assert {path.split("/")[0] for path in everything(tmp_path)} == {
        *("links.csv", "secret.mp4", "bin", "out")
    }


def test_no_config_no_plugin_no_cache(site: Site, clips: list[bytes], tmp_path: Path):
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home / ".config" / "yt-dlp" / "plugins" / "p", work):
        (folder / "yt_dlp_plugins" / "extractor").mkdir(parents=True)
        plugin = folder / "yt_dlp_plugins" / "extractor" / "evil.py"
        plugin.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (home / ".config" / "yt-dlp" / "config").write_text(f"--exec 'touch {tmp_path}/ran'\n")
    (home / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    (work / "yt-dlp.conf").write_text("--write-info-json\n")
    site.pages = {"/watch": embed("/v.mp4"), "/v.mp4": data(clips[0])}
    links = write_list(tmp_path, *labelled(site.url("/watch")))
    before = everything(tmp_path)
    process = run_verb(
        str(links),
        f"--output={tmp_path / 'out'}",
        cwd=work,
        HOME=str(home),
        XDG_CONFIG_HOME=str(home / ".config"),
        XDG_CACHE_HOME=str(home / "cache"),
        PYTHONPATH=f"{ROOT}{os.pathsep}{work}",
        PYTHONDONTWRITEBYTECODE="1",
    )
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), printed
    new = everything(tmp_path) - before
    assert {path.split("/")[0] for path in new} == {"out"}


def test_cookies_are_sent_and_their_file_is_left_alone(
    site: Site, clips: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def members(request: Request) -> None:
        known = "session=s3cret" in request.headers.get("Cookie", "")
        if not known:
            request.send_error(401)
            return
        request.send_response(200)
        request.send_header("Set-Cookie", "session=another; Path=/")
        request.send_header("Content-Type", "video/mp4")
        request.send_header("Content-Length", str(len(clips[0])))
        request.end_headers()
        request.wfile.write(clips[0])

    site.pages = {"/v.mp4": once(members, members)}
    links = write_list(tmp_path, *labelled(site.url("/v.mp4")))
    words = [str(links), f"--output={tmp_path / 'out'}"]
    assert main(["collect", *words]) == 1  # nothing at all
    assert "1 x login: give --cookies, or" in capsys.readouterr().out
    cookies = tmp_path / "cookies.txt"
    line = "127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\ts3cret\n"
    cookies.write_text(line)
    assert main(["collect", *words, f"--cookies={cookies}"]) == 2
    assert "first line must be" in capsys.readouterr().err
    assert main(["collect", *words, f"--cookies={tmp_path / 'none'}"]) == 2
    cookies.write_text("# Netscape HTTP Cookie File\n" + line)
    cookies.chmod(0o444)
    before = cookies.read_bytes(), cookies.stat().st_mtime_ns
    site.pages["/v.mp4"] = once(members, lambda r: data(clips[0])(r))
    assert main(["collect", *words, f"--cookies={cookies}"]) == 0
    assert (cookies.read_bytes(), cookies.stat().st_mtime_ns) == before
    for file in (tmp_path / "out").rglob("*.csv"):
        assert "s3cret" not in file.read_text()


def test_the_height_limit_chooses_among_streams(site: Site, clips: list[bytes], tmp_path: Path):
    heights = {240: clips[0], 480: clips[2], 1080: clips[3]}
    master = "#EXTM3U\n"
    for height, content in heights.items():
        # Of the same height both codecs are there; the preferred one has the lower rate.
        for codec, kind, rate in (("av01.0.05M.08", "x", 9), ("avc1.4d401f", "y", 8)):
            name = f"/{kind}{height}"
            master += (
                f"#EXT-X-STREAM-INF:BANDWIDTH={height * rate},RESOLUTION={height}x{height},"
                f'CODECS="{codec}"\n{name}.m3u8\n'
            )
            pieces = {f"{name}.mp4": content[:9000], f"{name}.end.mp4": content[9000:]}
            listed = "".join(f"#EXTINF:9,\n{piece}\n" for piece in pieces)
            site.pages[f"{name}.m3u8"] = data(
                f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n{listed}#EXT-X-ENDLIST\n".encode(),
                "application/vnd.apple.mpegurl",
            )
            site.pages |= {path: data(piece) for path, piece in pieces.items()}
    site.pages["/master.m3u8"] = data(master.encode(), "application/vnd.apple.mpegurl")
    links = write_list(tmp_path, *labelled(site.url("/master.m3u8")))
    for max_height, chosen in ((720, "/y480.mp4"), (2000, "/y1080.mp4"), (300, "/y240.mp4")):
        site.asked.clear()
        output = tmp_path / str(max_height)
        limits = dataclasses.replace(QUICK, max_height=max_height)
        assert collect(links, output, limits)["done"] == 1
        pieces = [chosen, chosen.replace(".mp4", ".end.mp4")]
        assert [path for path, _ in site.asked if path.endswith(".mp4")] == pieces
        (row,) = manifest.read(output)
        assert (output / row["file"]).read_bytes() == heights[int(chosen[2:-4])]
    limits = dataclasses.replace(QUICK, max_height=100)
    assert collect(links, tmp_path / "100", limits)["failed"] == 1
    assert manifest.read(tmp_path / "100")[0]["reason"] == "no_format"
    # A stream that lacks a piece is not a shorter video.
    del site.pages["/y480.end.mp4"]
    collect(links, tmp_path / "hole", QUICK)
    assert manifest.read(tmp_path / "hole")[0]["reason"] == "removed"


def test_the_rate_limit_is_of_all_together(site: Site, clips: list[bytes], tmp_path: Path):
    content = clips[2]
    site.pages = {"/a.mp4": data(content), "/b.mp4": data(content)}
    links = write_list(tmp_path, *labelled(*map(site.url, site.pages)))
    assert collect(links, tmp_path / "first", QUICK)["done"] == 2  # whatever starts only once
    limits = dataclasses.replace(QUICK, rate_limit=len(content) // 2)
    started = time.monotonic()
    assert collect(links, tmp_path / "out", limits, workers=2)["done"] == 2
    assert time.monotonic() - started > 3.5  # two files at half a file a second


def test_a_dry_run_writes_nothing_and_asks_nobody(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    links = write_list(tmp_path, *labelled(site.url("/v.mp4"), "--exec"))
    assert main(["collect", str(links), f"--output={tmp_path / 'out'}", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "would download 1 of 1 videos" in printed and "refused       1" in printed
    assert site.asked == [] and everything(tmp_path) == {"links.csv"}


def test_a_terminal_sees_progress(site: Site, clips: list[bytes], tmp_path: Path):
    site.pages = {"/a.mp4": data(clips[0]), "/b.mp4": data(clips[3], pace=0.05)}
    links = write_list(tmp_path, *labelled(*map(site.url, site.pages)))
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    process = subprocess.Popen(
        [sys.executable, "-m", "fer_jax", "collect", str(links), f"--output={tmp_path / 'out'}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=end,
    )
    os.close(end)
    seen = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it
        while piece := os.read(terminal, 65536):
            seen += piece
    os.close(terminal)
    assert process.wait() == 0
    assert b"1/2 [" in seen and b", 2 done, 0 failed" in seen and b" MB]" in seen
    assert b"Traceback" not in seen


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "needs the columns url and reaction_type or emotion"),
        ("url,category\nhttp://x/,a\n", "needs the columns"),
        ("url|emotion\nhttp://x/|fear\n", "separated by commas or semicolons"),
        ("url,emotion\n", "has no rows"),
        ("url,emotion,catgory\nhttp://x/,fear,a\n", "did you mean 'category'"),
        ("url,emotion,start\nhttp://x/,fear,1\n", "did you mean 'start_s'"),
        ("url,url,emotion\n", "a column twice"),
        ('url,emotion\n"http://x/,fear\n', "not a CSV in UTF-8"),
        ("url,emotion\nhttp://\xff/,fear\n", "not a CSV in UTF-8"),
    ],
)
def test_an_unusable_list_is_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "links.csv").write_bytes(content.encode("latin-1"))
    words = ["collect", str(tmp_path / "links.csv"), f"--output={tmp_path / 'out'}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert everything(tmp_path) == {"links.csv"}


def test_semicolons_and_times_are_understood(tmp_path: Path):
    rows = ("http://x/1;fear;0:01;1:02,5", "http://x/2;fear;1:00:00;", "http://x/3;fear;1,5;2.5")
    file = write_list(tmp_path, *rows, header="\ufeffurl;emotion;start_s;end_s")
    links, refused, _ = read_links(file)
    assert [(link.start_s, link.end_s) for link in links] == [(1, 62.5), (3600, None), (1.5, 2.5)]
    assert not refused
    file = write_list(tmp_path, "http://x/1,fear,1:2", header="url,emotion,start_s")
    assert "a time such as 1:02.5: '1:2'" in read_links(file)[1][0].reason


FORMS = (
    *("https://youtu.be/{}", "https://youtu.be/{}?t=30", "https://www.youtube.com/watch?v={}"),
    *("https://youtube.com/watch?list=PL1&v={}&t=3s", "http://m.youtube.com/watch?v={}#t=3"),
    *("https://www.youtube.com/shorts/{}?feature=share", "https://www.youtube.com/live/{}"),
    *("https://www.youtube-nocookie.com/embed/{}?start=3", "https://music.youtube.com/watch?v={}"),
)


def test_all_addresses_of_a_video_are_one_video(tmp_path: Path):
    rows = labelled(*(form.format("dQw4w9WgXcQ") for form in FORMS))
    others = ("https://www.youtube.com/watch?v=DQw4w9WgXcQ", "https://x.com/watch?v=dQw4w9WgXcQ")
    links, refused, _ = read_links(write_list(tmp_path, *rows, *labelled(*others)))
    assert [link.url for link in links] == [
        "https://www.youtube.com/watch?v=dQw4w9WgXcQ",
        *others,
    ]
    assert [row.reason for row in refused] == ["duplicate"] * (len(FORMS) - 1)
    rows = labelled(
        "http://x/a.mp4", "http://x/a.mp4#t=5", "http://x/a.mp4#t=0:05,9", "http://x/a#!b"
    )
    links, refused, _ = read_links(write_list(tmp_path, *rows))
    assert [link.url for link in links] == ["http://x/a.mp4", "http://x/a#!b"]


def test_a_host_that_is_asked_too_much_gets_a_pause_that_grows(
    site: Site, clips: list[bytes], tmp_path: Path
):
    asked: list[float] = []
    refused: list[tuple[str, int]] = []  # the pause that is named, and which of the requests

    def page(*pauses: str) -> Callable[[Request], None]:
        remaining = iter(pauses)

        def answer(request: Request) -> None:
            asked.append(time.monotonic())
            pause = next(remaining, None)
            if pause is None:
                data(clips[0])(request)
                return
            refused.append((pause, len(asked) - 1))
            request.head(429, 0, **({"Retry_After": pause} if pause else {}))

        return answer

    site.pages = {"/a.mp4": page("", "1"), "/b.mp4": page("")}
    links = write_list(tmp_path, *labelled(*map(site.url, site.pages)))
    assert collect(links, tmp_path / "out", QUICK, workers=1)["done"] == 2
    # The other video waits, too: for 0.2 s, for 0.4 s, and for the second that the host names,
    # whichever of the two is asked again first.
    gaps = np.diff(asked)[[number for _, number in sorted(refused)]]
    assert len(gaps) == 3 and all(gaps > (0.2, 0.4, 1.0))


def test_a_pause_that_is_too_long_is_not_waited_for(site: Site, clips: list[bytes], tmp_path: Path):
    site.pages = {
        "/a.mp4": lambda request: request.head(429, 0, Retry_After="86400"),
        "/b.mp4": data(clips[0]),
    }
    links = write_list(tmp_path, *labelled(*map(site.url, site.pages)))
    assert collect(links, tmp_path / "out", QUICK, workers=1)["failed"] == 2
    rows = by_url(tmp_path / "out")
    assert {row["reason"] for row in rows.values()} == {"rate_limited"}
    assert rows[site.url("/b.mp4")]["detail"] == "the site asks to wait for 86400 s"
    site.pages["/a.mp4"] = data(clips[0])
    assert collect(links, tmp_path / "out", QUICK)["done"] == 2


def test_a_killed_run_leaves_the_rows_that_were_appended(tmp_path: Path):
    links = write_list(tmp_path, *labelled("http://x/1", "http://x/2"))
    read, refused, _ = read_links(links)
    states = {link.url: manifest.new_state(link.url, "pending") for link in read}
    manifest.write(tmp_path, read, refused, states)
    manifest.append(tmp_path, read[:1], manifest.new_state("http://x/1", "failed", reason="drm"))
    with (tmp_path / "manifest.csv").open("a") as file:
        file.write("http://x/2,,,car_tech,inter")  # torn
    rows = manifest.read(tmp_path)
    assert [(row["url"], row["status"]) for row in rows] == [
        ("http://x/1", "failed"),
        ("http://x/2", "pending"),
    ]


def test_retry_after_is_seconds_or_a_date():
    def pause(**headers: str) -> float:
        answer: Any = Answer(429, **headers)
        return classify(wrapped(ExtractorError("x", cause=HTTPError(answer)))).retry_after_s

    assert pause() == pause(**{"Retry-After": "soon"}) == 0
    assert pause(**{"Retry-After": "120"}) == 120
    date = email.utils.format_datetime(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(0, 60)
    )
    assert 50 < pause(**{"Retry-After": date}) <= 60


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--sleep=-1", "--sleep must be 0 to 3600 seconds"),
        ("--proxy=localhost", "--proxy must be a URL"),
        ("--cookies_from_browser=lynx", "must be BROWSER or BROWSER:PROFILE"),
        ("--cookies_from_browser=firefox:/no/such", "cannot be read"),
    ],
)
def test_options_for_yt_dlp_are_checked(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    links = write_list(tmp_path, *labelled("http://127.0.0.1:9/"))
    assert main(["collect", str(links), f"--output={tmp_path / 'out'}", option]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_proxy_is_asked_instead_of_the_site(site: Site, clips: list[bytes], tmp_path: Path):
    address = "http://videos.invalid/v.mp4"
    site.pages = {address: data(clips[0])}  # a proxy is asked for the whole address
    links = write_list(tmp_path, *labelled(address))
    limits = dataclasses.replace(QUICK, proxy=site.url(""), sleep_s=0.1)
    assert collect(links, tmp_path / "out", limits)["done"] == 1


def test_rows_that_are_no_links_have_their_reason(tmp_path: Path):
    header = " URL ,Category,Emotion,reaction_type,start_s,end_s,notes"
    wrong = {
        ",a,fear,,,,": "no URL",
        "http://x/1,a,,,,,": "no label",
        "http://x/2,a,contempt,,,,": "unknown emotion 'contempt'",
        "http://x/3,a,,maybe,,,": "unknown interest 'maybe'",
        "http://x/4,a,fear,,-1,,": "start_s is not a number of seconds",
        "http://x/5,a,fear,,nan,,": "start_s is not a number of seconds",
        "http://x/6,a,fear,,5,5,": "end_s is not after start_s",
        "http://x/7,a,fear": "3 cells, but the header has 7",
        "http://x/8,a,fear,,,,,,": "9 cells, but the header has 7",
        "javascript:alert(1),a,fear,,,,": "not an http:// or https:// URL",
        "http://,a,fear,,,,": "malformed URL",
        "http://[::1,a,fear,,,,": "malformed URL",
        "http://x:99999/,a,fear,,,,": "malformed URL",
        "http://me:secret@x/,a,fear,,,,": "a user name in the URL",
        "http://x/#__youtubedl_smuggle=%7B%7D,a,fear,,,,": "malformed URL",
        "http://x/a b,a,fear,,,,": "a space, backslash or control character",
        f"http://x/{'y' * 3000},a,fear,,,,": "URL of more than 2048 characters",
        "yt.com/watch?v=x,a,fear,,,,": "not an http:// or https:// URL",
    }
    right = ["https://www.youtube.com/watch?v=-dQw4w9WgXc,a,Happy,not interested,1.5,3,a note"]
    links, refused, unused = read_links(
        write_list(tmp_path, *wrong, ",,,,,,", *right, header="\ufeff" + header)
    )
    assert len(refused) == len(wrong)
    for row, (line, reason) in zip(refused, wrong.items(), strict=True):
        assert row.reason.startswith(reason), (line, row)
    (link,) = links
    assert link.line == len(wrong) + 3
    assert (link.emotion, link.reaction_type) == ("happiness", "not_interested")
    assert link.part == ("https://www.youtube.com/watch?v=-dQw4w9WgXc", 1.5, 3.0)
    assert unused == ["notes"]


@given(st.text(max_size=40) | st.text(max_size=20).map("http://x/".__add__))
def test_an_accepted_url_is_a_plain_web_address(text: str):
    try:
        url = check_url(text.strip())
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 80
        return
    assert url.lower().startswith(("http://", "https://")) and len(url.split()) == 1


def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path):
    links = write_list(tmp_path, *labelled("http://127.0.0.1:9/"))
    output = tmp_path / "out"
    output.mkdir()
    header = ",".join(manifest.LINK_COLUMNS + manifest.STATE_COLUMNS)
    good = dict.fromkeys(manifest.LINK_COLUMNS + manifest.STATE_COLUMNS, "")
    row = ",".join((good | {"status": "done", "bytes": "many"}).values())
    for content in (
        "a,b\n1,2\n",
        f"{header}\nhttp://x\n",
        f"{header}\n{row}\n",
        "\x00",
        f"{header}\n\x00\n",
    ):
        (output / "manifest.csv").write_text(content)
        with pytest.raises(InputError, match="move it away"):
            collect(links, output, QUICK)
    with pytest.raises(InputError, match="is a file"):
        collect(links, links, QUICK)


class Answer:
    """What is asked of an HTTPError's response."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status, self.reason, self.headers = status, "because", headers


def wrapped(error: Exception) -> DownloadError:
    """As yt-dlp passes an extractor's error on."""
    try:
        raise error
    except Exception:
        info: Any = sys.exc_info()
        return DownloadError(f"ERROR: {error}", info)


# What yt-dlp itself says, word by word as in its source, and the reason.
OF_YT_DLP = {
    "This video is only available for registered users": "login",
    "has been rate-limited by YouTube for up to an hour": "rate_limited",
    "YouTube is requiring a captcha challenge before playback": "blocked",
    "This video is not available from your location due to geo restriction": "geo",
    "The uploader has not made this video available in your country": "geo",
    "The channel is not currently live": "live",
    "This video is DRM protected": "drm",
    "Requested format is not available": "no_format",
    "No video formats found!": "no_format",
    "only images are available for download": "no_format",
    "[download] Got error: ": "network",
}
# What sites say, above all YouTube, in yt-dlp's issues.
OF_SITES = {
    "Private video. Sign in if you've been granted access to this video": "private",
    "Video unavailable. This video is private": "private",
    "Video unavailable. This video has been removed by the uploader": "removed",
    "This video is no longer available because the account has been terminated": "removed",
    "This video is no longer available due to a copyright claim by X": "removed",
    "This video does not exist.": "removed",
    # To an outdated client, too.
    "Video unavailable": "unavailable",
    "This video is not available": "unavailable",
    "Video unavailable. This content isn't available.": "unavailable",
    "The page needs to be reloaded.": "other",
    "This video is not available on this app. Watch on the latest version": "unavailable",
    "Please sign in. Use --cookies-from-browser or --cookies for the authentication": "login",
    "Sign in to confirm your age. This video may be inappropriate for some users.": "age",
    "Sign in to confirm you\u2019re not a bot. Use --cookies-from-browser": "blocked",
    "This content isn't available, try again later.": "rate_limited",
    "Join this channel to get access to members-only content like this video": "members",
    "This video is available to this channel's members on level: Fan": "members",
    "This video is only available for members. Use --cookies-from-browser": "members",
    "This live event will begin in 3 hours.": "live",
    "This live stream recording is not available.": "live",
    "Premieres in 20 minutes": "live",
    "\r[download] Got error: HTTP Error 503: Busy. Giving up after 3 retries": "network",
    "\r[download] Got error: 7 bytes read, 93 more expected": "network",
    "unable to write data: [Errno 28] No space left on device": "disk_full",
    "Failed to extract any player response": "other",
    "Something new": "other",
}


def test_yt_dlp_says_what_the_reasons_are_taken_from():
    folder = Path(yt_dlp.__file__).parent
    named = ("YoutubeDL", "utils/_utils", "extractor/common", "downloader/common")
    named += ("extractor/youtube/_video",)
    sources = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in named)
    assert not [words for words in OF_YT_DLP if words not in sources]


def test_links_are_given_up_for_few_and_certain_reasons():
    given_up = {name for name, reason in REASONS.items() if reason.retry == ON_REQUEST}
    assert given_up == {"removed", "drm", "several_videos", "too_large", "not_a_video", "unsafe"}
    # A change of a site that yt-dlp does not know is none of them, whatever its words.
    error = ExtractorError("Unable to extract the player; the ad has been removed")
    assert classify(wrapped(error)).reason == "other"


@pytest.mark.parametrize(("words", "reason"), list((OF_YT_DLP | OF_SITES).items()))
def test_what_a_site_says_has_its_reason(words: str, reason: str):
    failure = classify(wrapped(ExtractorError(words, expected=True)))
    assert failure.reason == reason
    assert failure.detail


def test_exceptions_have_their_reason():
    def http(status: int) -> Any:
        return HTTPError(Answer(status))  # pyright: ignore[reportArgumentType] (all that is read)

    for status, reason in {
        **{401: "login", 403: "blocked", 404: "removed", 410: "removed", 418: "other"},
        **{429: "rate_limited", 451: "geo", 500: "network", 503: "network"},
    }.items():
        inner = ExtractorError("Unable to download webpage", cause=http(status))
        assert classify(wrapped(inner)).reason == classify(http(status)).reason == reason
    assert classify(wrapped(GeoRestrictedError("not here"))).reason == "geo"
    assert classify(wrapped(ExtractorError("x", cause=TransportError("reset")))).reason == "network"
    assert classify(OSError(errno.ENOSPC, "full")).reason == "disk_full"
    failure = classify(KeyError("player"))
    assert (failure.reason, failure.detail) == ("other", "KeyError: 'player'")


def test_a_sites_words_become_one_safe_line():
    assert clean("\x1b[0;31mERROR:\x1b[0m a\nb\tc; please report this issue on x") == "a b c"
    assert clean('=HYPERLINK("http://x")\x00') == 'HYPERLINK("http://x")'
    assert len(clean("x" * 9999)) == 200


@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        (b"\0\0\0\x20ftypisom", ".mp4"),
        (b"\0\0\0\x20ftypavif", ""),
        (b"\x1a\x45\xdf\xa3\x01\0\0\0\0\0\0\x1fB\x86\x81\x01webm", ".webm"),
        (b"\x1a\x45\xdf\xa3\x01\0\0\0\0\0\0\x1fB\x86\x81\x01matroska", ".mkv"),
        (b"RIFF\0\0\0\0AVI LIST", ".avi"),
        (b"RIFF\0\0\0\0WAVEfmt ", ""),
        (b"\x47" + bytes(187) + b"\x47" + bytes(99), ".ts"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"#EXTM3U\n", ""),
        (b"GIF89a", ""),
        (b"", ""),
    ],
)
def test_containers_are_told_by_their_bytes(head: bytes, suffix: str):
    assert container(head) == suffix
