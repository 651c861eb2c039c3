"""Entries of the request journal: the state of each request, as its router writes it to Redis."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from services.faults import read_json

_ENCODER = json.JSONEncoder(separators=(",", ":"))


class JournalEntryError(ValueError):
    """A text in Redis is no journal entry that a router of this version wrote."""


class RequestState(enum.Enum):
    """State of a request."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    HANDOVER = "handover"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the request has ended."""
        return self in (RequestState.DONE, RequestState.FAILED, RequestState.CANCELLED)


@dataclass(slots=True)
class JournalEntry:
    """The journal's knowledge of one request. Writing sends the entry as it is at that moment."""

    request_id: str
    router_id: str
    state: RequestState = RequestState.QUEUED
    attempt: int = 0
    """Number of times that the request was started again."""
    prefill_worker_id: str = ""
    prefill_engine_epoch: str = ""
    decode_worker_id: str = ""
    decode_engine_epoch: str = ""
    tokens_delivered: int = 0
    """Number of tokens handed to the client's stream."""

    def to_json(self, reservation: str) -> str:
        """Write the entry as one JSON object.

        Args:
            reservation: mark of whoever wrote it, by which a router recognises an entry of its own.
        """
        raw = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return _ENCODER.encode({**raw, "state": self.state.value, "reservation": reservation})

    @classmethod
    def from_json(cls, text: str) -> JournalEntry:
        """Read an entry. Unknown fields are ignored, missing ones have their defaults.

        Raises:
            JournalEntryError: the text is no entry.
        """
        return read_json(_READER, text, JournalEntryError)


_READER = TypeAdapter(JournalEntry)


class _Marked(TypedDict):
    reservation: str


_MARK_READER = TypeAdapter(_Marked)


def reservation_of(text: str) -> str | None:
    """Return the mark of whoever wrote an entry; None if the text is no entry that a router wrote."""
    try:
        return _MARK_READER.validate_json(text, strict=True)["reservation"]
    except ValidationError:
        return None


class JournalChanges(TypedDict, total=False):
    """Fields of an entry that change while its request lives."""

    state: RequestState
    attempt: int
    prefill_worker_id: str
    prefill_engine_epoch: str
    decode_worker_id: str
    decode_engine_epoch: str
    tokens_delivered: int
