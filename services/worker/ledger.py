"""The requests of an engine, with the session that each belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from services.engine.protocol import RequestOutput, RequestTimings


@dataclass(slots=True)
class LedgerEntry:
    """One attempt at a request inside the engine."""

    engine_request_id: str
    owner: str
    """Key of the session that submitted it."""
    request_id: str
    attempt: int
    prompt_tokens: int = 0
    """Number of tokens that the request came with, tokens generated elsewhere included."""
    computes_prompt: bool = True
    """Whether the prompt is computed here, because no KV cache is pulled for it."""
    traceparent: str = ""
    tracestate: str = ""
    timings: RequestTimings | None = None
    """Timings that came with the first output; None before."""
    arrived_s: float = 0.0
    """Time of the submission. Times are on the worker's monotonic clock."""
    first_s: float = 0.0
    """Time of the first output with tokens; 0 before it."""
    last_s: float = 0.0
    """Time of the latest output with tokens; 0 before the first."""
    tokens: int = 0
    """Number of tokens generated here."""
    aborting: bool = False
    """Whether the request was aborted; the engine has yet to let go of it."""

    def note(self, output: RequestOutput, now_s: float) -> None:
        """Note the timings and the tokens of an output."""
        self.timings = output.timings or self.timings
        tokens = len(output.token_ids)
        if tokens:
            self.first_s = self.first_s if self.tokens else now_s
            self.last_s = now_s
            self.tokens += tokens


class RequestLedger:
    """All requests of the engine, each from its submission until its last event."""

    def __init__(self) -> None:
        self._by_engine_id: dict[str, LedgerEntry] = {}

    def __len__(self) -> int:
        return len(self._by_engine_id)

    @staticmethod
    def engine_request_id(owner: str, request_id: str, attempt: int) -> str:
        """Build the engine's id for an attempt at a request.

        It is unique in the engine, because session keys are unique and a session has each attempt once.
        """
        return f"{owner}/{request_id}/{attempt}"

    def open(self, entry: LedgerEntry) -> None:
        """Add a request that is about to be submitted."""
        self._by_engine_id[entry.engine_request_id] = entry

    def find(self, engine_request_id: str) -> LedgerEntry | None:
        """Return the entry of a request, or None if the engine does not have it."""
        return self._by_engine_id.get(engine_request_id)

    def close(self, engine_request_id: str) -> None:
        """Remove a request that the engine has let go of; unknown ids are ignored."""
        self._by_engine_id.pop(engine_request_id, None)

    def owned_by(self, owner: str) -> list[LedgerEntry]:
        """Return the requests of one session."""
        return [entry for entry in self._by_engine_id.values() if entry.owner == owner]
