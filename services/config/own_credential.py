"""The credential that commands of this machine send to routers, from the environment or from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from services.config.environment import API_KEY_VARIABLE
from services.config.load import ConfigurationError

MAX_FILE_BYTES = 64 * 1024
"""Bytes of a file with a credential at most: a longer one holds something else."""


def own_credential(file: Path | None = None, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the API key or token in a file, or else the one in the environment; None: there is none.

    Args:
        environment: environment variables; None: those of this process.

    Raises:
        ConfigurationError: the file cannot be read, or holds not exactly one line. The message does not show it.
    """
    if file is None:
        return (os.environ if environment is None else environment).get(API_KEY_VARIABLE, "").strip() or None
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror or error}") from error
    words = content.split()
    if len(words) != 1 or len(content) > MAX_FILE_BYTES or not words[0].isascii():
        raise ConfigurationError(f"{file} holds no API key or token: one word is wanted, in ASCII")
    return words[0].decode("ascii")
