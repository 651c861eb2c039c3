"""The file of API keys: JSON that is read strictly, replaced whole, and read again when it has changed."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from services.faults import read_json
from services.identity.api_key import ApiKey
from services.identity.regular_file import read_regular_file, stamp

MAX_KEYS = 10_000
"""Keys that one source holds at most (chosen: a few megabytes of memory)."""
MAX_FILE_BYTES = 8 * 1024 * 1024
"""Size of the largest file that is read: 10,000 keys with the longest names fit."""
POLL_S = 1.0
"""Seconds between two looks at the file: a revoked key is refused after that time."""

_log = logging.getLogger(__name__)


class KeyFileError(ValueError):
    """The keys cannot be read or written. The message names the file and the entry at fault, never its content."""


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    keys: Annotated[tuple[ApiKey, ...], Field(max_length=MAX_KEYS)]


_READER = TypeAdapter(_Content)


def parse_keys(text: str) -> dict[str, ApiKey]:
    """Return the keys in the text of a file, by their ids.

    Raises:
        KeyFileError: the text is no such file, or two entries have one id.
    """
    keys: dict[str, ApiKey] = {}
    for index, key in enumerate(read_json(_READER, text, KeyFileError).keys):
        if key.id in keys:
            raise KeyFileError(f"keys.{index}.id: {key.id} is the id of an earlier entry")
        keys[key.id] = key
    return keys


def read_keys(path: Path) -> dict[str, ApiKey]:
    """Return the keys in a file, by their ids.

    Raises:
        KeyFileError: the file cannot be read, is no regular one, is too large, or is no such file.
    """
    try:
        return parse_keys(read_regular_file(path, MAX_FILE_BYTES).decode())
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path}: not in UTF-8") from error
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from error


def write_keys(path: Path, keys: Iterable[ApiKey]) -> None:
    """Replace a file of keys at one stroke, so that no process reads half of it. Only its owner can read it.

    Raises:
        KeyFileError: the file cannot be written, or there are too many keys.
    """
    content = _Content.model_construct(version=1, keys=tuple(keys))
    if len(content.keys) > MAX_KEYS:
        raise KeyFileError(f"{path}: at most {MAX_KEYS} keys")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file is created with mode 0600.
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(number, "w") as file:
                file.write(content.model_dump_json(indent=2, exclude_defaults=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or error}") from error


class KeyFile:
    """The keys of one file, kept up to date. A file that has become unreadable leaves the keys as they were."""

    def __init__(
        self, path: Path, poll_s: float = POLL_S, read_again: Callable[[Path, str], None] | None = None
    ) -> None:
        """Read the file.

        Args:
            read_again: told of the file when it was read again, and of the fault if it could not be used; the fault is
                empty otherwise.

        Raises:
            KeyFileError: the file cannot be read, or is no such file.
        """
        self.faults = 0
        """Times that a changed file could not be used."""
        self._path = path
        self._poll_s = poll_s
        self._read_again = read_again
        self._seen = stamp(path)
        self._keys: Mapping[str, ApiKey] = read_keys(path)

    def find(self, key_id: str) -> ApiKey | None:
        """Return the key with an id; None if there is none."""
        return self._keys.get(key_id)

    async def run(self) -> None:
        """Read the file again whenever it has changed, until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            await self.look()

    async def look(self) -> None:
        """Read the file if it has changed since the last look."""
        seen = await asyncio.to_thread(stamp, self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = await asyncio.to_thread(read_keys, self._path)
        except KeyFileError as error:
            self.faults += 1
            _log.error("%s; the keys read before stay valid", error)
            fault = str(error)
        else:
            _log.info("%s: %d API keys", self._path, len(self._keys))
            fault = ""
        if self._read_again is not None:
            self._read_again(self._path, fault)
