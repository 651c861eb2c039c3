"""A real Redis (Valkey out of its wheel) on a free port of the loopback, stopped and started at will."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING

from deploy.local.ports import free_port
from deploy.local.redis_server import redis_command

if TYPE_CHECKING:
    from pathlib import Path

START_TIMEOUT_S = 60.0


class RedisServer:
    """Starts empty every time."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return redis_command(self.port, self._directory)

    def start(self) -> None:
        self._process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
