"""What each role of the cluster may do in Redis, as users of its access control lists (ACL)."""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass

_CONNECTION = ("ping", "select", "hello")
"""Commands with which a connection is opened and watched over."""
_TOKEN = re.compile(r"[!#-&(-~]+")
"""A word of an ACL: printable ASCII without blanks and quotes."""
_GLOB = re.compile(r"([*?\[\]\\^-])")


class AclError(ValueError):
    """A prefix cannot be written into an access control list."""


class RedisRole(enum.StrEnum):
    """A part that a process plays in Redis."""

    ROUTER = "router"
    WORKER = "worker"
    GATEWAY = "gateway"
    """A gateway, which talks to Redis only to read the API keys that are kept there (`auth.keys_in_redis`)."""
    KEYS = "keys"
    """`slos-serve keys --redis`, which makes and revokes API keys."""


@dataclass(frozen=True, slots=True)
class _Access:
    """Keys and channels as patterns below the cluster's prefix, and commands, as ACLs name them."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    """Keys that are read as well as written."""
    channels: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    """Those that the role gives, and those in its scripts, which run with its rights. A role without scripts has no
    `eval`, for a script that never ends holds up the whole server."""


_ACCESS = {
    RedisRole.ROUTER: _Access(
        reads=("worker:*", "api-keys", "api-keys:version"),
        # Of the registry a router changes only the index, from which it takes ids whose records have expired.
        writes=("workers", "request:*", "quota:*", "secret:*"),
        channels=("cancel:*",),
        commands=(
            *("eval", "get", "mget", "set", "del", "pexpire", "time"),
            *("smembers", "srem", "hlen", "hvals", "hgetall", "hset", "hdel"),
            *("zadd", "zcard", "zremrangebyscore", "publish", "subscribe", "unsubscribe"),
        ),
    ),
    RedisRole.WORKER: _Access(
        writes=("worker:*", "workers"), commands=("eval", "get", "set", "del", "pttl", "sadd", "srem")
    ),
    RedisRole.GATEWAY: _Access(reads=("api-keys", "api-keys:version"), commands=("get", "hlen", "hvals")),
    RedisRole.KEYS: _Access(
        writes=("api-keys", "api-keys:version"),
        commands=("eval", "get", "set", "hexists", "hlen", "hset", "hdel", "hvals"),
    ),
}


def user_name(prefix: str, role: RedisRole) -> str:
    """Return the name of the Redis user of a role; clusters that share a server have users of their own.

    Raises:
        AclError: the prefix has blanks, quotes or characters beyond ASCII.
    """
    if not _TOKEN.fullmatch(prefix):
        raise AclError(
            f"redis.prefix {prefix!r} cannot be written into an ACL: printable ASCII without blanks or quotes"
        )
    return f"{prefix}-{role}"


def acl_line(prefix: str, role: RedisRole, password: str) -> str:
    """Return the line of an ACL file or a configuration file that defines the user of a role.

    It has the SHA-256 digest of the password and not the password.

    Raises:
        AclError: see `user_name`.
    """
    access, name = _ACCESS[role], user_name(prefix, role)
    below = _GLOB.sub(r"\\\1", prefix)
    rules = [
        f"#{hashlib.sha256(password.encode()).hexdigest()}",
        *(f"%R~{below}:{key}" for key in access.reads),
        *(f"~{below}:{key}" for key in access.writes),
        "resetchannels",
        *(f"&{below}:{channel}" for channel in access.channels),
        "-@all",
        *(f"+{command}" for command in (*_CONNECTION, *access.commands)),
    ]
    return " ".join(("user", name, "on", "sanitize-payload", *rules))


NOBODY = "user default off resetpass resetkeys resetchannels -@all"
"""Line that keeps everybody out who shows no name and password."""
