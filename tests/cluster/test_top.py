"""`slos-serve top` in a terminal of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from deploy.local.ports import free_port
from tests.support.cluster import ClusterUnderTest, greedy
from tests.support.eventually import COMMAND_PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0


@dataclass(slots=True)
class Screen:
    """A program and the terminal it writes to."""

    process: subprocess.Popen[bytes]
    terminal: int
    text: str = field(default="")

    def wait_for(self, *words: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not all(word in self.text for word in words):
            assert time.monotonic() < deadline_s, f"{words} did not show; this did:\n{self.text[-3000:]}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self.terminal, 65536).decode(errors="replace")

    def exit_code(self) -> int:
        deadline_s = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline_s:
            # A program whose output nobody takes cannot end.
            if select.select([self.terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    os.read(self.terminal, 65536)
        return self.process.wait(1)


@contextlib.contextmanager
def top(*arguments: str) -> Iterator[Screen]:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "150", "LINES": "60"}
    command = [sys.executable, "-m", "cli", "top", *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        yield Screen(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_it_shows_the_cluster_live_and_quits_on_q(emulated: ClusterUnderTest) -> None:
    emulated.wait_ready(4)
    request = greedy(list(range(20, 60)), 4)
    request.contract.profile = "tool_use"
    emulated.generate(request)
    with top("--address", emulated.address, "--interval", "0.2") as screen:
        screen.wait_for("prefill-0", "decode-1", "tool_use", "emulated engines", "q quits")
        os.write(screen.terminal, b"q")
        assert screen.exit_code() == 0


def test_it_says_that_the_router_is_away_and_waits_for_it() -> None:
    with top("--address", f"127.0.0.1:{free_port()}", "--interval", "0.2") as screen:
        screen.wait_for("no router answers")
        assert screen.process.poll() is None
        screen.process.send_signal(signal.SIGINT)
        assert screen.exit_code() == 0


def test_once_is_for_scripts(emulated: ClusterUnderTest) -> None:
    command = [sys.executable, "-m", "cli", "top", "--once", "--address"]
    outcome = subprocess.run(
        [*command, emulated.address], capture_output=True, text=True, check=False, timeout=COMMAND_PATIENCE_S
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert "decode workers" in outcome.stdout
    assert "\x1b" not in outcome.stdout
    away = subprocess.run(
        [*command, f"127.0.0.1:{free_port()}"], capture_output=True, text=True, check=False, timeout=COMMAND_PATIENCE_S
    )
    assert away.returncode == 1
    assert "no router answers" in away.stderr
