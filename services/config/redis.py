"""The connection to Redis, as the configuration asks for it."""

from __future__ import annotations

from urllib.parse import urlsplit

from services.config.settings import RedisSettings
from services.state.connection import StateConnection, StateUrlError
from services.state.password_file import PasswordFile


def redis_connection(options: RedisSettings, *, logs_changes: bool = True) -> StateConnection:
    """Return a connection to the configured Redis, which is opened with the first command.

    Args:
        logs_changes: write a line when Redis goes and when it comes back.

    Raises:
        StateUrlError: the URL is not one of Redis, or other options do not go with it.
    """
    if options.password_file is None:
        if options.username:
            raise StateUrlError("redis.username needs redis.password_file; or write both into redis.url")
        return StateConnection(options.url, options.timeout_s, logs_changes=logs_changes)
    if "@" in urlsplit(options.url).netloc:
        raise StateUrlError(
            "redis.url names a user or password, and so does redis.password_file: leave out one of them"
        )
    password = PasswordFile(options.username, options.password_file)
    return StateConnection(options.url, options.timeout_s, password=password, logs_changes=logs_changes)
