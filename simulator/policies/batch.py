"""A step that a scheduler without promises fills, request by request."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.slo.composer import SchedulableRequest
from services.slo.kv_blocks import blocks_for
from services.slo.performance import StepShape
from simulator.engine import Engine


@dataclass(slots=True)
class Batch:
    """A step of an engine while it is filled. Satisfies `simulator.engine.Step`."""

    engine: Engine
    free_blocks: int
    places: int
    """Number of waiting requests that may still be let in."""
    grants: dict[str, int] = field(default_factory=dict)
    preempted: tuple[str, ...] = ()
    admitted: list[str] = field(default_factory=list)
    predicted_s: float = 0.0
    prefill_requests: int = 0
    prefill_tokens: int = 0
    pairs: float = 0.0
    """Attention pairs of the prompt chunks; see `StepShape`."""
    decodes: int = 0
    decode_tokens: int = 0
    context_tokens: int = 0
    drafts: int = 0
    """Longest draft that is verified, in tokens."""

    @classmethod
    def of(cls, engine: Engine) -> Batch:
        """Return an empty step of an engine."""
        running = sum([work.running for work in engine.works])
        return cls(engine, engine.free_blocks, engine.machine.limits.max_running_requests - running)

    @property
    def tokens(self) -> int:
        """Number of tokens in the step so far."""
        return self.prefill_tokens + self.decode_tokens

    @property
    def shape(self) -> StepShape:
        """What the step computes so far."""
        return StepShape(
            self.prefill_requests,
            self.prefill_tokens,
            self.pairs,
            self.decodes,
            self.decode_tokens,
            self.context_tokens,
            self.drafts,
        )

    def decode(self, work: SchedulableRequest, drafts: int = 0) -> None:
        """Add a token of a decode, and drafts to verify."""
        self.grants[work.request_id] = 1 + drafts
        self.decodes += 1
        self.decode_tokens += 1 + drafts
        self.context_tokens += work.computed_tokens
        self.drafts = max(self.drafts, drafts)

    def prefill(self, work: SchedulableRequest, tokens: int) -> None:
        """Add a chunk of a prompt."""
        self.grants[work.request_id] = tokens
        self.prefill_requests += 1
        self.prefill_tokens += tokens
        self.pairs += tokens * (work.computed_tokens + tokens / 2)

    def admit(self, work: SchedulableRequest) -> bool:
        """Let a waiting request in if there are blocks for its whole output, whose length these schedulers know.

        Returns whether it was let in.
        """
        request = self.engine.requests[work.request_id]
        tokens = request.offered.prompt_tokens + (0 if request.export else request.output_tokens)
        blocks = blocks_for(max(tokens, request.context_tokens), self.engine.machine.limits.block_tokens)
        if self.places < 1 or blocks > self.free_blocks:
            return False
        self.places -= 1
        self.free_blocks -= blocks
        self.admitted.append(work.request_id)
        return True


def decoding(work: SchedulableRequest) -> bool:
    """Return whether a request has its KV cache here and a single token to compute."""
    return work.running and work.pending_tokens == 1 and not work.pulls_kv
