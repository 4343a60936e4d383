"""Files that are whole or absent, tables with a torn last line, checksums, differences, locks."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from fer_jax import storage
from fer_jax.errors import InputError
from fer_jax.forms import Maybe


def test_a_failed_write_keeps_the_old_file_and_no_other(tmp_path: Path):
    file = tmp_path / "a.json"
    storage.write_atomically(file, "old")
    with pytest.raises(ZeroDivisionError), storage.replacing(file) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as raised:
        storage.write_atomically(tmp_path / "new" / "a.txt", "text")
    assert raised.value.filename == str(tmp_path / "new" / "a.txt")
    assert raised.value.errno == errno.ENOSPC


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path):
    file = tmp_path / "table.csv"
    storage.write_table(file, ("name", "value"), [{"name": 'a, "b"\nc', "value": 0.1}])
    storage.append_table(file, ("name", "value"), [{"name": "é", "value": float("nan")}, {}])
    assert storage.read_table(file, ("name",)) == [
        {"name": 'a, "b"\nc', "value": "0.1"},
        {"name": "é", "value": ""},
        {"name": "", "value": ""},
    ]
    with pytest.raises(InputError, match="lacks the columns other"):
        storage.read_table(file, ("other",))


@pytest.mark.parametrize("kept", [1, 5, 9, 12])
def test_a_torn_last_line_is_no_row(tmp_path: Path, kept: int):
    file = tmp_path / "table.csv"
    file.write_bytes(b"a,b\n1,2\n3,4\n"[:kept])
    rows = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}][: {1: 0, 5: 0, 9: 1, 12: 2}[kept]]
    assert storage.read_table(file) == rows
    storage.drop_torn_line(file)
    storage.append_table(file, ("a", "b"), [{"a": 5, "b": 6}])
    assert storage.read_table(file) == [*rows, {"a": "5", "b": "6"}]


def test_a_line_with_too_few_values_is_named(tmp_path: Path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(InputError, match="line 3: 1 values, not 2"):
        storage.read_table(tmp_path / "t.csv")


def test_an_append_that_fails_leaves_the_table_as_it_was(tmp_path: Path):
    file = tmp_path / "table.csv"
    storage.append_table(file, ("a",), [{"a": 1}])
    before = file.read_bytes()
    # A limit on the size of files acts in the middle of a write, as a full disk does.
    program = (
        "import resource, signal, sys; from pathlib import Path; from fer_jax import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "storage.append_table(Path(sys.argv[1]), ('a',), [{'a': 'x' * 1000}])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True
    )
    assert "File too large" in ended.stderr and str(file) in ended.stderr
    assert file.read_bytes() == before


def test_checksums_find_what_changed(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "inner" / "b").write_bytes(b"b" * 1000)
    assert "has no SHA256SUMS" in storage.find_corruption(tmp_path)
    storage.write_checksums(tmp_path)
    assert storage.find_corruption(tmp_path) == ""
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "inner" / "b").write_bytes(b"b" * 999 + b"c")
    assert storage.find_corruption(tmp_path) == "inner/b has changed"
    (tmp_path / "inner" / "b").unlink()
    assert storage.find_corruption(tmp_path) == "inner/b is missing"
    (tmp_path / "inner" / "b").write_bytes(b"b" * 1000)
    (tmp_path / "c").touch()
    assert storage.find_corruption(tmp_path) == "c is not in SHA256SUMS"


def test_differences_name_both_values():
    found = storage.differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "d": 4}, ignored=("c",))
    assert found == ["b (was 2, now 3)", "d (was None, now 4)"]


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path):
    folder = tmp_path / "run"
    program = (
        "import sys, time; from pathlib import Path; from fer_jax import storage\n"
        "with storage.lock(Path(sys.argv[1])):\n"
        "    print('locked', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=f"in use by process {holder.pid} on "):
        with storage.lock(folder):
            pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with storage.lock(folder):
        (folder / "file").touch()
    assert folder.is_dir()


def test_a_lock_ends_with_its_block_also_after_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), storage.lock(tmp_path):
        raise ZeroDivisionError
    with storage.lock(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        with storage.lock(tmp_path):
            pass
    assert (tmp_path / storage.LOCK_FILE).read_text() == ""


def test_a_lock_leaves_no_empty_folder(tmp_path: Path):
    with storage.lock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path):
    host = storage.process_name().rpartition("_")[0]
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "inner").mkdir()
    left = [f".a.{host}_{ended.pid}-7.tmp.csv", f"inner/.b.{host}_{ended.pid}-7.tmp"]
    stay = [
        f".a.{host}_{os.getpid()}-7.tmp.csv",  # of a process that runs
        f".a.other{host}_{ended.pid}-7.tmp.csv",  # of another host
        f"a.{host}_{ended.pid}.tmp.csv",
    ]
    for name in (*left, *stay):
        (tmp_path / name).touch()
    with storage.lock(tmp_path):
        pass
    assert [name for name in (*left, *stay) if (tmp_path / name).exists()] == stay


def test_a_cell_with_any_end_of_line_is_one_cell(tmp_path: Path):
    cells = ["a\rb", "c\nd", "e\r\n", "\r", 'f"\r', "plain"]
    storage.write_table(tmp_path / "t.csv", ("x", "y"), [{"x": c, "y": 1.0} for c in cells])
    data = (tmp_path / "t.csv").read_bytes()
    assert data.startswith(b"x,y\n") and data.endswith(b"\nplain,1\n")
    assert [row["x"] for row in storage.read_table(tmp_path / "t.csv")] == cells


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://me:word@host/x.h5", "https://***@host/x.h5"),
        ("s3://key@bucket/x?X-Amz-Signature=ab12&y=1", "s3://***@bucket/x?X-Amz-Signature=***&y=1"),
        ("https://host/x?sig=ab%2F&se=2026", "https://host/x?sig=***&se=2026"),
        ("--config.api_key=ab12", "--config.api_key=***"),
        ("HF_TOKEN=ab12 PASSWORD:xyz", "HF_TOKEN=*** PASSWORD:***"),
        ("demo/controlled", "demo/controlled"),
        ("train[:90%]+a@b", "train[:90%]+a@b"),
    ],
)
def test_secrets_are_not_written(text: str, kept: str):
    assert storage.redact_secrets(text) == kept


@pytest.mark.parametrize(
    "form",
    [
        *("https://me:{}@host/x.h5", "s3://me:a@{}@host/x", "https://me:a/{}@host/x?y=1"),
        *("https://{}@host/x", "--config.api-key={}", "api_key: {}", "X-Api-Key: {}"),
        *("AccountKey={};EndpointSuffix=x", "private_key={}", '{{"private_key": "{}"}}'),
        *("password: {}", "password={}", "PGPASSWORD='{}'", "--password {}", "--hf_token {} --x=1"),
        *("Authorization: Bearer {}", "authorization: Basic {}", "curl -H 'Bearer {}'"),
        *("https://h/x?sv=1&sig={}&se=2", "https://h/x?X-Amz-Credential={}&y", "client_secret={}"),
        *("Cookie: session={}; a=b", "aws_secret_access_key = {}", "passwd:{}", "pwd={};"),
        *("Authorization: token {}", "Proxy-Authorization: Digest {}", "subscription_key={}"),
        *("Ocp-Apim-Subscription-Key: {}", "KAGGLE_KEY={}", "pass={}", "https://h/x?key={}&y"),
        *("https://h/x?auth={}", "https://h/x?code={}", "api_key%3D{}", "token%22%3A%22{}"),
        *("curl -u me:{} https://h", "sshpass -p {} ssh h", "machine h login me password {}"),
        *("https://hooks.slack.com/services/T0/B0/{}", "https://h/api/webhooks/12/{}"),
        *("password='it\\'s {}'", '{{\\"password\\": \\"{}\\"}}'),
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    ],
)
@hypothesis.given(secret=st.text("abcXYZ0189+=._~-", min_size=8, max_size=24))
def test_no_form_of_a_secret_is_written(form: str, secret: str):
    hypothesis.assume(secret[0] not in "-=" and not form.startswith(secret))
    written = storage.redact_secrets(f"before {form.format(secret)} after")
    assert secret not in written and written.startswith("before ")


@pytest.mark.parametrize(
    "token",
    [
        *("ghp_", "github_pat_", "hf_", "glpat-", "xoxb-", "AKIA", "ASIA", "sk-", "sk_live_"),
        *("AIza", "ya29.", "npm_", "pypi-", "dckr_pat_", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0."),
    ],
)
def test_a_known_token_is_not_written_wherever_it_stands(token: str):
    assert storage.redact_secrets(f"see {token}{'a1B2' * 5} here") == "see *** here"


@pytest.mark.parametrize(
    "text",
    [
        *("https://host:8080/@person/clip.mp4", "https://host/a@b", "--cookies=cookies.txt"),
        *("--config.seed=3 --workdir=runs/a", "train[:90%]+a@b", "tokens of a sentence"),
    ],
)
def test_what_is_no_secret_is_kept(text: str):
    assert storage.redact_secrets(text) == text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "not an object"),
        (b'{"a": Infinity}', "Infinity is no finite number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": "\xff"}', "invalid start byte"),
    ],
)
def test_a_damaged_json_file_is_one_line(content: bytes, says: str, tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"a.json' is damaged .*{says}.*; rebuild") as raised:
        storage.read_json(file, "rebuild")
    assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": "1"}, 'a cannot be "1"'),
        ({"a": True}, "a cannot be true"),
        ({"a": None}, "a cannot be null"),
        ({"a": 1.0}, "a cannot be 1.0"),
        ({"a": 1, "f": 1}, "f cannot be 1"),
        ({}, "it lacks 'a'"),
        ({"a": 1, "b": [{"c": "x"}, 5]}, r"b\[1\] cannot be 5"),
        ({"a": 1, "b": [{}]}, r"b\[0\] lacks 'c'"),
        ({"a": 1, "b": {}}, "b cannot be {}"),
        ({"a": 1, "d": {"e": [1]}}, r"d.e cannot be \[1\]"),
        ({"a": 1, "d": {"e": [1, "x"]}}, r'd.e\[1\] cannot be "x"'),
        ({"a": 1, "d": []}, r"d cannot be \[\]"),
    ],
)
def test_json_of_another_form_is_named(content: dict[str, Any], says: str, tmp_path: Path):
    form = {"a": int, "b?": [{"c": str}], "d?": Maybe({str: (int, int | None)})}
    form["f?"] = bool | str
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"a.json' is damaged .{says}.; rebuild$"):
        storage.read_json(file, "rebuild", form)
    for right in (
        {},
        {"b": []},
        {"d": None},
        {"d": {}},
        {"d": {"e": [1, None]}, "more": "x"},
        {"f": True},
    ):
        file.write_text(json.dumps({"a": 1} | right))
        assert storage.read_json(file, "rebuild", form) == {"a": 1} | right


def test_a_pipe_a_device_and_a_huge_file_are_not_read_as_json(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(storage.MAX_JSON_BYTES + 1)
    for name in ("pipe", "device", "huge"):
        with pytest.raises(InputError, match="not a file of at most 64 MiB"):
            storage.read_json(tmp_path / name)
    assert storage.read_json(tmp_path / "absent") == {}


@pytest.mark.parametrize("line", [b"{", b"[]", b"[" * 100_000, b'{"a": "\xff"}'])
def test_a_damaged_line_of_json_is_named(line: bytes, tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": NaN}\n' + line + b"\n")
    with pytest.raises(InputError, match="a.jsonl' is damaged .line 2: ") as raised:
        storage.read_json_lines(file)
    assert str(raised.value).count("\n") == 0
    file.write_bytes(b'{"a": 1}\n' + line)  # torn
    assert storage.read_json_lines(file) == [{"a": 1}]
    with pytest.raises(InputError, match="line 1: it lacks 'b'"):
        storage.read_json_lines(file, {"a": int, "b": int})


def test_no_pipe_is_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe' is damaged .not a file"):
        storage.read_json_lines(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe' is not a file, so nothing can be appended"):
        storage.append(tmp_path / "pipe", "line\n")
    os.mkfifo(tmp_path / storage.CHECKSUMS_FILE)
    assert "it has no SHA256SUMS" in storage.find_corruption(tmp_path)


def test_a_lock_without_its_file_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Opened while another process had it, which then removed it: a third may have a new one."""
    folder, flock = tmp_path / "out", storage.fcntl.flock

    def removed(*arguments: Any) -> None:
        flock(*arguments)
        (folder / storage.LOCK_FILE).unlink()

    with storage.lock(folder, keep_file=False):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    monkeypatch.setattr(storage.fcntl, "flock", removed)
    with pytest.raises(InputError, match="in use until now"), storage.lock(folder):
        pass


def test_a_lock_is_a_file_and_no_link(tmp_path: Path):
    kept = tmp_path / "kept"
    kept.write_text("of another")
    folder, lock = tmp_path / "run", tmp_path / "run" / storage.LOCK_FILE
    folder.mkdir()
    for place in (lambda: lock.symlink_to(kept), lambda: os.mkfifo(lock), lock.mkdir):
        place()
        with pytest.raises(InputError, match="/run/.lock' is not a file"), storage.lock(folder):
            pass
        shutil.rmtree(lock) if lock.is_dir() else lock.unlink()
    assert kept.read_text() == "of another"


def test_a_link_to_itself_leads_nowhere(tmp_path: Path):
    (tmp_path / "link").symlink_to("link")
    storage.check_links(tmp_path / "link")
    with pytest.raises(InputError, match="is a link out of the workdir"):
        storage.check_links(tmp_path)


def test_a_huge_file_of_lines_is_not_read(tmp_path: Path):
    path = tmp_path / "huge.jsonl"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(InputError, match="line 1 has over 64 MiB"):
        storage.read_json_lines(path)
    for read in (storage.drop_torn_line, storage.read_table):
        with pytest.raises(InputError, match="huge.jsonl' is over 512 MiB"):
            read(path)
