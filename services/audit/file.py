"""The file of the audit log, which several processes of one host may share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

KEPT_FILES = 4
"""Older files that are kept beside the current one, as `PATH.1` (the newest of them) to `PATH.4`."""


class AuditFileError(Exception):
    """The file of the audit log cannot be opened or written; the message names it."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"log.audit: {path}: {error.strerror or error}")


class AuditFile:
    """Appends lines to a file, and begins another when it has reached its size.

    Processes that share the file take turns by a lock on it. A file that somebody else moved away (`logrotate`) is left
    alone, and the next line begins another under the name.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """
        Args:
            max_bytes: size at which a file is full; a single line may go beyond it.

        Raises:
            AuditFileError: the file cannot be opened.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor = self._open()

    def write(self, lines: Sequence[str]) -> None:
        """Append lines, and hand them to the operating system before this returns.

        Raises:
            AuditFileError: they could not be written.
        """
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            self._lock_current()
            try:
                if 0 < os.fstat(self._descriptor).st_size > self._max_bytes - len(content):
                    self._rotate()
                    self._reopen()
                    self._lock_current()
                _write_all(self._descriptor, content)
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise AuditFileError(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _open(self) -> int:
        try:
            # Names of callers and of what they did are not for every user of the host.
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditFileError(self._path, error) from error

    def _reopen(self) -> None:
        fresh = self._open()
        os.close(self._descriptor)
        self._descriptor = fresh

    def _lock_current(self) -> None:
        """Lock the file that has the name at this moment: another process may have begun it while this one waited."""
        while True:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if self._is_current():
                return
            self._reopen()

    def _is_current(self) -> bool:
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        held = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def _rotate(self) -> None:
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
