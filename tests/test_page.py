"""The page: predicts for a browser with real pictures, and refuses what it should."""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import chromium
import cv2
import numpy as np
import pytest
from small_runs import image_bomb, picture, write_predictions, write_run

import fer_jax
from fer_jax import results
from fer_jax.__main__ import main
from fer_jax.errors import InputError
from fer_jax.evaluation import run_scores
from fer_jax.inference import recognizer
from fer_jax.inference.recognizer import Recognizer
from fer_jax.media import images
from fer_jax.media.faces import Face
from fer_jax.predict import page as page_module
from fer_jax.predict import server as server_module
from fer_jax.predict.page import LIMITS, Limits, listen, render, warm_up
from fer_jax.predict.server import make_server

# A phone's width.
PHONE = 375
NEEDS_BROWSER = pytest.mark.skipif(chromium.PATH is None, reason="needs chromium on the PATH")


class Served(NamedTuple):
    recognizer: Recognizer
    port: int


@contextlib.contextmanager
def serving(recognizer: Recognizer, limits: Limits, token: str = "") -> Iterator[Served]:
    listening = listen("127.0.0.1", 0)
    server = make_server(recognizer, limits, token=token)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield Served(recognizer, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = write_run(folder / "run", folder, sources=("demo/controlled",))
    write_predictions(run, "demo/social", {"step": 1, "checksum": "", "chosen": "best"})
    results.write(run, run_scores.score_run(run))
    return run


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Served]:
    """With tight limits, and, where none is named, a detector that finds every bright patch."""

    def detect(image: np.ndarray, size: int) -> list[Face]:
        bright = (image.max(axis=2) > 40).astype(np.uint8)
        _, _, boxes, _ = cv2.connectedComponentsWithStats(bright)
        return [
            Face((float(b[0]), float(b[1]), float(b[2]), float(b[3])), 0.9, None) for b in boxes[1:]
        ]

    limits = LIMITS._replace(
        picture_bytes=2**20, clip_bytes=2**20, pixels=300_000, clip_s=1.0, waiting_s=2
    )
    with pytest.MonkeyPatch.context() as patch:
        make = recognizer.make_detector
        patch.setattr(
            recognizer,
            "make_detector",
            lambda name, model, fast: make(name, model, fast=fast) if model else detect,
        )
        with serving(fer_jax.load(run), limits) as server:
            yield server


def test_a_token_is_asked_for_where_there_is_one(server: Served):
    with serving(server.recognizer, LIMITS, token="a+b") as guarded:
        body = images.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
        for headers in (
            {},
            {"Authorization": "Bearer a b"},
            {"Authorization": "Bearer "},
            {"Cookie": f"{server_module.COOKIE}=\u00e4"},
        ):
            for method, path in (("GET", "/"), ("POST", "/picture"), ("GET", "/?token=a+b")):
                status, given, content = ask(guarded, method, path, body, **headers)
                assert status == 401 and b"token" in content and "Set-Cookie" not in given
        assert ask(guarded, "POST", "/picture", body, Authorization="Bearer a+b")[0] == 200
        status, given, _ = ask(guarded, "GET", "/?token=a%2Bb")
        cookie, *attributes = given["Set-Cookie"].split("; ")
        assert status == 200 and {"HttpOnly", "SameSite=Strict"} <= set(attributes)
        assert ask(guarded, "POST", "/picture", body, Cookie=cookie)[0] == 200
        # A page of another site has neither.
        assert ask(guarded, "POST", "/picture", body, Cookie=cookie, Origin="http://x")[0] == 403


