"""The connection to Redis, as the configuration asks for it."""

from __future__ import annotations

from urllib.parse import urlsplit

from services.config.settings import RedisSettings, Settings
from services.state.connection import StateConnection, StateTls, StateUrlError
from services.state.password_file import PasswordFile


def redis_options(settings: Settings) -> RedisSettings:
    """Return the options of Redis. At `rediss://`, unless they name files of their own, they are those of `[tls]`."""
    redis, tls = settings.redis, settings.tls
    own = redis.tls_ca is not None or redis.tls_certificate is not None or redis.tls_key is not None
    if own or tls.ca is None or not redis.url.startswith("rediss://"):
        return redis
    return redis.model_copy(update={"tls_ca": tls.ca, "tls_certificate": tls.certificate, "tls_key": tls.key})


def redis_connection(options: RedisSettings, *, logs_changes: bool = True) -> StateConnection:
    """Return a connection to the configured Redis, which is opened with the first command.

    Args:
        logs_changes: write a line when Redis goes and when it comes back.

    Raises:
        StateUrlError: the URL is not one of Redis, or other options do not go with it.
    """
    tls = _tls(options)
    if options.password_file is None:
        if options.username:
            raise StateUrlError("redis.username needs redis.password_file; or write both into redis.url")
        return StateConnection(options.url, options.timeout_s, tls=tls, logs_changes=logs_changes)
    if "@" in urlsplit(options.url).netloc:
        raise StateUrlError(
            "redis.url names a user or password, and so does redis.password_file: leave out one of them"
        )
    password = PasswordFile(options.username, options.password_file)
    return StateConnection(options.url, options.timeout_s, password=password, tls=tls, logs_changes=logs_changes)


def _tls(options: RedisSettings) -> StateTls:
    named = {name: getattr(options, name) for name in ("tls_ca", "tls_certificate", "tls_key")}
    used = {name: path for name, path in named.items() if path is not None}
    if used and not options.url.startswith("rediss://"):
        raise StateUrlError(f"redis.{next(iter(used))} needs a redis.url that begins with rediss://")
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise StateUrlError("redis.tls_certificate and redis.tls_key belong together; one of them is missing")
    for name, path in used.items():
        try:
            path.read_bytes()
        except OSError as error:
            raise StateUrlError(f"redis.{name}: {path}: {error.strerror or error}") from error
    return StateTls(options.tls_ca, options.tls_certificate, options.tls_key)
