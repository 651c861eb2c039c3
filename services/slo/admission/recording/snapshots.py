"""Requests in a recording: what was asked for, and what could be read of an admitted one at a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.slo.admission.requests import Progress, RequestFacts, TrackedRequest


@dataclass(frozen=True, slots=True)
class RecordedBlocks:
    """The blocks of a prompt under names that tell nothing of its tokens. Satisfies `PromptBlocks`."""

    by_size: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Names of its blocks, by the number of tokens in a block."""

    def of(self, block_tokens: int) -> Sequence[str]:
        """Return the names of its blocks; none for a size that was not recorded."""
        return self.by_size.get(block_tokens, ())


@dataclass(frozen=True, slots=True)
class RecordedFacts:
    """`RequestFacts` with recorded blocks."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    tenant: str
    application: str
    expected_output_tokens: int | None
    blocks: RecordedBlocks

    @property
    def facts(self) -> RequestFacts:
        """The facts as a core is told of them."""
        return RequestFacts(
            self.request_id,
            self.prompt_tokens,
            self.max_tokens,
            self.tenant,
            self.application,
            self.expected_output_tokens,
            self.blocks,
        )


@dataclass(frozen=True, slots=True)
class RequestSnapshot:
    """What a core reads of an admitted request at one moment: see `TrackedRequest`."""

    progress: Progress
    prompt_worker_id: str
    decode_worker_id: str
    guaranteed: bool
    planned: bool
    rank_s: float
    submitted_s: float
    prefilled_tokens: int
    generated_tokens: int
    next_due_s: float | None
    tightest_tpot_s: float | None

    @classmethod
    def of(cls, request: TrackedRequest) -> RequestSnapshot:
        """Return what can be read of a request now."""
        return cls(
            request.progress,
            request.prompt_worker_id,
            request.decode_worker_id,
            request.guaranteed,
            request.planned,
            request.rank_s,
            request.submitted_s,
            request.prefilled_tokens,
            request.generated_tokens,
            request.next_due_s,
            request.tightest_tpot_s,
        )


class ReplayedRequest:
    """An admitted request in a replay. Satisfies `TrackedRequest`."""

    def __init__(self, facts: RequestFacts, now: RequestSnapshot) -> None:
        self.facts = facts
        self.now = now

    @property
    def progress(self) -> Progress:
        return self.now.progress

    @property
    def prompt_worker_id(self) -> str:
        return self.now.prompt_worker_id

    @property
    def decode_worker_id(self) -> str:
        return self.now.decode_worker_id

    @property
    def guaranteed(self) -> bool:
        return self.now.guaranteed

    @property
    def planned(self) -> bool:
        return self.now.planned

    @property
    def rank_s(self) -> float:
        return self.now.rank_s

    @property
    def submitted_s(self) -> float:
        return self.now.submitted_s

    @property
    def prefilled_tokens(self) -> int:
        return self.now.prefilled_tokens

    @property
    def generated_tokens(self) -> int:
        return self.now.generated_tokens

    @property
    def next_due_s(self) -> float | None:
        return self.now.next_due_s

    @property
    def tightest_tpot_s(self) -> float | None:
        return self.now.tightest_tpot_s


Requests = dict[str, ReplayedRequest]
"""The admitted requests of a replay, by id."""
