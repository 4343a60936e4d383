"""Frames are the ones that were asked for, to the frame, and what is missing is said."""

import http.server
import itertools
import math
import struct
import threading
import wave
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from fer_jax.errors import InputError
from fer_jax.media import video
from fer_jax.media.video import Frame, Video

WriteVideo = Callable[..., Path]
MILLISECOND = 0.00051  # Matroska rounds to it


def numbered(count: int) -> list[np.ndarray]:
    """Pictures that say their number as eight bits in black and white blocks of 32 px."""
    pictures = []
    for number in range(count):
        bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4)
        pictures.append(cv2.cvtColor(np.kron(bits, np.full((32, 32), 255, np.uint8)), 8))
    return pictures


def number(frame: Frame) -> int | None:
    """What a picture of `numbered` says; None of a missing one."""
    if frame.image is None:
        return None
    middles = frame.image[16::32, 16::32, 0].ravel() > 127
    return int(sum(1 << bit for bit in range(8) if middles[bit]))


def frames(path: Path, **wanted: Any) -> list[Frame]:
    with Video(path) as opened:
        return list(opened.frames(**wanted))


def taken(path: Path, **wanted: Any) -> list[int]:
    """The wanted frames' indices, each seen to be the picture that was written there."""
    found = frames(path, **wanted)
    for frame in found:
        assert number(frame) == frame.index
    return [frame.index for frame in found]


@pytest.fixture(scope="module")
def ten_fps(tmp_path_factory: pytest.TempPathFactory, write_video: WriteVideo) -> Path:
    """50 numbered frames in 5 s."""
    return write_video(tmp_path_factory.mktemp("video") / "ten.mp4", numbered(50))


@pytest.mark.parametrize(
    ("name", "codec", "fps"),
    [
        ("x.mp4", "mp4v", 25),
        ("x.MP4", "mp4v", 30000 / 1001),
        ("x.mov", "mp4v", 12.5),
        ("x.avi", "MJPG", 23.976),
        ("x.mkv", "mp4v", 7.3),
        ("x.webm", "VP80", 30),
        ("x.webm", "VP90", 59.94),
    ],
)
def test_every_frame_of_every_container_is_itself_at_its_time(
    tmp_path: Path, write_video: WriteVideo, name: str, codec: str, fps: float
):
    path = write_video(tmp_path / name, numbered(40), fps=fps, codec=codec)
    with Video(path) as opened:
        found = list(opened.frames(every=1))
        assert (opened.claimed, opened.present, opened.width, opened.height) == (40, 40, 128, 64)
        assert opened.fps == pytest.approx(fps, rel=1e-4)
    assert [number(frame) for frame in found] == list(range(40))
    for index, frame in enumerate(found):
        assert frame.index == index
        assert frame.timestamp_s == pytest.approx(index / fps, abs=MILLISECOND)
    assert taken(path, count=4) == [5, 15, 25, 35]
    assert taken(path, every=7) == [0, 7, 14, 21, 28, 35]
    # The first frame at or after each half second.
    due = [math.ceil(half * 0.5 * fps - 1e-3) for half in range(100)]
    assert taken(path, seconds=0.5) == [index for index in due if index < 40]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 24, 49, 50])
def test_equal_intervals_are_equal_and_their_middles_are_taken(ten_fps: Path, count: int):
    indices = taken(ten_fps, count=count)
    assert len(indices) == count
    for number, index in enumerate(indices):
        # The frame that is shown at the interval's middle, in frames from the start.
        assert index == math.floor((number + 0.5) * 50 / count)


def test_a_clip_with_fewer_frames_than_asked_gives_all_of_them(ten_fps: Path):
    assert taken(ten_fps, count=51) == taken(ten_fps, count=1000) == list(range(50))
    assert taken(ten_fps, every=50) == [0]
    assert taken(ten_fps, seconds=60) == [0]