def ask(
    server: Served, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Message, bytes]:
    """(status, headers, body) of a request as a browser on the page sends it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def refused(response: tuple[int, Message, bytes]) -> tuple[int, str]:
    return response[0], json.loads(response[2])["error"]


def scene(*, people: int = 2) -> np.ndarray:
    image = np.zeros((120, 200, 3), np.uint8)
    for person in range(people):
        size = 40 - 10 * person
        image[20 : 20 + size, 20 + 80 * person : 20 + 80 * person + size] = (
            picture(person, size) // 2 + 100
        )
    return image


def test_a_picture_is_predicted_as_in_python(server: Served):
    image = scene()
    status, _, body = ask(server, "POST", "/picture", cv2.imencode(".png", image)[1].tobytes())
    response = json.loads(body)
    assert status == 200 and (response["width"], response["height"]) == (200, 120)
    expected = server.recognizer.predict(image[..., ::-1])
    for face, other in zip(response["faces"], expected, strict=True):
        assert face["crop"].startswith("data:image/jpeg;base64,") and face["look"] != face["crop"]
        assert {key: face[key] for key in other} == other
    _, _, live = ask(server, "POST", "/picture?live", cv2.imencode(".png", image)[1].tobytes())
    assert json.loads(live)["faces"] == expected
    _, _, no_face = ask(
        server, "POST", "/picture", cv2.imencode(".png", scene(people=0))[1].tobytes()
    )
    assert json.loads(no_face)["faces"] == []


def test_a_clip_is_processed_as_a_stream_and_leaves_nothing(
    server: Served,
    tmp_path: Path,
    write_video: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
):
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    clip = write_video(tmp_path / "clip.avi", [scene()] * 30)
    status, headers, body = ask(server, "POST", "/clip", clip.read_bytes())
    assert status == 200 and headers["Content-Type"] == "application/x-ndjson"
    *frames, summary = map(json.loads, body.splitlines())
    # Five a second of the first second, which is the limit.
    assert [frame["time_s"] for frame in frames] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert all([face["face"] for face in frame["faces"]] == [1, 2] for frame in frames)
    assert [(one["face"], one["frames"]) for one in summary["people"]] == [(1, 5), (2, 5)]
    assert "Only the first 1 seconds of this clip" in summary["remark"]
    assert summary["timeline"].startswith("<svg") and "look" in summary["people"][0]
    assert not list(kept.iterdir())
    # One that ends early is processed as far as it goes.
    cut = clip.read_bytes()[: clip.stat().st_size * 15 // 100]
    *frames, summary = map(json.loads, ask(server, "POST", "/clip", cut)[2].splitlines())
    assert 1 <= len(frames) < 5 and "The file ends early" in summary["remark"]
    # After a cut, other people are in the same places.
    others = scene() * np.asarray([1, 0, 0], np.uint8)
    clip = write_video(tmp_path / "two.avi", [scene()] * 5 + [others] * 5)
    *frames, _ = map(json.loads, ask(server, "POST", "/clip", clip.read_bytes())[2].splitlines())
    numbers = [[face["face"] for face in frame["faces"]] for frame in frames]
    assert numbers == [[1, 2]] * 3 + [[3, 4]] * 2


def test_what_cannot_be_read_is_a_message_and_the_server_stays_up(server: Served):
    good = images.encode_jpeg(scene())
    large = cv2.imencode(".png", np.zeros((600, 600, 3), np.uint8))[1].tobytes()
    limit = "over the limit of 64000000 pixels"
    for path, body, status, said in (
        ("/picture", b"", 400, "empty file"),
        ("/picture", b"these are words", 400, "unreadable image"),
        ("/picture", good[: len(good) // 2], 400, "truncated JPEG"),
        ("/picture", image_bomb(), 400, f"{limit}; OPENCV_IO_MAX_IMAGE_PIXELS=N raises it"),
        ("/picture", large, 400, "600 x 600 pixels are too many"),
        ("/picture", b"x" * (2**20 + 1), 413, "the file is larger than 1 MiB"),
        ("/clip", b"", 400, "empty file"),
        ("/clip", b"these are words", 400, "not a video, or damaged"),
        ("/clip", b"x" * (2**20 + 1), 413, "the file is larger than 1 MiB"),
        ("/elsewhere", b"", 404, "Not Found"),
    ):
        assert refused(ask(server, "POST", path, body)) == (status, said)
    assert ask(server, "GET", "/../../etc/passwd")[0] == 404
    assert ask(server, "PUT", "/picture", b"")[0] == 405
    assert ask(server, "POST", "/picture", good)[0] == 200


def test_clients_that_stall_are_let_go(server: Served):
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as silent:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as stalled:
            stalled.sendall(
                b"POST /picture HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc"
            )
            assert b" 408 " in stalled.recv(99)
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(9) == b""
    assert 1 < time.monotonic() - begun < 20
    assert ask(server, "GET", "/")[0] == 200


def test_an_address_has_a_number_of_connections(server: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 4)
    with contextlib.ExitStack() as stack:

        def connect(source: str) -> socket.socket:
            there = ("127.0.0.1", server.port)
            made = socket.create_connection(there, timeout=30, source_address=(source, 0))
            return stack.enter_context(made)

        first = [connect("127.0.0.3") for _ in range(4)]
        begun, one_more = time.monotonic(), connect("127.0.0.3")
        with contextlib.suppress(ConnectionResetError):
            assert one_more.recv(9) == b""
        assert time.monotonic() - begun < 1, "it was let go for sending nothing"
        for one in (first[0], connect("127.0.0.4")):
            one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in one.recv(99)


def test_an_upload_of_unknown_length_has_the_same_limit(server: Served):
    def refused_after(parts: list[bytes]) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sending:
            sending.sendall(b"POST /picture HTTP/1.1\r\nHost: localhost\r\n")
            sending.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            for part in parts:
                sending.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            sending.sendall(b"0\r\n\r\n")
            return sending.recv(99)

    assert b" 400 " in refused_after([b"these are", b" words"])
    assert b" 413 " in refused_after([b"x" * 2**19] * 3)


def test_a_cancelled_upload_leaves_nothing(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as leaving:
        leaving.sendall(b"POST /clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\nabc")
        wait_until(lambda: any(tmp_path.iterdir()))
    wait_until(lambda: not any(tmp_path.iterdir()))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_only_its_own_page_may_ask(server: Served):
    port = server.port
    body = images.encode_jpeg(scene())
    for headers in (
        {"Host": f"evil.example:{port}"},  # a name that was made to point here
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        {"Host": f"127.0.0.1:{port}", "Origin": "http://evil.example"},
        {"Host": f"127.0.0.1:{port}", "Origin": "null"},
        {"Host": f"127.0.0.1:{port}", "Sec_Fetch_Site": "cross-site"},
    ):
        assert ask(server, "POST", "/picture", body, **headers)[0] == 403
    for host in ("", "[", "[::1", ":80"):
        assert ask(server, "POST", "/picture", body, Host=host)[0] == 400
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sending:
        sending.sendall(b"POST /picture HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n")
        assert b" 400 " in sending.recv(99)
    assert ask(server, "GET", "/", Host=f"evil.example:{port}")[0] == 403
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        response = ask(server, "POST", "/picture", body, Host=host, Origin=f"http://{host}")
        assert response[0] == 200


def test_the_page_needs_nothing_from_elsewhere(server: Served):
    status, headers, body = ask(server, "GET", "/")
    page = body.decode()
    assert status == 200 and "NONCE" not in page
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2 and "default-src 'none'" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    assert ask(server, "GET", "/")[1]["Content-Security-Policy"] != policy
    for address in ("https:", "src=", "@import", "url("):
        assert address not in page.split("<script")[0]
    # What it was trained and tested on, from the run's own files.
    scored = json.loads((server.recognizer.network.folder / "results.json").read_text())
    for one in scored["sets"]:
        if not one["variant"]:
            assert f"{one['dataset']} {one['split']}" in page
            assert f"{one['balanced_accuracy']:.3f}" in page
    assert "selected on their validation parts" in page
    # Scores of another checkpoint are not this network's.
    network = server.recognizer.network
    other = dataclasses.replace(network, about=network.about | {"step": network.step + 1})
    page = render(cast(Any, SimpleNamespace(network=other)), LIMITS)
    assert "This checkpoint has no scores" in page and "selected on" not in page


def test_uploads_at_once_all_get_a_response(server: Served):
    body = bytes(20 * 2**20)  # more than the connections' buffers

    with serving(server.recognizer, LIMITS._replace(requests=4)) as small:
        with ThreadPoolExecutor(30) as pool:
            statuses = [pool.submit(ask, small, "POST", "/picture", body) for _ in range(30)]
        assert {status.result()[0] for status in statuses} == {400, 503}


def test_many_requests_at_once_and_too_many(server: Served):
    pictures = [images.encode_jpeg(scene(people=n % 3)) for n in range(12)]
    counts: list[int] = []

    def one(number: int) -> None:
        status, _, body = ask(server, "POST", "/picture?live", pictures[number])
        assert status == 200
        counts.append((number % 3) - len(json.loads(body)["faces"]))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [0] * 12
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.requests // 2):
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            waiting.sendall(
                b"POST /picture HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc"
            )
        wait_until(lambda: ask(server, "GET", "/")[0] == 503)
        assert refused(ask(server, "GET", "/")) == (503, "too many requests; try again")
        # Another address is not shut out.
        other = socket.create_connection(
            ("127.0.0.1", server.port), source_address=("127.0.0.2", 0)
        )
        with stack.enter_context(other):
            other.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in other.recv(99)
    wait_until(lambda: ask(server, "GET", "/")[0] == 200)


def test_a_port_in_use_is_one_line(
    server: Served, run: Path, yunet_model: Path, capsys: pytest.CaptureFixture[str]
):
    port = server.port
    words = ["page", f"--model={run}", f"--detector_model={yunet_model}"]
    assert main([*words, f"--port={port}"]) == 2
    assert capsys.readouterr().err == (
        f"fer-jax: port {port} is in use; choose another with --port\n"
    )
    assert main([*words, "--host=192.0.2.1"]) == 2
    assert "cannot listen on --host=192.0.2.1" in capsys.readouterr().err
    assert main([*words, "--port=99999"]) == 2
    assert "--port must be in 0 to 65535, got 99999" in capsys.readouterr().err
    denied = PermissionError(13, "Permission denied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module.socket, "create_server", lambda *_, **__: raise_error(denied))
        assert main([*words, "--port=80"]) == 2
    assert capsys.readouterr().err == (
        "fer-jax: port 80 needs root; choose one above 1023 with --port\n"
    )
    assert main(["page", f"--model={run / 'gone'}"]) == 2
    assert "gone' does not exist" in capsys.readouterr().err
    # It is found out at the start, not by the first visitor, that the detector is not there.
    lacking = fer_jax.load(run, detector_model="gone")
    with pytest.raises(InputError, match="--detector_model 'gone' does not exist"):
        warm_up(lacking)


def raise_error(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("package", ["starlette.applications", "uvicorn"])
def test_without_the_extra_it_is_named(
    package: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delitem(sys.modules, "fer_jax.predict.server")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["page", f"--model={run}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("is not installed; pip install -e '.[page]'")


def test_ctrl_c_ends_it_while_a_clip_is_processed(
    run: Path, yunet_model: Path, tmp_path: Path, write_video: Callable[..., Path]
):
    clip = write_video(tmp_path / "clip.avi", [scene()] * 600)
    words = ["page", f"--model={run}", f"--detector_model={yunet_model}", "--port=0"]
    with subprocess.Popen(
        [sys.executable, "-m", "fer_jax", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=Path(fer_jax.__file__).parents[1],
    ) as process:
        assert process.stdout and process.stderr
        url = process.stdout.readline()
        port = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/  \(Ctrl-C ends it\)\n", url)
        assert port, process.stderr.read()
        connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=60)
        connection.request("POST", "/clip", clip.read_bytes())
        assert json.loads(connection.getresponse().readline())["time_s"] == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stdout.read() == "ended\n" and process.stderr.read() == ""
        connection.close()
    assert not list(tmp_path.glob("fer_jax_*"))


# In a browser


@pytest.fixture(scope="module")
def real(run: Path, yunet_model: Path) -> Iterator[str]:
    """The URL of a page with the real detector."""
    recognizer = fer_jax.load(run, detector_model=str(yunet_model))
    warm_up(recognizer)
    limits = LIMITS._replace(clip_bytes=4 * 2**20)
    with serving(recognizer, limits) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[chromium.Page]:
    """A browser whose camera shows a real clip."""
    folder = tmp_path_factory.mktemp("browser")
    capture = cv2.VideoCapture(str(shared / "data" / "videos" / "clip_03.mp4"))
    stream = b"".join(cv2.imencode(".jpg", capture.read()[1])[1].tobytes() for _ in range(8))
    (folder / "camera.mjpeg").write_bytes(stream)
    with chromium.browser(
        folder / "profile",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={folder / 'camera.mjpeg'}",
    ) as page:
        yield page


def status(page: chromium.Page) -> str:
    """What the page says when it is done."""
    page.until(
        "document.querySelector('#status').textContent && !document.querySelector('#status.busy')"
    )
    return page.run("document.querySelector('#status').textContent")


def cards(page: chromium.Page) -> list[Any]:
    page.until("[...document.querySelectorAll('#faces img')].every((i) => i.complete)")
    pictures = "[...li.querySelectorAll('img')].filter((i) => i.complete && i.naturalWidth).length"
    bars = "li.querySelectorAll('.bar').length"
    return page.run(
        "[...document.querySelectorAll('#faces > li')]"
        f".map((li) => ({{bars: {bars}, pictures: {pictures}}}))"
    )


# Boxes are drawn over the picture. Read from a copy: a canvas that is read again gives a warning.
PAINTED = (
    "(() => { const c = document.querySelector('#marks'); if (!c.width) return false;"
    "const copy = new OffscreenCanvas(c.width, c.height)"
    ".getContext('2d', {willReadFrequently: true});"
    "copy.drawImage(c, 0, 0);"
    "return copy.getImageData(0, 0, c.width, c.height).data.some((v) => v); })()"
)


@NEEDS_BROWSER
@pytest.mark.parametrize("width", [1280, PHONE])
def test_a_real_photo_and_a_real_clip_in_a_browser(
    page: chromium.Page, real: str, shared: Path, width: int
):
    page.errors.clear()
    page.requests.clear()
    page.open(real, width)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.choose("#file", shared / "data" / "photos" / "photo_01.jpg")
    assert status(page) == "8 faces found."
    page.until("document.querySelector('#stage img').complete")
    shown = cards(page)
    assert len(shown) == 8 and all(one["bars"] == 7 and one["pictures"] == 2 for one in shown)
    page.until(PAINTED)
    assert page.run("document.documentElement.scrollWidth") <= width

    page.choose("#file", shared / "data" / "videos" / "clip_21.mp4")
    assert status(page).startswith("1 face found in 3 frames.")
    assert len(cards(page)) == 1 and cards(page)[0]["pictures"] == 2
    page.until("document.querySelector('#timeline img').naturalWidth > 0")
    assert page.run("document.documentElement.scrollWidth") <= width
    # No other server was asked, and nothing went wrong.
    assert {r.split(":")[0] for r in page.requests} <= {"http", "blob", "data"}
    assert all(r.startswith(real) for r in page.requests if r.startswith("http"))
    assert page.errors == []


@NEEDS_BROWSER
def test_what_goes_wrong_is_said_in_the_browser(
    page: chromium.Page, real: str, shared: Path, tmp_path: Path
):
    page.open(real, 1280)
    videos = shared / "data" / "videos"
    (tmp_path / "words.jpg").write_text("words")
    (tmp_path / "empty.png").touch()
    (tmp_path / "large.mp4").write_bytes(b"\0" * (4 * 2**20 + 1))
    no_face = tmp_path / "no_face.png"
    cv2.imwrite(str(no_face), np.full((90, 90, 3), 70, np.uint8))
    for file, said in (
        (tmp_path / "words.jpg", "Unreadable image."),
        (videos / "broken_pointer.mp4", "Not a video, or damaged."),
        (tmp_path / "empty.png", "This file is empty."),
        (tmp_path / "large.mp4", "This file is larger than 4 MiB."),
        (no_face, "No face found in this picture."),
    ):
        page.run("document.querySelector('#status').textContent = ''")
        page.choose("#file", file)
        assert status(page) == said
        bad = page.run("document.querySelector('#status').classList.contains('bad')")
        assert bad == (file != no_face) and cards(page) == []


@NEEDS_BROWSER
def test_the_camera_is_used_by_keyboard_and_let_go(page: chromium.Page, real: str):
    page.open(real, PHONE)
    for _ in range(2):
        page.press("Tab")
    assert page.run("document.activeElement.id") == "camera"
    page.press("Enter")
    page.until("document.querySelectorAll('#faces > li').length === 1")
    page.until(PAINTED)
    assert status(page) == "The camera's newest picture."
    track = "document.querySelector('#stage video').srcObject.getTracks()[0]"
    page.run(f"window.watched = {track}")
    assert page.run("watched.readyState") == "live"
    page.press("Enter")
    page.until("watched.readyState === 'ended'")
    assert page.run("document.querySelector('#result').hidden")
    assert page.run("document.querySelector('#camera').textContent") == "Use the camera"
