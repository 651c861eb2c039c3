"""Texts that a person gives to a command: as an argument, or on standard input."""

from __future__ import annotations

import sys

import typer


class NotTextError(Exception):
    """What was given is not UTF-8; the message says where."""


def checked_text(text: str, name: str) -> str:
    """Return an argument, if it was UTF-8; Python keeps other bytes of a command line as surrogates.

    Raises:
        NotTextError
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotTextError(f"{name} is not UTF-8: see its character {error.start + 1}") from error
    return text


def standard_input() -> str:
    """Read all of standard input as UTF-8, whatever the locale; a byte-order mark is left out.

    Raises:
        NotTextError
    """
    content = typer.get_binary_stream("stdin").read() if sys.stdin is not None else b""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, line = error.object[error.start], error.object.count(b"\n", 0, error.start) + 1
        raise NotTextError(
            f"standard input is not UTF-8: line {line} has the byte 0x{byte:02x}; "
            "`iconv -f latin1 -t utf-8` converts, for example"
        ) from error
