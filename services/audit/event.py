"""One event of the audit log, and the line that it becomes."""

from __future__ import annotations

import enum
import json
import time
from dataclasses import dataclass

from services.identity.principal import ANYBODY, Principal
from services.network.credentials import hide_credentials
from services.shown import clipped

MAX_CHARACTERS = 256
"""Characters of one field at most: a request id has up to 128, and details are sentences."""


HOST = Principal("host", "", frozenset())
"""Whoever may send signals to the process or write its files: the operating system has checked that, and does not tell
who it was."""


class EventKind(enum.StrEnum):
    """What happened. Each kind has a rate of its own, so that many events of one kind hide none of another."""

    AUTHENTICATION = "authentication"
    """A call without a credential, or with one that is not, or no longer, valid. The target is the method or path."""
    PERMISSION = "permission"
    """A call of a known caller who may not do this. The target is the method, the path or the request id."""
    QUOTA = "quota"
    """A call beyond a quota of the caller's tenant. The target is the request id; the detail names the quota."""
    CANCEL = "cancel"
    """A request was ended by its id, with `Cancel` or vLLM's `Abort`. The target is the request id."""
    DRAIN = "drain"
    """A worker or router stops taking requests. The target is its id; the detail says what asked for it."""
    KEY = "key"
    """API keys were made, revoked or read again. The target is the name of the key, or the file."""
    LOGIN = "login"
    """Somebody signed in at the console, or tried to. The target is the console."""
    REGISTRATION = "registration"
    """A worker was not let into the registry, or a record there was not believed. The target is the worker's id."""
    SESSION = "session"
    """A router wanted the session of another one with a worker. The target is the router's id."""
    LEASE = "lease"
    """A KV cache was asked for by somebody who may not have it, or offered at a false address. The target is the lease
    as it was named, or the worker that offered it."""
    CERTIFICATE = "certificate"
    """A certificate or key was read again. The target is the file."""


class Outcome(enum.StrEnum):
    """How it ended."""

    DONE = "done"
    """It was done as asked."""
    REFUSED = "refused"
    """It was not allowed, or made no sense."""
    FAILED = "failed"
    """It was allowed, and could not be done."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the audit log tells. Texts are shortened to `MAX_CHARACTERS` when they are written."""

    kind: EventKind
    outcome: Outcome
    target: str
    """Name of what it was done to; its kind says of what sort that is."""
    who: Principal = ANYBODY
    peer: str = ""
    """Host from which the call came, which may be a gateway's; empty where there is no call."""
    detail: str = ""
    """Why, in words without anything that a client sent as prompt or credential."""
    trace_id: str = ""

    def line(self, process: str, unix_s: float) -> str:
        """Return the event as one JSON object, without a line break and in ASCII.

        Escapes keep control characters of a client's texts from terminals and from parsers of lines.
        """
        fields: dict[str, object] = {
            "time": timestamp(unix_s),
            "process": process,
            "event": self.kind.value,
            "outcome": self.outcome.value,
            "target": _shown(self.target),
            "who": _shown(self.who.name),
            "authenticated": self.who.checked,
        }
        for name, text in (
            ("tenant", self.who.tenant),
            ("peer", self.peer),
            ("detail", self.detail),
            ("trace_id", self.trace_id),
        ):
            if text:
                fields[name] = _shown(text)
        return json.dumps(fields)


def suppressed_line(process: str, unix_s: float, kind: EventKind, outcome: Outcome, count: int) -> str:
    """Return the line that stands for `count` events of one kind and outcome that came too fast to be told apart."""
    fields = {
        "time": timestamp(unix_s),
        "process": process,
        "event": kind.value,
        "outcome": outcome.value,
        "suppressed": count,
    }
    return json.dumps(fields)


def timestamp(unix_s: float) -> str:
    """Return a moment as `2026-01-31T12:00:00.123Z`."""
    whole_s = int(unix_s)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole_s))}.{int((unix_s - whole_s) * 1000):03d}Z"


def _shown(text: str) -> str:
    return hide_credentials(clipped(text, MAX_CHARACTERS))
