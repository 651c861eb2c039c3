"""A real Redis that only lets the users of one cluster in."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from deploy.local.ports import free_port
from deploy.local.redis_server import guarded_redis_command
from deploy.redis_users import acl_lines, password_file
from services.config.redis import redis_connection
from services.config.settings import RedisSettings
from services.state.acl import RedisRole, user_name
from services.state.connection import StateConnection

START_TIMEOUT_S = 60.0


class GuardedRedis:
    """Has the users of the cluster whose prefix it was given."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.prefix = prefix
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self.command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        users = acl_lines(self.prefix, self._directory)
        self.command = guarded_redis_command(self.port, self._directory, users)
        self._process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
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

    def connection(self, role: RedisRole) -> StateConnection:
        """Return a connection as a process of a role has it."""
        return redis_connection(
            RedisSettings(
                url=self.url,
                username=user_name(self.prefix, role),
                password_file=password_file(self._directory, role),
                timeout_s=30.0,
            )
        )
