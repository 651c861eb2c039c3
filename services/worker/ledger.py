"""Which of the engine's requests belongs to whom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LedgerEntry:
    """One request inside the engine."""

    engine_request_id: str
    owner: str
    """Key of the session that submitted it."""
    request_id: str
    attempt: int
    aborting: bool = False
    """Its tokens interest nobody any more; the engine has yet to let go."""


class RequestLedger:
    """Every request the engine has, from its submission until its last event."""

    def __init__(self) -> None:
        self._by_engine_id: dict[str, LedgerEntry] = {}

    def __len__(self) -> int:
        return len(self._by_engine_id)

    @staticmethod
    def engine_request_id(owner: str, request_id: str, attempt: int) -> str:
        """Unique in the engine: the owner's key is unique among sessions, a session has each attempt once."""
        return f"{owner}/{request_id}/{attempt}"

    def open(self, owner: str, request_id: str, attempt: int) -> LedgerEntry:
        entry = LedgerEntry(self.engine_request_id(owner, request_id, attempt), owner, request_id, attempt)
        self._by_engine_id[entry.engine_request_id] = entry
        return entry

    def find(self, engine_request_id: str) -> LedgerEntry | None:
        return self._by_engine_id.get(engine_request_id)

    def close(self, engine_request_id: str) -> None:
        self._by_engine_id.pop(engine_request_id, None)

    def owned_by(self, owner: str) -> list[LedgerEntry]:
        return [entry for entry in self._by_engine_id.values() if entry.owner == owner]
