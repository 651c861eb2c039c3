"""Files whose content is taken whole: nothing else is read, and nothing waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.identity.regular_file import RegularFileError, read_regular_file


def test_a_file_up_to_the_bound_also_by_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"12345")
    link.symlink_to(file)
    assert read_regular_file(link, 5) == b"12345"
    with pytest.raises(RegularFileError, match="more than 4 bytes"):
        read_regular_file(file, 4)


@pytest.mark.timeout(30)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for path in (pipe, tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(RegularFileError, match="no regular file"):
            read_regular_file(path, 5)
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "none", 5)
