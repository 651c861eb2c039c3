"""One request of the emulated engine, and what a step leaves of it."""

from __future__ import annotations

from dataclasses import dataclass

from services.engine.emulated.tokens import TokenStream
from services.engine.kv.handle import KvHandle, KvPull
from services.engine.protocol import EngineRequest, RequestOutput, RequestTimings
from services.slo.composer import SchedulableRequest, TokenDeadlines


@dataclass(frozen=True, slots=True)
class Export:
    """A KV cache that a finished prefill leaves behind; its blocks are leased."""

    tokens: int
    blocks: int
    context_digest: str


@dataclass(frozen=True, slots=True)
class Progress:
    """An output of a step, and the KV cache to lease with it."""

    output: RequestOutput
    export: Export | None = None


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """A request from its submission to its last output."""

    request: EngineRequest
    stream: TokenStream
    submitted_s: float
    kv_source: KvHandle | None
    """Handle of the KV cache that is still to be pulled; None once it is here, or is computed here."""
    deadlines: TokenDeadlines
    schedulable: SchedulableRequest
    """The request as the composer sees it, kept up to date."""
    aborted: bool = False
    reported: bool = False
    first_scheduled_s: float | None = None
    kv_pull: KvPull | None = None
    kv_recompute_reason: str = ""

    def note_computed(self, tokens: int) -> None:
        """Note that the KV of the first `tokens` tokens is there."""
        self.schedulable.computed_tokens = tokens
        self.schedulable.pending_tokens = self.stream.context_tokens - tokens

    def note_token(self, now_s: float) -> None:
        """Note that a token was drawn."""
        self.deadlines.note_tokens(1, now_s)
        self.schedulable.decoding = True
        self.schedulable.pending_tokens = self.stream.context_tokens - self.schedulable.computed_tokens
        self.schedulable.due_s, self.schedulable.wanted_s = self.deadlines.due_s, self.deadlines.wanted_s

    def first_timings(self, now_s: float) -> RequestTimings | None:
        """Return the timings of the request; None if an output has carried them already."""
        if self.reported:
            return None
        self.reported = True
        scheduled_s = now_s if self.first_scheduled_s is None else self.first_scheduled_s
        return RequestTimings(
            wait_s=scheduled_s - self.submitted_s,
            # A step counts from when the one before ended, which a busy event loop composes it after.
            run_s=max(0.0, now_s - scheduled_s),
            kv_pull=self.kv_pull,
            kv_recompute_reason=self.kv_recompute_reason,
        )
