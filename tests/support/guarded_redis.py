"""A real Redis that only lets the users of one cluster in."""

from __future__ import annotations

from pathlib import Path

from deploy.local.redis_server import guarded_redis_command
from deploy.redis_users import acl_lines, password_file
from services.config.redis import redis_connection
from services.config.settings import RedisSettings
from services.state.acl import RedisRole, user_name
from services.state.connection import StateConnection
from tests.support.redis_server import RedisServer


class GuardedRedis(RedisServer):
    """Has the users of the cluster whose prefix it was given."""

    def __init__(self, directory: Path, prefix: str) -> None:
        super().__init__(directory)
        self.prefix = prefix

    def command(self) -> list[str]:
        return guarded_redis_command(self.port, self._directory, acl_lines(self.prefix, self._directory))

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
