"""Trials with hostile files, other people's processes and bad clients, for `faults.py`.

Those of a group run in a process of their own, which a trial may crash or let hang. Most commands
run in it by `ended`: they must end in time, with code 2 and one line.
"""

import contextlib
import http.client
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
from hostile_files import H5, JSON, PICKLES, write_h5
from small_runs import (
    image_bomb,
    network_file,
    picture,
    write_dataset,
    write_network,
    write_run,
)

from fer_jax import process, storage
from fer_jax.__main__ import main as fer_jax
from fer_jax.inference import recognizer
from fer_jax.media.faces import Face
from fer_jax.predict import page
from fer_jax.predict.server import make_server

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = 120
MEMORY_MIB = 3000
NOBODY = 65534


class Bench(NamedTuple):
    """Where a trial runs: a folder of its own with data, a run and its export; random numbers."""

    folder: Path
    random: random.Random

    def command(self, verb: str, out: str = "out") -> list[str]:
        """Returns a small command of a verb."""
        run, to = f"--workdir={self.folder / 'run'}", f"--out={self.folder / out}"
        return {
            "predict": ["predict", f"{self.folder / 'faces'}", f"--model={self.folder / 'run'}"]
            + ["--faces=crop", to],
            "export": ["export", run, to],
            "evaluate": ["evaluate", run, "--no_faces"],
            "report": ["report", run],
            "synthesize": ["synthesize", f"--network={self.folder / 'network'}", to]
            + ["--seeds=0-30", "--detector=none", "--batch_size=4", "--keep_duplicates"]
            + [f"--min_{name}=0" for name in ("size", "contrast", "sharpness")],
            "build": ["build", "face_folder/folds", f"--source={self.folder / 'labelled'}"]
            + [f"--data_dir={self.folder / out}", "--name=x", "--folds=2"],
            "collect": ["collect", f"{self.folder / 'links.csv'}", f"--output={self.folder / out}"],
            "train": ["train", "--config=configs/demo.py", to.replace("--out", "--workdir")],
        }[verb]


def make_world(folder: Path) -> None:
    """Makes the files that the trials copy."""
    rows = {part: [(f"{part}{n}", n % 7) for n in range(14)] for part in ("train", "validation")}
    write_dataset(folder / "data", "small", rows | {"test": [(f"t{n}", n % 7) for n in range(14)]})
    sets = ("small/grouped",)
    write_run(folder / "run", folder / "data", sources=sets, test_sets=sets)
    write_network(folder / "network")
    for number in range(40):
        for name in ("faces/{}.png", f"labelled/{('happy', 'sad')[number % 2]}/{{}}.png"):
            path = folder / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture(number, 96))
    (folder / "links.csv").write_text("url,emotion\nhttp://127.0.0.1:9/v.mp4,happiness\n")
    bench = Bench(folder, random.Random(0))
    for command in (bench.command("evaluate"), bench.command("export", "exported")):
        ended(*command, codes=(0,))


def ended(*argv: object, codes: Sequence[int] = (2,), says: str = "") -> None:
    """Runs a command here: it must end in time, with one of the codes and one line if it is 2."""
    errors = io.StringIO()
    signal.alarm(ENDS_WITHIN_S)  # ends the process
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = fer_jax([str(word) for word in argv])
    signal.alarm(0)
    checked(code, errors.getvalue(), codes, says)


def checked(code: int, errors: str, codes: Sequence[int] = (2,), says: str = "") -> None:
    """Checks the end of a command: its code, one line if that is 2, and the memory here."""
    lines = [line for line in errors.splitlines() if line.startswith("fer-jax: ")]
    assert code in codes and "Traceback" not in errors, f"code {code}: {errors[-1500:]}"
    if code == 2:
        assert len(lines) == 1 and says in lines[0], f"expected one line with '{says}': {errors}"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    assert most < MEMORY_MIB, f"{most} MiB of memory"


def start(argv: Sequence[object], *, before: str = "") -> subprocess.Popen[str]:
    """Starts a command in a process of its own, from a shell that runs `before` first."""
    words = [sys.executable, "-m", "fer_jax", *map(str, argv)]
    shell = ["bash", "-c", f'{before}\nexec "$@"', "bash", *words]
    out: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(shell, cwd=ROOT, start_new_session=True, **out)


