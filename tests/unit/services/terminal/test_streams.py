"""Standard streams that are closed, or whose encoding lacks a character."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from services.terminal.console import make_console
console = make_console()
from services.terminal.streams import prepare_streams
prepare_streams()
print("caf\\u00e9 \\U0001f600")
console.print("caf\\u00e9")
print("end", file=sys.stderr)
assert sys.stdin.read() == ""
taken = os.open(os.devnull, os.O_RDONLY)
assert taken > 2, taken
"""


def outcome(redirections: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, PROGRAM],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("redirections", ["", ">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_nowhere(redirections: str) -> None:
    done = outcome(redirections, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.decode() == ("" if " >&-" in f" {redirections}" else "caf\u00e9 \U0001f600\ncaf\u00e9\n")


def test_a_character_that_a_pipe_cannot_carry_is_written_as_an_escape() -> None:
    done = outcome("", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"caf\\xe9 \\U0001f600\ncaf\\xe9\n")
