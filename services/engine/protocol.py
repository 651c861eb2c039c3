"""The engine port: plain data in, one `EngineStep` per engine step out."""

from __future__ import annotations

import enum
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import KvHandle, KvPull, LeaseOutcome
from services.slo.performance import PerformanceCoefficients, StepShape


class FinishReason(enum.Enum):
    """Why an engine stopped working on a request."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are drawn. All counts start at the beginning of the output, whichever worker generated it."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One piece of work for an engine: a prefill, a continuation, or both."""

    request_id: str
    """Unique within the engine: the worker appends the attempt to the client's id."""
    token_ids: tuple[int, ...]
    """The prompt and, at its end, `generated_tokens` tokens of output that exist already."""
    generated_tokens: int
    sampling: SamplingOptions
    export_kv: bool = False
    """Finish after one token and hold the KV cache under a lease."""
    kv_source: KvHandle | None = None
    """Pull the KV cache from there; whatever it does not cover is computed here."""
    deadline_in_s: float | None = None
    """Time left until the next token is due, negative if late, None without a promise."""
    tpot_s: float | None = None
    best_effort: bool = False
    application: str = ""
    """What the client says it is; empty if it does not. Drafts fare alike within an application."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Durations from the moment the engine was given the request."""

    wait_s: float
    """Until the engine first scheduled it; for a pulled KV cache the transfer is included."""
    run_s: float
    """From then until its first output."""
    cached_tokens: int = 0
    kv_pull: KvPull | None = None
    kv_recompute_reason: str = ""
    """A pull was asked for, but the KV cache was computed here; why."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one engine step produced for one request."""

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    """One entry per token when asked for: the chosen token first, then the likeliest."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    kv: KvHandle | None = None
    """Set on the output that ends an exporting prefill."""
    timings: RequestTimings | None = None
    """Set on the first output of the request that has tokens or ends it."""
    prefilled_tokens: int = 0
    """Set on an output without tokens: the step computed part of the prompt, of which so much is computed now."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine holds at this moment."""

    running_requests: int
    waiting_requests: int
    kv_blocks_total: int
    kv_blocks_used: int
    """Of the total, blocks that running requests and leases hold; cached blocks nobody holds are free."""
    kv_blocks_leased: int


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What the scheduler expected of a step, and what it has done since the engine started."""

    predicted_s: float = 0.0
    """What the step was expected to take; 0 if nothing was expected."""
    bound_s: float = 0.0
    """What 99 % of such steps were expected not to exceed; steps are composed by it. 0 if nothing was expected."""
    compose_s: float = 0.0
    """What it took to compose the step."""
    preempted: int = 0
    """Times that a request gave up its KV for another."""
    held: int = 0
    """Times that a running request sat a step out."""
    contracts_missing: int = 0
    """Requests treated as best effort because they came without a contract."""
    contracts_malformed: int = 0
    """Or with one that makes no sense."""
    drafted: int = 0
    """Draft tokens verified."""
    accepted: int = 0
    """Of these, those that were right."""


@dataclass(frozen=True, slots=True)
class EngineStep:
    """One engine step. Steps that did nothing are not reported."""

    step: int
    duration_s: float
    shape: StepShape
    outputs: tuple[RequestOutput, ...]
    load: EngineLoad
    scheduling: Scheduling = field(default_factory=Scheduling)


@dataclass(frozen=True, slots=True)
class RequestRejected:
    """The engine did not take a request, or failed on it alone."""

    request_id: str
    invalid: bool
    """True: the request itself is at fault, and no other engine would take it."""
    detail: str


@dataclass(frozen=True, slots=True)
class LeaseClosed:
    lease_id: str
    outcome: LeaseOutcome


EngineEvent = EngineStep | RequestRejected | LeaseClosed


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What does not change while an engine lives."""

    engine_epoch: str
    """New with every start of the engine."""
    compatibility: Compatibility
    model: str
    max_context_tokens: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    kv_blocks_total: int
    kv_bytes_per_token: int
    max_step_tokens: int
    max_running_requests: int
    kv_lease_s: float
    performance: PerformanceCoefficients
    emulated: bool
    max_step_s: float = math.inf
    """No step is composed longer, whatever it computes."""


class EngineDeadError(Exception):
    """The engine is gone; its worker has to be started again."""


class Engine(Protocol):
    """An inference engine inside a worker process.

    `events` yields everything that happens, in order, to its only consumer, and raises `EngineDeadError` when the
    engine dies. The methods return as soon as the engine has the order; its effects come as events.
    """

    async def start(self) -> EngineFacts:
        """Load the model and be ready for `submit`. Called once.

        Raises:
            EngineStartError: the engine cannot serve with this configuration; the message says why.
        """
        ...

    async def submit(self, request: EngineRequest) -> None:
        """Queue a request. A request that cannot be taken comes back as `RequestRejected`."""
        ...

    async def abort(self, request_id: str) -> None:
        """Stop working on a request and free its blocks. Its last event is an output with `FinishReason.ABORT`.

        Unknown and finished requests are ignored.
        """
        ...

    async def release_kv(self, lease_id: str) -> None:
        """Give up a lease without a pull. Unknown and closed leases are ignored."""
        ...

    def load(self) -> EngineLoad:
        """What the engine holds, as last heard from it."""
        ...

    def events(self) -> AsyncIterator[EngineEvent]: ...

    async def shutdown(self) -> None:
        """Stop the engine and every process it started. Idempotent."""
        ...


class EngineStartError(Exception):
    """The engine cannot serve with this configuration."""