def hostile_h5(bench: Bench, trial: int) -> None:
    """A crafted file, or one with flipped bits: nothing else is read, or written."""
    path = bench.folder / "x.weights.h5"
    kinds = [*H5, "a pipe", *["flipped bits"] * len(H5)]
    kind = kinds[trial % len(kinds)]
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        write_h5(path, "external storage" if kind == "flipped bits" else kind, before=trial % 9)
    if kind == "flipped bits":
        data = bytearray(path.read_bytes())
        for _ in range(bench.random.randint(1, 40)):
            data[bench.random.randrange(len(data))] ^= 1 << bench.random.randrange(8)
        path.write_bytes(data)
    ended("convert", path, bench.folder / "out", says=H5.get(kind, (0, ""))[1])
    assert not (bench.folder / "out").exists()


def hostile_pickle(bench: Bench, trial: int) -> None:
    """A pickle with instructions that would run code, or a network file with changed bytes."""
    path = bench.folder / "x.pkl"
    if trial < len(PICKLES):
        says, instructions = list(PICKLES.items())[trial]
        path.write_bytes(b"\x80\x04" + instructions)
        ended("convert", path, bench.folder / "out", says=says)
        return
    data = bytearray(network_file(trial % 2 == 0))
    for _ in range(bench.random.randint(1, 40)):
        data[bench.random.randrange(len(data))] = bench.random.randrange(256)
    path.write_bytes(data)
    ended("convert", path, bench.folder / "out", codes=(0, 2))


# File: verbs that read it. Those that only show what is there may leave out a part.
JSON_FILES = {
    "run/config.json": ("predict", "evaluate", "export", "report"),
    "run/environment.json": ("predict", "evaluate", "export"),
    "run/results.json": ("report",),
    "run/predictions/small-grouped.test.json": ("evaluate",),
    "run/test_sets.json": ("evaluate",),
    "run/leaks.json": ("evaluate",),
    "run/test_access.jsonl": ("evaluate",),
    "exported/config.json": ("predict",),
    "network/config.json": ("synthesize",),
    "out/settings.json": ("predict",),
    "out/faces.jsonl": ("predict",),
    "data/small/grouped/1.0.0/dataset_info.json": ("evaluate",),
    "data/small/grouped/1.0.0/features.json": ("evaluate",),
    "data/small/grouped/1.0.0/build.json": ("evaluate",),
}


