"""What a starting cluster waits for, and what it remembers of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.local.start_times import FILE, Awaited, StartTimes, StartWatch


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Start:
    """One start of a cluster with two workers of a kind and a router."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.told: list[Sequence[Awaited]] = []
        self.watch = StartWatch(StartTimes(directory), self.told.append, self.clock)
        for name, kind in (("prefill-0", "worker"), ("prefill-1", "worker"), ("router", "router")):
            self.watch.begin(name, kind, "starts")
            self.clock.now_s += 1

    def after(self, seconds: float, *ready: str) -> bool:
        self.clock.now_s += seconds
        return self.watch.look(ready)


def test_what_is_not_ready_is_waited_for_since_it_was_started(tmp_path: Path) -> None:
    start = Start(tmp_path)
    assert not start.after(5, "router")
    assert start.told[-1] == [Awaited("prefill-0", "starts", 8.0, None), Awaited("prefill-1", "starts", 7.0, None)]


def test_the_end_comes_with_the_last_and_leaves_nothing_to_wait_for(tmp_path: Path) -> None:
    start = Start(tmp_path)
    assert not start.after(5, "router", "prefill-1")
    assert start.after(2, "prefill-0")
    assert start.told[-1] == []


def test_the_next_start_knows_how_long_the_slowest_of_each_kind_took(tmp_path: Path) -> None:
    first = Start(tmp_path)
    first.after(1, "router")
    first.after(10, "router", "prefill-1")
    first.after(30, "router", "prefill-0", "prefill-1")
    second = Start(tmp_path)
    second.after(1)
    assert [one.usual_s for one in second.told[-1]] == [44.0, 44.0, 2.0]


def test_a_start_that_failed_tells_that_the_waiting_is_over_and_remembers_nothing(tmp_path: Path) -> None:
    start = Start(tmp_path)
    start.after(5, "router")
    start.watch.give_up()
    assert not start.told[-1]
    assert StartTimes(tmp_path).usual_s("router") is None


def test_other_kinds_are_kept(tmp_path: Path) -> None:
    StartTimes(tmp_path).keep({"router": [3.0]})
    StartTimes(tmp_path).keep({"gateway": [1.0, 2.0]})
    assert (StartTimes(tmp_path).usual_s("router"), StartTimes(tmp_path).usual_s("gateway")) == (3.0, 2.0)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"router": "soon"}'])
def test_a_file_that_cannot_be_read_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    times = StartTimes(tmp_path)
    assert times.usual_s("router") is None
    times.keep({"router": [4.0]})
    assert StartTimes(tmp_path).usual_s("router") == 4.0


def test_times_that_cannot_be_written_stop_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    StartTimes(tmp_path / "absent").keep({"router": [4.0]})
    assert "cannot be kept" in caplog.text
