"""Sessions of browsers at the console, kept in the router's memory, and the limit on attempts to sign in."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

MAX_SESSIONS = 256
"""Sessions at most; a further one ends the oldest."""
SESSION_S = 12 * 3600.0
"""Seconds after which a session ends, however much it is used: a working day."""
TOKEN_BYTES = 32
"""Bytes of randomness in the cookie of a session, which nobody guesses."""
MAX_FAILURES = 5
"""Failed attempts to sign in that one host may make at once."""
FAILURE_REST_S = 12.0
"""Seconds after which a host has one more attempt, so that there are five in a minute."""
MAX_HOSTS = 1024
"""Hosts whose failed attempts are remembered; the one that failed longest ago is forgotten first."""


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who has signed in."""

    authorization: str = field(repr=False)
    """Credential as a header has it, which is checked again with every request: it may be revoked meanwhile."""
    until_s: float
    """Time at which the session ends, on the console's clock."""


class Sessions:
    """Keeps a bounded number of sessions, by the hashes of their cookies."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, authorization: str, now_s: float) -> str:
        """Begin a session and return its cookie."""
        cookie = secrets.token_urlsafe(TOKEN_BYTES)
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.popitem(last=False)
        self._sessions[_hash(cookie)] = Session(authorization, now_s + SESSION_S)
        return cookie

    def find(self, cookie: str, now_s: float) -> Session | None:
        """Return the session of a cookie; None if there is none, or not any more."""
        session = self._sessions.get(_hash(cookie))
        if session is not None and now_s >= session.until_s:
            self.close(cookie)
            return None
        return session

    def close(self, cookie: str) -> None:
        """End a session, if there is one."""
        self._sessions.pop(_hash(cookie), None)


class LoginLimit:
    """Limits how often one host may fail to sign in. Hosts are told apart, so that nobody locks others out."""

    def __init__(self) -> None:
        self._allowed_at_s: OrderedDict[str, float] = OrderedDict()
        """Time by host at which it has all of its attempts again; each attempt that fails adds `FAILURE_REST_S`."""

    def wait_s(self, host: str, now_s: float) -> float:
        """Return the seconds until a host may try to sign in; 0 if it may now."""
        full_s = self._allowed_at_s.get(host, now_s)
        return max(0.0, full_s - now_s - (MAX_FAILURES - 1) * FAILURE_REST_S)

    def tries(self, host: str, now_s: float) -> None:
        """Note that a host tries to sign in, before it is known whether it may: others may try meanwhile."""
        self._allowed_at_s[host] = max(now_s, self._allowed_at_s.get(host, now_s)) + FAILURE_REST_S
        self._allowed_at_s.move_to_end(host)
        while len(self._allowed_at_s) > MAX_HOSTS:
            self._allowed_at_s.popitem(last=False)

    def succeeded(self, host: str) -> None:
        """Take back what `tries` noted."""
        if host in self._allowed_at_s:
            self._allowed_at_s[host] -= FAILURE_REST_S


def _hash(cookie: str) -> bytes:
    """Return what a cookie is looked up by, so that the time of a look-up says nothing about other cookies."""
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