def broken_json(bench: Bench, trial: int) -> None:
    """A file of JSON is broken in one way, or has a value of a wrong type or size."""
    name = list(JSON_FILES)[trial % len(JSON_FILES)]
    verb = bench.random.choice(JSON_FILES[name])
    command = bench.command(verb)
    if name.startswith("out/"):
        ended(*command, codes=(0,))
    if name.startswith("exported/"):
        command[2] = f"--model={bench.folder / 'exported'}"
    file = bench.folder / name
    how = [*JSON, "a wrong value", "a wrong value"][trial // len(JSON_FILES) % (len(JSON) + 2)]
    before = file.read_bytes() if file.is_file() else b'{"a": 1}\n'
    if file.is_file():
        file.unlink()
    if how == "a wrong value":
        content = json.loads(before.splitlines()[0] if file.suffix == ".jsonl" else before)
        file.write_text(json.dumps(with_wrong_value(content, bench.random)) + "\n")
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        JSON[how](file)
    ended(*command, codes=(0, 2))


def with_wrong_value(content: object, rng: random.Random) -> object:
    """Replaces one value, anywhere in an object of JSON."""
    if isinstance(content, dict) and content and rng.random() < 0.8:
        key = rng.choice(list(content))
        return content | {key: with_wrong_value(content[key], rng)}
    return rng.choice([None, -1, 10**6, 1e308, "x", [], {}, True, [[]], "../../x", 10**30])


def enormous(bench: Bench, trial: int) -> None:
    """Pictures, members of archives, tables and models of a size that nobody has."""
    faces, labelled = bench.folder / "faces", bench.folder / "labelled"
    bomb, kind = faces / "0.png", trial % 5
    if kind == 0:  # whichever library was imported first
        bomb.write_bytes(image_bomb())
        words = ["-c", "import sys, cv2; from fer_jax.__main__ import main; sys.exit(main())"]
        command = [sys.executable, *words, *bench.command("predict")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        checked(done.returncode, done.stderr, (0,))
    elif kind == 1:
        with zipfile.ZipFile(bench.folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in labelled.rglob("*.png"):
                archive.write(path, path.relative_to(labelled))
            archive.writestr("happy/bomb.png", bytes(300 * 2**20))
        data = bytearray((bench.folder / "x.zip").read_bytes())
        place = data.rindex(b"PK\x01\x02") + 24
        data[place : place + 4] = (1000).to_bytes(4, "little")
        (bench.folder / "x.zip").write_bytes(data)
        ended(*(one.replace("labelled", "x.zip") for one in bench.command("build")), codes=(0,))
    elif kind == 2:
        rows = "0.png,happy\n" * (storage.MAX_ROWS + 1)
        (labelled / "manifest.csv").write_text("path,label\n" + rows)
        ended(*bench.command("build"), says="rows")
    elif kind == 3:
        bomb.write_bytes(b"")
        os.truncate(bomb, 200 * 2**30)
        ended(*bench.command("predict"), codes=(0,))
        rows = (bench.folder / "out" / "ledger.csv").read_text()
        assert "file over 64 MiB" in rows, rows
    else:
        ended(*bench.command("export", "exported"), codes=(0,))
        os.truncate(bench.folder / "exported" / "model.onnx", 200 * 2**30)
        command = bench.command("predict") + ["--engine=onnxruntime"]
        command[2] = f"--model={bench.folder / 'exported'}"
        ended(*command)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Waits until something is true while a process runs."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"ended too early: {process.communicate()}")
        time.sleep(0.01)


def two_at_once(bench: Bench, trial: int) -> None:
    """The second of two equal commands is refused while the first runs; the rows are there once."""
    verb = ("predict", "synthesize", "evaluate", "collect")[trial % 4]
    command = bench.command(verb)
    lock = bench.folder / ("run/predictions" if verb == "evaluate" else "out") / storage.LOCK_FILE
    first = start(command)
    wait_for(lambda: lock.is_file() and lock.read_text(), first)
    os.kill(first.pid, signal.SIGSTOP)
    second = start(command)
    _, errors = second.communicate(timeout=ENDS_WITHIN_S)
    os.kill(first.pid, signal.SIGCONT)
    _, others = first.communicate(timeout=ENDS_WITHIN_S)
    checked(second.returncode, errors, says=f"in use by process {first.pid}")
    checked(first.returncode, others, (0, 1))  # 1: the link of `collect` leads nowhere
    third = start(command)
    checked(third.wait(ENDS_WITHIN_S), third.communicate()[1], (first.returncode,))
    for table in lock.parent.glob("*.csv"):
        rows = table.read_text().splitlines()
        assert len(set(rows)) == len(rows), f"{table.name} has rows twice"


def low_limit(bench: Bench, trial: int) -> None:
    """Too little address space, too few processes, or closed streams."""
    bench.folder.chmod(0o777)
    if trial % 3 == 0:
        before, says = f"ulimit -v {bench.random.randint(500, 4000) * 1024}", "ulimit -v"
    elif trial % 3 == 1:
        before, says = f"ulimit -u {bench.random.randint(1, 60)}", "ulimit -u"
    else:
        before, says = ("exec <&- >&-", "exec >&- 2>&-", "exec <&- >&- 2>&-")[trial // 3 % 3], ""
    if trial % 3 == 1 and os.geteuid() == 0:  # whom that limit does not bind
        capabilities = "+dac_override,+dac_read_search"
        before += f"\nset -- setpriv --reuid={NOBODY} --inh-caps={capabilities} "
        before += f'--ambient-caps={capabilities} "$@"'
    verb = "predict" if not says else bench.random.choice(("predict", "train", "evaluate"))
    process = start(bench.command(verb), before=before)
    _, errors = process.communicate(timeout=ENDS_WITHIN_S)
    checked(process.returncode, errors, (2,) if says else (0,), says)


def taken_port(bench: Bench, trial: int) -> None:
    """The port of the first process, or of the page, is taken or is none."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        port = (number, 0, 65536, "x", -1)[trial % 5]
        settings = {"COORDINATOR": f"127.0.0.1:{port}", "PROCESSES": "2", "PROCESS": "0"}
        variables = " ".join(f"FER_JAX_{key}={value}" for key, value in settings.items())
        process = start(bench.command("train"), before=f"export {variables}")
        began = time.monotonic()
        _, errors = process.communicate(timeout=ENDS_WITHIN_S)
        checked(process.returncode, errors, says="" if port == number else "FER_JAX_COORDINATOR")
        assert time.monotonic() - began < 60


def serve(run: Path, waiting_s: int) -> None:
    """Serves the page of a run, with a detector that takes each picture for a face."""
    process.keep_freed_memory()
    recognizer.make_detector = lambda *_, **__: (
        lambda image, size: [
            Face((0.0, 0.0, float(image.shape[1]), float(image.shape[0])), 0.9, None)
        ]
    )
    with page.listen("127.0.0.1", 0) as listening, contextlib.suppress(KeyboardInterrupt):
        model = recognizer.load(run)
        page.warm_up(model)
        print(listening.getsockname()[1], flush=True)
        make_server(model, page.LIMITS._replace(waiting_s=waiting_s)).run(sockets=[listening])


@contextlib.contextmanager
def serving(bench: Bench, waiting_s: int = 2) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serves the page in a process; yields it and its port. It must not print anything."""
    limited = ["bash", "-c", 'ulimit -Sn 1024; exec "$@"', "bash"]
    command = [
        *limited,
        sys.executable,
        __file__,
        "serve",
        str(bench.folder / "run"),
        str(waiting_s),
    ]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as server:
        assert server.stdout and server.stderr
        try:
            yield server, int(server.stdout.readline())
        finally:
            server.send_signal(signal.SIGINT)
            printed = server.communicate(timeout=ENDS_WITHIN_S)[1]
        assert not printed, printed[-1500:]


def ask(port: int, *, body: bytes = b"", path: str = "/picture", source: str = "127.0.0.1") -> int:
    """Returns the status of the answer to a GET, or to a POST of a body."""
    there = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    with contextlib.closing(there):
        there.request("POST" if body else "GET", path if body else "/", body or None)
        response = there.getresponse()
        response.read()
        return response.status


POST = b"POST /picture HTTP/1.1\r\nHost: localhost\r\n"
MALFORMED = (
    *(
        b"GET / HTTP/1.1\r\nHost:%s\r\n\r\n" % host
        for host in (b"", b" [", b" a b", b" \xff", b" :")
    ),
    *(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: %s\r\n\r\n" % o
        for o in (b"null", b"\xff", b"[")
    ),
    *(
        b"%sContent-Length: %s\r\n\r\nabc" % (POST, n)
        for n in (b"-1", b"x", b"1e3", b"3, 4", b"9" * 99)
    ),
    *(POST + b"Transfer-Encoding: chunked\r\n\r\n" + c for c in (b"zz\r\n", b"-1\r\n", b"f" * 99)),
    POST + b"Transfer-Encoding: gzip\r\n\r\nabc",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET / HTTP/1.1\nHost: localhost\n\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example:80\r\n\r\n",
    b"GET /%00%ff/../.. HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    bytes(2**16),
)


def malformed_requests(bench: Bench, trial: int) -> None:
    """Requests that break HTTP's rules: an answer below 500, or the connection ends; in time."""
    with serving(bench) as (_, port):
        for request in MALFORMED:
            data = bytearray(request)
            if trial:
                data[bench.random.randrange(min(99, len(data)))] = bench.random.randrange(256)
            answer = b""
            with socket.create_connection(("127.0.0.1", port), timeout=20) as sending:
                with contextlib.suppress(ConnectionError):
                    sending.sendall(data)
                    while part := sending.recv(2**16):
                        answer += part
            assert not answer or answer[9:10] in b"234" or answer[9:12] == b"503", answer[:99]
        assert ask(port) == 200


def slow_clients(bench: Bench, trial: int) -> None:
    """Connections that send a byte now and then are let go, and another address is served."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2**16), most))
    with serving(bench, waiting_s=20) as (_, port), contextlib.ExitStack() as stack:
        slow = []
        for number in range(1500):  # more than files may be open
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with contextlib.suppress(ConnectionError):
                one.sendall(POST + b"Content-Length: 99\r\n\r\n" if number % 2 else POST[:20])
            one.setblocking(False)
            slow.append(one)
        began, longest = time.monotonic(), 0.0
        while slow and time.monotonic() - began < 120:
            asked = time.monotonic()
            assert ask(port, source="127.0.0.2") == 200
            longest = max(longest, time.monotonic() - asked)
            slow = [one for one in slow if drips(one)]
            time.sleep(0.2)
        assert not slow, f"{len(slow)} are still connected"
        assert longest < 5, f"another client waited {longest:.1f} s"


def drips(slow: socket.socket) -> bool:
    """Sends a byte; returns whether the connection is still open."""
    try:
        slow.send(b"a")
        return bool(slow.recv(2**16))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def many_uploads(bench: Bench, trial: int) -> None:
    """200 uploads at once: each gets an answer."""
    bodies = [cv2.imencode(".png", picture(n, 400))[1].tobytes() for n in range(8)]
    with serving(bench) as (_, port), ThreadPoolExecutor(200) as pool:
        asked = [pool.submit(ask, port, body=bodies[n % 8]) for n in range(200)]
        assert {one.result() for one in asked} <= {200, 503}
        assert ask(port, body=bodies[0]) == 200


def many_requests(bench: Bench, trial: int) -> str:
    """2,000 requests: the server's memory stays flat."""
    bodies = [cv2.imencode(".png", picture(n, 40 * n))[1].tobytes() for n in range(1, 9)]
    seen = []
    with serving(bench) as (server, port):
        for number in range(1, 2001):
            body = bodies[number % 8] if number % 3 else b"these are words"
            assert ask(port, body=body) == (200 if number % 3 else 400)
            if number in (200, 2000):
                status = Path(f"/proc/{server.pid}/status").read_text()
                seen.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
    assert seen[1] < 1.05 * seen[0], f"{seen} MiB"
    return f"{seen[0]:.0f} MiB after 200 requests, {seen[1]:.0f} MiB after 2,000"


IDLES = """
import sys, time
from pathlib import Path
import cv2
began = time.monotonic()
if sys.argv[2] == "export":
    from fer_jax.__main__ import main
    assert not main(["export", f"--workdir={sys.argv[1]}/run", f"--out={sys.argv[1]}/idle"])
else:
    import fer_jax
    model = fer_jax.load(f"{sys.argv[1]}/run", sys.argv[2])
    list(model.stream([cv2.imread(f"{sys.argv[1]}/faces/0.png")], faces="crop"))
time.sleep(max(1, 60 + began - time.monotonic()))
"""


def idle_network(bench: Bench, trial: int) -> None:
    """What is loaded, predicts, exports or serves for a minute sends nothing to anywhere."""
    what = ("jax", "onnxruntime", "openvino", "export", "page")[trial % 5]
    log, temporary = bench.folder / "trace", bench.folder / "temporary"
    temporary.mkdir()
    words = [__file__, "serve", str(bench.folder / "run"), "20"]
    if what != "page":
        words = ["-c", IDLES, str(bench.folder), what]
    trace = ["strace", "-f", "-qq", f"--output={log}", "--trace=connect,sendto,sendmsg,sendmmsg"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        [*trace, sys.executable, *words], cwd=ROOT, env=environment, **pipes
    ) as process:
        assert process.stdout
        if what == "page":
            port = int(process.stdout.readline())
            assert ask(port) == 200
            time.sleep(60)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children), signal.SIGINT)
        _, errors = process.communicate(timeout=10 * ENDS_WITHIN_S)
        assert process.returncode == 0, errors[-1500:]
    attempts = [line for line in log.read_text().splitlines() if "AF_INET" in line]
    assert not attempts, attempts[:5]
    assert not list(temporary.iterdir()), list(temporary.iterdir())


LEFTOVER = re.compile(r"\.(building|exporting)_|\.tmp|\.partial$|\.ses$|^\.clips$")


def leftovers(bench: Bench, trial: int) -> None:
    """A command is killed while it writes; the next one of the same leaves only its results."""
    verb = ("build", "export", "predict", "synthesize")[trial % 4]
    command, out = bench.command(verb), bench.folder / "out"
    first = start(command)
    wait_for(lambda: out.exists() or first.poll() is not None, first)
    time.sleep(bench.random.uniform(0, 1))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    ended(*command, codes=(0,))
    files = [path for path in out.rglob("*") if path.is_file() and path.name != storage.LOCK_FILE]
    left = [str(path) for path in out.rglob("*") if LEFTOVER.search(path.name)]
    assert files and not left, left
    modes = {path.stat().st_mode for path in files}
    assert len(modes) == 1, [oct(mode) for mode in modes]


def main(kind: str, first: int, count: int, folder: Path) -> None:
    """Runs trials of one kind, and prints what they return."""
    world = folder / "world"
    if not (folder / "finished").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()):
            make_world(world)
        (folder / "finished").touch()
    for trial in range(first, first + count):
        bench = Bench(folder / "trial", random.Random(f"{kind} {trial}"))
        shutil.rmtree(bench.folder, ignore_errors=True)
        shutil.copytree(world, bench.folder)
        file = bench.folder / "run" / "environment.json"
        file.write_text(file.read_text().replace(str(world), str(bench.folder)))
        try:
            note = globals()[kind](bench, trial)
        except BaseException:
            print(f"trial {trial} of {kind}, files in {bench.folder}", file=sys.stderr)
            raise
        if note:
            print(note)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    kind, *rest = sys.argv[1:]
    if kind == "serve":
        serve(Path(rest[0]), int(rest[1]))
    else:
        main(kind, int(rest[0]), int(rest[1]), Path(rest[2]))
