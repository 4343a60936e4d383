"""The page: answers a browser with real pictures, and turns away what it should."""

import contextlib
import http.client
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import cv2
import numpy as np
import pytest
from small_runs import image_bomb, picture, write_predictions, write_run

import fer_jax
from fer_jax.__main__ import main
from fer_jax.errors import InputError
from fer_jax.evaluation import results
from fer_jax.inference import recognizer
from fer_jax.media import images
from fer_jax.media.faces import Face
from fer_jax.predict.page import LIMITS, Server, warm_up

# A phone's width.
PHONE = 375
NEEDS_BROWSER = pytest.mark.skipif(chromium.PATH is None, reason="needs chromium on the PATH")


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = write_run(folder / "run", folder, sources=("demo/controlled",))
    write_predictions(run, "demo/social")
    results.write(run)
    return run


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    """With tight limits, and, where none is named, a detector that finds every bright patch."""

    def detect(image: np.ndarray, size: int) -> list[Face]:
        bright = (image.max(axis=2) > 40).astype(np.uint8)
        _, _, boxes, _ = cv2.connectedComponentsWithStats(bright)
        return [
            Face((float(b[0]), float(b[1]), float(b[2]), float(b[3])), 0.9, None) for b in boxes[1:]
        ]

    limits = LIMITS._replace(
        picture_bytes=2**20, clip_bytes=2**20, pixels=300_000, clip_s=1.0, waiting_s=2.0
    )
    with pytest.MonkeyPatch.context() as patch:
        make = recognizer.make_detector
        patch.setattr(recognizer, "make_detector", lambda model: make(model) if model else detect)
        with serving(Server(fer_jax.load(run), "127.0.0.1", 0, limits)) as server:
            yield server


