"""How requests reach a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from benchmarks.load.exchange import Exchange
from benchmarks.load.schedule import Planned
from benchmarks.requested_slo import RequestedSlo


class TargetError(Exception):
    """The server cannot be reached, or wants nothing of what is to be sent."""


class NotServedError(Exception):
    """One request got no whole answer."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RefusalError(NotServedError):
    """The server says no; `reason` is what binds."""


class FailureError(NotServedError):
    """Something went wrong; `reason` is its kind."""


Send = Callable[[Exchange], Awaitable[None]]
"""Carries one exchange from the moment of the call to its end.

Raises:
    NotServedError
"""


@dataclass(frozen=True, slots=True)
class Server:
    """What was found at the target."""

    model: str
    emulated: bool = False
    """Its tokens are made up and its times come from a model."""
    promises: bool = True
    """It answers contracts; others are held to them all the same."""


class Wire(Protocol):
    """One way to speak to a server."""

    async def look(self, slos: tuple[RequestedSlo, ...]) -> Server:
        """Make sure that requests with such contracts are understood.

        Raises:
            TargetError
        """

    def prepare(self, planned: Planned) -> Send:
        """Everything that can be done before it is time."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """`grpc://host:port`, several separated by commas, or `http://host:port/v1`; with an s: over TLS."""

    scheme: str
    rest: str
    """Addresses, or the rest of the URL without a final slash."""

    @property
    def encrypted(self) -> bool:
        return self.scheme.endswith("s")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.rest}"


def target_of(text: str) -> Target:
    """
    Raises:
        TargetError
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme not in {"grpc", "grpcs", "http", "https"} or not rest.strip("/"):
        raise TargetError(f"{text!r}: say grpc://host:port or http://host:port/v1")
    for address in rest.split(",") if scheme.startswith("grpc") else [rest]:
        try:
            parts = urlsplit(f"//{address}")
            complete = bool(parts.hostname) and (parts.port is not None or scheme.startswith("http"))
        except ValueError as error:
            raise TargetError(f"{text!r}: {error}") from error
        if not complete:
            raise TargetError(f"{text!r}: {address!r} has no port")
    return Target(scheme, rest.rstrip("/"))
