"""Files that are whole or absent, tables with a torn last line, checksums, differences, locks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_jax import storage
from fer_jax.errors import InputError


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
    assert storage.find_corruption(tmp_path) == "inner/b is not as it was written"
    (tmp_path / "inner" / "b").unlink()
    assert storage.find_corruption(tmp_path) == "inner/b is missing"
    (tmp_path / "inner" / "b").write_bytes(b"b" * 1000)
    (tmp_path / "c").touch()
    assert storage.find_corruption(tmp_path) == "SHA256SUMS does not name c"


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


def test_a_lock_leaves_no_empty_folder(tmp_path: Path):
    with storage.lock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