def ask(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a request as a browser on the page makes it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def refused(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[2])["error"]


def scene(*, people: int = 2) -> np.ndarray:
    image = np.zeros((120, 200, 3), np.uint8)
    for person in range(people):
        size = 40 - 10 * person
        image[20 : 20 + size, 20 + 80 * person : 20 + 80 * person + size] = (
            picture(person, size) // 2 + 100
        )
    return image


def test_a_picture_is_answered_as_python_answers(server: Server):
    image = scene()
    status, _, body = ask(server, "POST", "/picture", cv2.imencode(".png", image)[1].tobytes())
    answer = json.loads(body)
    assert status == 200 and (answer["width"], answer["height"]) == (200, 120)
    expected = server.recognizer.predict(image[..., ::-1])
    for face, other in zip(answer["faces"], expected, strict=True):
        assert face["crop"].startswith("data:image/jpeg;base64,") and face["look"] != face["crop"]
        assert {key: face[key] for key in other} == other
    _, _, live = ask(server, "POST", "/picture?live", cv2.imencode(".png", image)[1].tobytes())
    assert json.loads(live)["faces"] == expected
    _, _, nobody = ask(
        server, "POST", "/picture", cv2.imencode(".png", scene(people=0))[1].tobytes()
    )
    assert json.loads(nobody)["faces"] == []


def test_a_clip_is_answered_while_it_is_looked_at_and_leaves_nothing(
    server: Server,
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
    assert "the first 1 seconds of this clip only" in summary["remark"]
    assert summary["timeline"].startswith("<svg") and "look" in summary["people"][0]
    assert not list(kept.iterdir())
    # One that ends early is answered as far as it goes.
    cut = clip.read_bytes()[: clip.stat().st_size * 15 // 100]
    *frames, summary = map(json.loads, ask(server, "POST", "/clip", cut)[2].splitlines())
    assert 1 <= len(frames) < 5 and "The file ends early" in summary["remark"]


def test_what_cannot_be_read_is_a_message_and_the_server_stays_up(server: Server):
    good = images.encode_jpeg(scene())
    large = cv2.imencode(".png", np.zeros((600, 600, 3), np.uint8))[1].tobytes()
    for path, body, status, said in (
        ("/picture", b"", 400, "empty file"),
        ("/picture", b"these are words", 400, "unreadable image"),
        ("/picture", good[: len(good) // 2], 400, "truncated JPEG"),
        ("/picture", image_bomb(), 400, "too many pixels"),
        ("/picture", large, 400, "600 x 600 pixels are too many"),
        ("/picture", b"x" * (2**20 + 1), 413, "the file is larger than 1 MiB"),
        ("/clip", b"", 400, "empty file"),
        ("/clip", b"these are words", 400, "not a video, or damaged"),
        ("/clip", b"x" * (2**20 + 1), 413, "the file is larger than 1 MiB"),
        ("/elsewhere", b"", 404, "there is nothing here"),
    ):
        assert refused(ask(server, "POST", path, body)) == (status, said)
    assert ask(server, "GET", "/../../etc/passwd")[0] == 404
    assert ask(server, "PUT", "/picture", b"")[0] == 501
    assert ask(server, "POST", "/picture", good)[0] == 200


def test_an_upload_that_stalls_is_let_go(server: Server):
    port = server.server_address[1]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as stalled:
        stalled.sendall(
            b"POST /picture HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc"
        )
        begun = time.monotonic()
        assert stalled.recv(9) == b""
        assert 1 < time.monotonic() - begun < 20
    with socket.create_connection(("127.0.0.1", port), timeout=30) as without:
        without.sendall(b"POST /picture HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 411 " in without.recv(99)
    assert ask(server, "GET", "/")[0] == 200


def test_only_its_own_page_may_ask(server: Server):
    port = server.server_address[1]
    body = images.encode_jpeg(scene())
    for headers in (
        {"Host": f"evil.example:{port}"},  # a name that was made to point here
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        {"Host": f"127.0.0.1:{port}", "Origin": "http://evil.example"},
        {"Host": f"127.0.0.1:{port}", "Origin": "null"},
        {"Host": f"127.0.0.1:{port}", "Sec_Fetch_Site": "cross-site"},
        {"Host": ""},
    ):
        assert ask(server, "POST", "/picture", body, **headers)[0] == 403
    assert ask(server, "GET", "/", Host=f"evil.example:{port}")[0] == 403
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        answer = ask(server, "POST", "/picture", body, Host=host, Origin=f"http://{host}")
        assert answer[0] == 200


def test_the_page_needs_nothing_from_elsewhere(server: Server):
    status, headers, body = ask(server, "GET", "/")
    page = body.decode()
    assert status == 200 and "NONCE" not in page
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2 and "default-src 'none'" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]
    assert ask(server, "GET", "/")[1]["Content-Security-Policy"] != policy
    for address in ("https:", "src=", "@import", "url("):
        assert address not in page.split("<script")[0]
    # What it was trained and tested on, from the run's own files.
    scored = json.loads((server.recognizer.network.folder / "results.json").read_text())
    for one in scored["sets"]:
        if not one["variant"]:
            assert f"{one['dataset']} {one['split']}" in page
            assert f"{one['balanced_accuracy']:.3f}" in page


def test_many_ask_at_once_and_too_many_are_told(server: Server):
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
    # The last answers may be read before their requests are over.
    held = [server.requests.acquire(timeout=30) for _ in range(LIMITS.requests)]
    assert all(held)
    try:
        assert refused(ask(server, "GET", "/")) == (503, "too many requests; try again")
    finally:
        for _ in held:
            server.requests.release()
    assert ask(server, "GET", "/")[0] == 200


def test_a_port_in_use_is_one_line(
    server: Server, run: Path, yunet_model: Path, capsys: pytest.CaptureFixture[str]
):
    port = server.server_address[1]
    words = ["page", f"--model={run}", f"--detector_model={yunet_model}"]
    assert main([*words, f"--port={port}"]) == 2
    assert capsys.readouterr().err == (
        f"fer-jax: port {port} is in use; choose another with --port\n"
    )
    assert main([*words, "--host=192.0.2.1"]) == 2
    assert "cannot listen on --host=192.0.2.1" in capsys.readouterr().err
    assert main([*words, "--port=99999"]) == 2
    assert main(["page", f"--model={run / 'gone'}"]) == 2
    assert "gone' does not exist" in capsys.readouterr().err
    # It is found out at the start, not by the first visitor, that the detector is not there.
    lacking = fer_jax.load(run, detector_model="gone")
    with pytest.raises(InputError, match="--detector_model 'gone' does not exist"):
        warm_up(lacking)


# In a browser


@pytest.fixture(scope="module")
def real(run: Path, yunet_model: Path) -> Iterator[str]:
    """The address of a page with the real detector."""
    recognizer = fer_jax.load(run, detector_model=str(yunet_model))
    warm_up(recognizer)
    limits = LIMITS._replace(clip_bytes=4 * 2**20)
    with serving(Server(recognizer, "127.0.0.1", 0, limits)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}/"


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
    # Nothing is asked of anybody else, and nothing went wrong.
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
    nobody = tmp_path / "nobody.png"
    cv2.imwrite(str(nobody), np.full((90, 90, 3), 70, np.uint8))
    for file, said in (
        (tmp_path / "words.jpg", "Unreadable image."),
        (videos / "broken_pointer.mp4", "Not a video, or damaged."),
        (tmp_path / "empty.png", "This file is empty."),
        (tmp_path / "large.mp4", "This file is larger than 4 MiB."),
        (nobody, "No face found in this picture."),
    ):
        page.run("document.querySelector('#status').textContent = ''")
        page.choose("#file", file)
        assert status(page) == said
        bad = page.run("document.querySelector('#status').classList.contains('bad')")
        assert bad == (file != nobody) and cards(page) == []


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