def test_a_stretch_shorter_than_a_frame_gives_every_frame(ten_fps: Path):
    assert taken(ten_fps, seconds=1e-9) == taken(ten_fps, seconds=0.1) == list(range(50))


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        ((1.0, 2.0), range(10, 20)),
        ((1.01, 2.01), range(11, 21)),
        ((0.0, 0.3), range(0, 3)),
        ((4.5, math.inf), range(45, 50)),
        ((4.0, 99.0), range(40, 50)),
        ((2.0, 2.0), range(0)),
        ((7.0, 9.0), range(0)),
    ],
)
def test_a_window_begins_with_its_start_and_ends_before_its_end(
    ten_fps: Path, window: tuple[float, float], inside: range
):
    start_s, end_s = window
    place = {"start_s": start_s, "end_s": end_s}
    assert taken(ten_fps, every=1, **place) == list(inside)
    assert taken(ten_fps, every=3, **place) == list(inside[::3])
    assert taken(ten_fps, count=1000, **place) == list(inside)
    assert taken(ten_fps, count=2, **place) == [
        inside[(2 * i + 1) * len(inside) // 4] for i in range(2) if len(inside)
    ]
    assert taken(ten_fps, seconds=0.25, **place) == sorted(
        {math.ceil((start_s + 0.25 * k) * 10 - 1e-6) for k in range(40)} & set(inside)
    )


def test_seconds_hold_over_long_clips_and_rounded_timestamps(
    tmp_path: Path, write_video: WriteVideo
):
    # Thirds of a second: Matroska writes 0.333, 0.667, 1 for frames 10, 20, 30.
    path = write_video(tmp_path / "x.mkv", numbered(240), fps=30)
    assert taken(path, seconds=1 / 3) == list(range(0, 240, 10))
    assert taken(path, every=1, start_s=1 / 3, end_s=2 / 3) == list(range(10, 20))


def without_duration(webm: Path) -> Path:
    """The same file with the element Duration turned into a void of its length."""
    data = bytearray(webm.read_bytes())
    place = data.index(b"\x44\x89\x88")
    data[place : place + 2] = b"\xec\x89"
    webm.write_bytes(data)
    return webm


def test_a_container_that_does_not_say_how_many_is_counted(tmp_path: Path, write_video: WriteVideo):
    path = without_duration(write_video(tmp_path / "x.webm", numbered(40)))
    with Video(path) as opened:
        assert opened.expected_s == 0
        assert [number(frame) for frame in opened.frames(count=4)] == [5, 15, 25, 35]
        assert opened.present == 40
    assert taken(path, count=100) == list(range(40))
    assert taken(path, every=15) == [0, 15, 30]
    assert taken(path, count=2, start_s=1, end_s=2) == [12, 17]


def claiming(avi: Path, count: int) -> Path:
    """The same file whose headers claim another number of frames."""
    data = bytearray(avi.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 24, count)
    struct.pack_into("<I", data, data.index(b"strh") + 40, count)
    avi.write_bytes(data)
    return avi


@pytest.mark.parametrize(
    ("wanted", "there", "missing"),
    [
        ({"count": 4}, [5, 15], [25, 35]),
        ({"count": 1000}, range(20), range(20, 40)),
        ({"every": 1}, range(20), range(20, 40)),
        ({"every": 7}, [0, 7, 14], [21, 28, 35]),
        ({"every": 30}, [0], [30]),
        ({"seconds": 0.5}, [0, 5, 10, 15], [20, 25, 30, 35]),
        ({"seconds": 1.5}, [0, 15], [30]),
        ({"every": 5, "start_s": 1.1, "end_s": 2.9}, [11, 16], [21, 26]),
        ({"every": 5, "start_s": 2.5, "end_s": 3.5}, [], [25, 30]),
        ({"count": 2, "start_s": 1.0, "end_s": 3.0}, [15], [25]),
        ({"every": 5, "end_s": 1.0}, [0, 5], []),
    ],
)
def test_what_is_claimed_and_not_there_comes_without_a_picture(
    tmp_path: Path,
    write_video: WriteVideo,
    wanted: dict[str, Any],
    there: list[int],
    missing: list[int],
):
    path = claiming(write_video(tmp_path / "x.avi", numbered(20)), 40)
    with Video(path) as opened:
        found = list(opened.frames(**wanted))
        assert (opened.claimed, opened.present) == (40, 20)
    assert [frame.index for frame in found] == [*there, *missing]
    assert [number(frame) for frame in found] == [*there, *(None for _ in missing)]
    for frame in found:
        assert frame.timestamp_s == pytest.approx(frame.index / 10)


@pytest.mark.parametrize("claimed", [0, 10**9, 2**31 - 1, 2**32 - 1])
def test_a_claim_that_cannot_be_is_none(tmp_path: Path, write_video: WriteVideo, claimed: int):
    path = claiming(write_video(tmp_path / "x.avi", numbered(20)), claimed)
    assert taken(path, count=4) == [2, 7, 12, 17]
    assert taken(path, every=6) == [0, 6, 12, 18]


def boxes(data: bytearray, names: list[bytes]) -> Iterator[int]:
    """Where the boxes of a path through an MP4 begin, each in the one before."""
    place = 0
    for name in names:
        place = data.index(name, place) - 4
        yield place


def varying_rate(mp4: Path, runs: list[tuple[int, float]]) -> Path:
    """The same file with so many frames of so many seconds each."""
    data = bytearray(mp4.read_bytes())
    path = list(boxes(data, [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"]))
    scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    size = struct.unpack_from(">I", data, path[-1])[0]
    table = b"".join(struct.pack(">II", n, round(seconds * scale)) for n, seconds in runs)
    new = struct.pack(">I4sII", 16 + len(table), b"stts", 0, len(runs)) + table
    for place in path[:-1]:
        grown = struct.unpack_from(">I", data, place)[0] + len(new) - size
        struct.pack_into(">I", data, place, grown)
    data[path[-1] : path[-1] + size] = new
    # The list of edits says how long all of it is shown.
    struct.pack_into(">I", data, data.index(b"elst") + 12, 10**6)
    mp4.write_bytes(data)
    return mp4


def test_times_are_the_containers_where_the_rate_varies(tmp_path: Path, write_video: WriteVideo):
    path = varying_rate(write_video(tmp_path / "x.mp4", numbered(30)), [(10, 0.1), (20, 0.4)])
    times = [frame.timestamp_s for frame in frames(path, every=1)]
    assert times == pytest.approx([*np.arange(10) / 10, *(1 + np.arange(20) * 0.4)])
    assert taken(path, seconds=2) == [0, 13, 18, 23, 28]
    # Windows are in seconds, not in frames at the mean rate.
    assert taken(path, every=1, start_s=1.0, end_s=3.0) == [10, 11, 12, 13, 14]
    assert taken(path, count=100, start_s=1.0, end_s=3.0) == [10, 11, 12, 13, 14]
    assert taken(path, count=1, start_s=1.0, end_s=3.0) == [12]


def test_a_turned_recording_stands_upright(tmp_path: Path, write_video: WriteVideo):
    # A telephone writes lying pictures and a matrix that turns them.
    path = write_video(tmp_path / "x.mp4", numbered(3))
    data = bytearray(path.read_bytes())
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = matrix
    path.write_bytes(data)
    with Video(path) as opened:
        second = list(opened.frames(count=3))[1]
        assert (opened.width, opened.height) == (64, 128)
    assert second.image is not None
    turned = Frame(1, 0.0, cv2.rotate(second.image, cv2.ROTATE_90_COUNTERCLOCKWISE))
    assert number(turned) == 1


def test_exactly_one_way_of_choosing_is_needed(ten_fps: Path):
    with pytest.raises(ValueError, match="must be above 0"):
        frames(ten_fps)


def wav(path: Path) -> Path:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    return path


def test_what_is_no_video_says_so(tmp_path: Path, write_video: WriteVideo):
    whole = write_video(tmp_path / "whole.mp4", numbered(50)).read_bytes()
    contents = {
        "empty.mp4": b"",
        "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "page.webm": b"<!DOCTYPE html><html></html>",
        "cut.mp4": whole[: len(whole) // 2],  # the index is at the end
        "zeros.avi": bytes(5000),
        "noise.mkv": np.random.default_rng(0).bytes(5000),
        "sound.mp4": wav(tmp_path / "sound.wav").read_bytes(),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="not a video, or damaged|empty file"):
            Video(tmp_path / name)
    with pytest.raises(InputError, match="empty file"):
        Video(tmp_path / "empty.mp4")
    for nothing in ("gone.mp4", ""):
        with pytest.raises(InputError, match="no such file"):
            Video(tmp_path / nothing)


def test_an_audio_file_in_a_video_container_has_no_picture(tmp_path: Path):
    """An MP4 with one track, of sound."""

    def box(name: bytes, *content: bytes) -> bytes:
        data = b"".join(content)
        return struct.pack(">I4s", 8 + len(data), name) + data

    def full(name: bytes, *content: bytes) -> bytes:
        return box(name, bytes(4), *content)

    samples = 800
    entry = box(
        b"sowt", bytes(6), struct.pack(">H", 1), bytes(8), struct.pack(">HHIHH", 1, 16, 0, 8000, 0)
    )
    dref = full(b"dref", struct.pack(">I", 1), struct.pack(">I4sI", 12, b"url ", 1))
    ftyp = box(b"ftyp", b"qt  ", bytes(4), b"qt  ")
    stbl = box(
        b"stbl",
        full(b"stsd", struct.pack(">I", 1), entry),
        full(b"stts", struct.pack(">III", 1, samples, 1)),
        full(b"stsc", struct.pack(">IIII", 1, 1, samples, 1)),
        full(b"stsz", struct.pack(">II", 2, samples)),
        full(b"stco", struct.pack(">II", 1, len(ftyp) + 8)),
    )
    minf = box(b"minf", full(b"smhd", bytes(4)), box(b"dinf", dref), stbl)
    handler = full(b"hdlr", b"mhlrsoun", bytes(13))
    mdhd = full(b"mdhd", struct.pack(">IIIII", 0, 0, 8000, samples, 0))
    tkhd = box(b"tkhd", struct.pack(">5I", 1, 0, 0, 1, 0), struct.pack(">I", 100), bytes(60))
    mvhd = full(b"mvhd", struct.pack(">4I", 0, 0, 1000, 100), bytes(80))
    moov = box(b"moov", mvhd, box(b"trak", tkhd, box(b"mdia", mdhd, handler, minf)))
    (tmp_path / "x.mp4").write_bytes(ftyp + box(b"mdat", bytes(2 * samples)) + moov)
    with pytest.raises(InputError, match="not a video: only sound$"):
        Video(tmp_path / "x.mp4")


def test_frames_too_large_to_hold_are_refused_unseen(tmp_path: Path, write_video: WriteVideo):
    path = write_video(tmp_path / "x.avi", numbered(2))
    data = bytearray(path.read_bytes())
    struct.pack_into("<ii", data, data.index(b"strf") + 12, 9000, 9000)
    small = struct.pack(">HH", 64, 128)  # the JPEGs' own word for it
    assert data.count(small) >= 2
    data = data.replace(small, struct.pack(">HH", 9000, 9000))
    path.write_bytes(data)
    with pytest.raises(InputError, match="frames of 9000 x 9000 pixels are over the limit"):
        Video(path)


@pytest.fixture
def asked() -> Iterator[tuple[int, list[str]]]:
    """A web server's port and what it was asked for."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port, requests
        server.shutdown()
        thread.join()


def test_playlists_open_no_address_and_no_other_file(
    tmp_path: Path, write_video: WriteVideo, asked: tuple[int, list[str]]
):
    port, requests = asked
    other = write_video(tmp_path / "other.mp4", numbered(9))
    write_video(tmp_path / "other.ts", numbered(9), codec="mp4v")
    url = f"http://127.0.0.1:{port}/other.mp4"
    targets = (url, "other.mp4", "other.ts", str(other), f"file:{other}")
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">'
        '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    )
    kinds = {
        "hls": hls,
        "concat": "ffconcat version 1.0\nfile '{}'\n",
        "dash": dash,
        "reference": "[Reference]\nRef1={}\n",
    }
    suffixes = (".mp4", ".mkv", ".avi", ".mpg")
    for kind, target, suffix in itertools.product(kinds, targets, suffixes):
        path = tmp_path / f"playlist{suffix}"
        path.write_text(kinds[kind].format(target))
        with pytest.raises(InputError, match="not a video, or damaged"):
            Video(path)
    assert requests == []


def test_a_name_that_looks_like_an_address_is_a_file(
    tmp_path: Path,
    write_video: WriteVideo,
    asked: tuple[int, list[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    port, requests = asked
    monkeypatch.chdir(tmp_path)
    path = Path(f"http:/127.0.0.1:{port}/x.mp4")  # what pathlib makes of the address
    assert taken(write_video(tmp_path / path, numbered(4)), every=1) == [0, 1, 2, 3]
    assert taken(path, every=1) == [0, 1, 2, 3]
    percent = write_video(tmp_path / "x_%03d.mp4", numbered(4))
    assert taken(percent, every=1) == [0, 1, 2, 3]
    assert requests == []


def test_real_containers_hold_what_the_manifest_counted(shared: Path):
    """Which frames come, at what times, of containers that vary their rate or lie."""
    videos = shared / "data" / "videos"
    times = [frame.timestamp_s for frame in frames(videos / "clip_32.mov", seconds=0.001)]
    steps = np.diff(times)
    assert len(times) == 169 and steps.min() < 0.014 and steps.max() > 0.041
    # At the mean rate of 26.4 frames per second it would be 3.03.
    assert times[80] == pytest.approx(2.6944, abs=0.02)
    with Video(videos / "clip_10.avi") as opened:
        # The header counts 870, of which every second one is a repetition without bytes.
        assert (opened.claimed, opened.present) == (434, 434)
        assert opened.length_s == pytest.approx(36.2, abs=0.1)
        by_second = list(opened.frames(seconds=1.0))
    assert len(by_second) == 37 and all(frame.image is not None for frame in by_second)


@pytest.mark.parametrize(
    ("name", "present", "times"),
    [
        ("editlist.mp4", 90, (np.arange(10) + 0.5) * 3.003 / 10),
        ("recorder.webm", 65, (np.arange(10) + 0.5) * 2.169 / 10),
        # 60 frames in the first two seconds, then one a second.
        ("vfr_phone.mp4", 68, np.arange(10) + 0.5),
    ],
)
def test_ten_frames_are_those_shown_at_ten_equal_times(
    shared: Path, name: str, present: int, times: np.ndarray
):
    path = shared / "inputs" / name
    shown = decoded_by_pyav(path)
    stamps = np.asarray([time for time, _ in shown])
    assert len(shown) == present
    found = frames(path, count=10)
    assert len(found) == 10
    for frame, time in zip(found, times, strict=True):
        index = int(np.searchsorted(stamps, time + 1e-3, "right")) - 1
        assert frame.index == index and frame.image is not None
        assert frame.timestamp_s == pytest.approx(stamps[index], abs=1e-6)
        assert np.array_equal(frame.image, shown[index][1])


def decoded_by_pyav(path: Path) -> list[tuple[float, np.ndarray]]:
    """All frames in order, (seconds from the first, BGR)."""
    with av.open(str(path)) as container:
        found = [
            (frame.time, frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)
        ]
    return [(time - found[0][0], picture) for time, picture in found]


def test_a_cover_picture_is_no_clip(shared: Path):
    with pytest.raises(InputError, match="not a video: only sound and a cover picture"):
        Video(shared / "inputs" / "cover.mp4")


def encoded(path: Path, times: Sequence[int], codec: str = "libx264", **options: str) -> Path:
    """Numbered pictures shown at these milliseconds, a key frame every 12; B-frames, but in AVI."""
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(
            codec, rate=30, options={"g": "12", "bf": "0" if path.suffix == ".avi" else "2"}
        )
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        # MPEG-2 knows a few rates only.
        stream.codec_context.time_base = Fraction(1, 25 if path.suffix == ".mpg" else 1000)
        for time, picture in zip(times, numbered(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "start"),
    [
        *((name, 0) for name in ("x.mp4", "x.mov", "x.avi", "x.mts", "x.mpg", "x.flv")),
        *((name, 840) for name in ("x.mp4", "x.mkv", "x.mts", "x.flv")),
    ],
)
def test_frames_between_key_frames_are_themselves(tmp_path: Path, name: str, start: int):
    codec = {"x.mpg": "mpeg2video", "x.avi": "mpeg4"}.get(name, "libx264")
    path = encoded(tmp_path / name, [start + 40 * n for n in range(60)], codec)
    assert taken(path, count=4) == [7, 22, 37, 52]
    assert taken(path, every=13, start_s=0.5, end_s=2.0) == [13, 26, 39]
    assert taken(path, count=2, start_s=1.0, end_s=1.8) == [30, 40]
    with Video(path) as opened:
        assert (opened.claimed, opened.present) == (60, 60)
        assert opened.length_s == pytest.approx(2.4, abs=0.05)


def test_a_file_that_was_cut_off_lacks_its_last_frames(tmp_path: Path):
    path = encoded(tmp_path / "x.mp4", [40 * n for n in range(60)], movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    found = frames(path, count=10)
    middles = (np.arange(10) + 0.5) * 2.4 / 10
    assert [frame.timestamp_s for frame in found] == pytest.approx(middles, abs=0.08)
    there = [frame.image is not None for frame in found]
    assert there == sorted(there, reverse=True) and 2 < sum(there) < 9
    for frame in found:
        assert frame.image is None or number(frame) == frame.index


def test_only_what_a_window_needs_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decoded = []
    frames_of = video._frames_of
    monkeypatch.setattr(
        video,
        "_frames_of",
        lambda context, packet: decoded.append(packet) or frames_of(context, packet),
    )
    path = encoded(tmp_path / "x.mp4", [40 * n for n in range(200)])
    assert taken(path, count=2, start_s=4.0, end_s=4.4) == [102, 107]
    assert len(decoded) < 24  # of 200


def test_the_limit_of_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = encoded(tmp_path / "x.mp4", [0, 40])
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "8000")
    with pytest.raises(
        InputError, match="limit of 8000 pixels; OPENCV_IO_MAX_IMAGE_PIXELS=N raises"
    ):
        Video(path)


def test_a_jump_in_time_leaves_as_many_frames_as_were_asked_for(tmp_path: Path):
    path = encoded(tmp_path / "x.mkv", [100 * n + 100_000 * (n >= 10) for n in range(20)])
    found = taken(path, count=10)
    assert len(found) == len(set(found)) == 10 and found == sorted(found)
    assert min(found) < 5 and max(found) > 14
