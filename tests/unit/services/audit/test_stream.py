"""Noting never waits: a thread writes, and what it cannot take is counted."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services import audit
from services.audit import AuditFileError, Event, EventKind, Outcome
from services.audit.rates import Rates
from services.audit.stream import MAX_WAITING_LINES, SUMMARY_S, AuditStream
from tests.support.audit_log import AuditLog


class Disk:
    """Takes lines, once it may, unless it is full."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.free = threading.Event()
        self.free.set()
        self.full = False
        self.asked = threading.Event()

    def write(self, lines: Sequence[str]) -> None:
        self.asked.set()
        assert self.free.wait(30.0)
        if self.full:
            raise AuditFileError(Path("audit.jsonl"), OSError(28, "No space left on device"))
        self.lines += [json.loads(line) for line in lines]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def stream(disk: Disk, clock: Clock, *, burst: float = 1e6) -> AuditStream:
    rates = Rates(lines_per_s=1.0, burst_lines=burst)
    return AuditStream(disk.write, "router-1", rates=rates, clock=clock, wall_clock=lambda: 1_800_000_000.0)


def cancel(target: str) -> Event:
    return Event(EventKind.CANCEL, Outcome.DONE, target)


def test_events_are_written_in_their_order() -> None:
    disk = Disk()
    log = stream(disk, Clock())
    for number in range(50):
        log.note(cancel(f"r{number}"))
    assert log.flush(30.0)
    assert [line["target"] for line in disk.lines] == [f"r{number}" for number in range(50)]
    assert {line["process"] for line in disk.lines} == {"router-1"}
    assert log.noted == {EventKind.CANCEL: 50}
    log.close(30.0)


def test_a_disk_that_hangs_keeps_nobody_waiting_and_memory_bounded() -> None:
    disk = Disk()
    disk.free.clear()
    log = stream(disk, Clock())
    log.note(cancel("first"))
    assert disk.asked.wait(30.0)
    for number in range(MAX_WAITING_LINES + 100):
        log.note(cancel(f"r{number}"))
    assert not log.flush(0.0)
    assert log.left_out["backlog"] == 100
    disk.free.set()
    assert log.flush(30.0)
    assert len(disk.lines) == 1 + MAX_WAITING_LINES
    log.close(30.0)


def test_events_beyond_the_rate_are_counted_and_the_count_is_told() -> None:
    disk, clock = Disk(), Clock()
    log = stream(disk, clock, burst=3.0)
    for number in range(10):
        log.note(cancel(f"r{number}"))
    assert log.flush(30.0)
    assert (len(disk.lines), log.left_out["rate"], log.noted[EventKind.CANCEL]) == (3, 7, 10)
    clock.now_s += SUMMARY_S
    log.note(cancel("later"))
    assert log.flush(30.0)
    assert [line.get("target") for line in disk.lines[3:]] == ["later", None]
    summary = disk.lines[-1]
    assert (summary["event"], summary["outcome"], summary["suppressed"]) == ("cancel", "done", 7)
    log.close(30.0)


def test_the_end_tells_what_was_left_out() -> None:
    disk = Disk()
    log = stream(disk, Clock(), burst=1.0)
    for number in range(4):
        log.note(cancel(f"r{number}"))
    log.close(30.0)
    assert [line.get("suppressed") for line in disk.lines] == [None, 3]
    log.note(cancel("too late"))
    assert len(disk.lines) == 2


def test_a_full_disk_is_said_once_and_the_lines_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    disk.full = True
    log = stream(disk, Clock())
    for number in range(3):
        log.note(cancel(f"r{number}"))
        assert log.flush(30.0)
    assert log.left_out["disk"] == 3
    assert caplog.text.count("the audit log cannot be written") == 1
    disk.full = False
    log.note(cancel("r3"))
    log.close(30.0)
    assert [line["target"] for line in disk.lines] == ["r3"]
    assert "can be written again" in caplog.text


def test_without_a_file_the_lines_are_in_the_ordinary_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    audit.configure("router-1", None, 0)
    audit.note(EventKind.DRAIN, Outcome.DONE, "router-1")
    assert audit.flush(30.0)
    (record,) = [record for record in caplog.records if record.name == "slos-serve.audit"]
    line = json.loads(record.getMessage().removeprefix("audit "))
    assert (line["event"], line["process"]) == ("drain", "router-1")


def test_a_process_counts_what_it_notes(audit_log: AuditLog) -> None:
    audit.note(EventKind.KEY, Outcome.DONE, "ci")
    assert audit_log.told() == [("key", "done", "ci")]
    assert audit.noted()[EventKind.KEY] == 1
    assert audit.noted()[EventKind.LOGIN] == 0
    assert audit.left_out() == {"rate": 0, "backlog": 0, "disk": 0}
