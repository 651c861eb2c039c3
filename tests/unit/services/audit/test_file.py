"""The file of the audit log: shared, rotated, and never larger than it may be."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from services.audit.file import KEPT_FILES, AuditFile, AuditFileError


def test_lines_are_in_the_file_when_write_returns_and_only_its_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("before\n")
    path.chmod(0o600)
    file = AuditFile(path, 1000)
    file.write(["one", "two"])
    assert path.read_text() == "before\none\ntwo\n"
    fresh = tmp_path / "fresh.jsonl"
    AuditFile(fresh, 1000).write(["one"])
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o600


def test_a_full_file_is_moved_aside_and_old_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path, 20)
    for number in range(10):
        file.write([f"line {number:04d}!"])
    files = {name.name: name.read_text() for name in tmp_path.iterdir()}
    assert files["audit.jsonl"] == "line 0009!\n"
    assert files["audit.jsonl.1"] == "line 0008!\n"
    assert files[f"audit.jsonl.{KEPT_FILES}"] == "line 0005!\n"
    assert len(files) == 1 + KEPT_FILES


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path, 1000)
    file.write(["one"])
    path.rename(tmp_path / "moved")
    file.write(["two"])
    path.unlink()
    file.write(["three"])
    assert (tmp_path / "moved").read_text() == "one\n"
    assert path.read_text() == "three\n"


def _append(path: Path, name: str, count: int) -> None:
    file = AuditFile(path, 400)
    for number in range(count):
        file.write([f"{name} {number:03d}"])


def test_processes_that_share_a_file_lose_no_line_while_it_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    # Together 1,080 bytes: three files of at most 400, of which none is dropped.
    writers = [context.Process(target=_append, args=(path, name, 60)) for name in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    files = list(tmp_path.iterdir())
    assert max(file.stat().st_size for file in files) <= 400
    assert len(files) > 1
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{name} {number:03d}" for name in "abc" for number in range(60))


def test_a_path_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(AuditFileError, match=r"log\.audit: .*nowhere.*No such file"):
        AuditFile(tmp_path / "nowhere" / "audit.jsonl", 1000)


def test_a_write_that_fails_is_an_error_of_the_audit_log(tmp_path: Path) -> None:
    file = AuditFile(tmp_path / "audit.jsonl", 1000)
    file.close()
    with pytest.raises(AuditFileError, match=os.strerror(9)):
        file.write(["one"])
