"""The program that injects faults: what it keeps of a trial that failed."""

import random
import sys
from pathlib import Path

import pytest
from faults import one_node


def test_the_whole_log_of_a_failed_trial_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As the program imports it, which is not started from here.
    monkeypatch.setitem(sys.modules, "one_node", one_node)
    from faults import on_dask

    monkeypatch.setitem(sys.modules, "on_dask", on_dask)
    from faults import faults as suite

    cause = "the cause, long before the end\n" + 5000 * "x"

    def fail(bench: suite.Bench, first: int, count: int) -> None:
        (bench.folder / "log.txt").write_text(cause)
        raise suite.FailedTrial(suite.end_of(bench.folder / "log.txt"))

    def write_nothing(bench: suite.Bench, first: int, count: int) -> None:
        raise suite.FailedTrial("no run was started")

    bench = suite.Bench(tmp_path, 0, random.Random(0))
    for name, run in (("kill -9", fail), ("corrupt record", write_nothing)):
        monkeypatch.setitem(suite.FAULTS, name, suite.FAULTS[name]._replace(run=run))
        assert suite.run_group(bench, name, 0, 1)["outcome"] == "FAILED"
    (kept,) = tmp_path.glob("failed_*.txt")
    assert kept.read_text() == cause
