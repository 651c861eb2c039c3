"""Which of the engine's requests belongs to whom."""

from __future__ import annotations

from dataclasses import dataclass

from services.engine.protocol import RequestOutput, RequestTimings


@dataclass(slots=True)
class LedgerEntry:
    """One request inside the engine."""

    engine_request_id: str
    owner: str
    """Key of the session that submitted it."""
    request_id: str
    attempt: int
    prompt_tokens: int = 0
    """All that it came with, generated tokens included."""
    computes_prompt: bool = True
    """No KV cache is pulled for it."""
    traceparent: str = ""
    tracestate: str = ""
    timings: RequestTimings | None = None
    """As its first output brought them."""
    arrived_s: float = 0.0
    first_s: float = 0.0
    """When its first tokens came, on the worker's clock; meaningless before."""
    last_s: float = 0.0
    tokens: int = 0
    """Generated here."""
    aborting: bool = False
    """Its tokens interest nobody any more; the engine has yet to let go."""

    def note(self, output: RequestOutput, now_s: float) -> None:
        """An output came."""
        self.timings = output.timings or self.timings
        tokens = len(output.token_ids)
        if tokens:
            self.first_s = self.first_s if self.tokens else now_s
            self.last_s = now_s
            self.tokens += tokens


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

    def open(self, entry: LedgerEntry) -> LedgerEntry:
        self._by_engine_id[entry.engine_request_id] = entry
        return entry

    def find(self, engine_request_id: str) -> LedgerEntry | None:
        return self._by_engine_id.get(engine_request_id)

    def close(self, engine_request_id: str) -> None:
        self._by_engine_id.pop(engine_request_id, None)

    def owned_by(self, owner: str) -> list[LedgerEntry]:
        return [entry for entry in self._by_engine_id.values() if entry.owner == owner]
