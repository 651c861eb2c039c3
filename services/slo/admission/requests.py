"""The requests that admission decides about: what was asked for, and how far each admitted one has come."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.slo.contract import Contract


class PromptBlocks(Protocol):
    """Identities of the blocks that a prompt begins with."""

    def of(self, block_tokens: int) -> Sequence[Hashable]:
        """Return one identity for each full block of the prompt.

        Two prompts have the same identity at a position if and only if they are equal up to the end of that block. The
        last token of a prompt belongs to no block, because an engine always computes it.
        """
        ...


class NoBlocks:
    """A prompt that shares its beginning with no other."""

    def of(self, block_tokens: int) -> Sequence[Hashable]:
        return ()


NO_BLOCKS = NoBlocks()


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a request asks for, apart from its contract. None of it changes while the request lives."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    """Output tokens after which the request ends in any case."""
    tenant: str = ""
    application: str = ""
    """What the client says it is; output lengths are alike within an application."""
    expected_output_tokens: int | None = None
    """What the client expects; None if it did not say."""
    blocks: PromptBlocks = NO_BLOCKS


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that waits for its verdict."""

    facts: RequestFacts
    contract: Contract
    """The contract as asked for: a slowdown is still one."""
    arrival_s: float
    task_due_s: float | None = None
    """When the whole task that it belongs to must be done; None without such a deadline."""

    @property
    def request_id(self) -> str:
        return self.facts.request_id


class Progress(enum.Enum):
    """How far an admitted request has come."""

    QUEUED = "queued"
    """It waits in the router for its prefill worker."""
    PREFILLING = "prefilling"
    HANDOVER = "handover"
    """Its first token came elsewhere; its decode worker was given it and has produced nothing yet."""
    DECODING = "decoding"


class TrackedRequest(Protocol):
    """An admitted request as its owner keeps it. Admission reads it and never writes it.

    The owner calls `AdmissionCore.filed` after `progress`, a worker, `guaranteed`, `planned` or `rank_s` changed.
    """

    @property
    def facts(self) -> RequestFacts: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def prompt_worker_id(self) -> str:
        """The worker that computes its prompt, or did; while it is queued, the one it waits for."""
        ...

    @property
    def decode_worker_id(self) -> str:
        """The worker that decodes it, or will."""
        ...

    @property
    def guaranteed(self) -> bool:
        """Whether its client was promised its contract."""
        ...

    @property
    def planned(self) -> bool:
        """Whether the plan has room for it: it is guaranteed, or has waited so long that it was given room."""
        ...

    @property
    def rank_s(self) -> float:
        """Its place among prompts: they are computed in this order, as if each were due then."""
        ...

    @property
    def submitted_s(self) -> float:
        """When a worker was given it last."""
        ...

    @property
    def prefilled_tokens(self) -> int:
        """Tokens of its context that its prefill worker has computed or is thought to have cached."""
        ...

    @property
    def generated_tokens(self) -> int: ...
    @property
    def next_due_s(self) -> float | None:
        """When its next token is due; None without a target."""
        ...

    @property
    def tightest_tpot_s(self) -> float | None:
        """The tightest TPOT of its contract from here on; None without a target."""
        ...


def context_tokens(request: TrackedRequest) -> int:
    """Return the length of prompt and output so far."""
    return request.facts.prompt_tokens + request.generated_tokens


def promised_tpot_s(request: TrackedRequest) -> float | None:
    """Return the TPOT that the request is promised from here on; None if it is promised none."""
    return request.tightest_tpot_s if request.guaranteed else None


def prefills_at(request: TrackedRequest, worker_id: str) -> bool:
    """Return whether its prompt is still to be computed on that worker."""
    waits = request.progress is Progress.QUEUED or request.progress is Progress.PREFILLING
    return waits and request.prompt_worker_id == worker_id
