"""The port of an inference engine: plain data goes in, and one `EngineStep` comes out for each engine step."""

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
    """The reason why an engine stopped working on a request."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """The options by which tokens are drawn. Counts start with the output, whichever worker generated its first
    token.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Number of likeliest tokens that are kept; 0 keeps the whole vocabulary."""
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
    """Name that is unique within the engine: the worker appends the attempt to the client's id."""
    token_ids: tuple[int, ...] = field(repr=False)
    """The prompt and, at its end, `generated_tokens` tokens of output that exist already."""
    generated_tokens: int
    sampling: SamplingOptions
    export_kv: bool = False
    """Whether to finish after one token and hold the KV cache under a lease."""
    kv_source: KvHandle | None = None
    """Handle of a KV cache to pull; whatever it does not cover is computed here."""
    deadline_in_s: float | None = None
    """Seconds left until the next token is due, negative if it is late; None without a promise."""
    tpot_s: float | None = None
    """Seconds per output token that were promised; None without a promise."""
    best_effort: bool = False
    """Whether the request must make no promised one late."""
    application: str = ""
    """Name that the client gives its application; empty if none. Drafts fare alike within an application."""
    cache_salt: str = field(default="", repr=False)
    """Salt of the prefix cache: KV blocks are found again only by requests of the same salt. Empty: of no salt."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of one token at one place of the output."""

    token_id: int
    logprob: float
    rank: int
    """Place among all tokens by likelihood; 1 is the likeliest."""


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """The durations of one request's beginning, and what became of its KV cache."""

    wait_s: float
    """Seconds from its submission until the engine first scheduled it; a KV transfer is included."""
    run_s: float
    """Seconds from then until its first output."""
    cached_tokens: int = 0
    """Number of tokens found in the prefix cache of this engine."""
    kv_pull: KvPull | None = None
    """The transfer that brought the KV cache; None if it was computed here."""
    kv_recompute_reason: str = ""
    """Reason why the KV cache was computed here although a pull was asked for; empty if it was not, or none was."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The output of one engine step for one request."""

    request_id: str
    token_ids: tuple[int, ...] = field(repr=False)
    logprobs: tuple[tuple[TokenLogprob, ...], ...] = field(default=(), repr=False)
    """One tuple for each token, if asked for: the chosen token first, then the likeliest."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    kv: KvHandle | None = None
    """Handle of the KV cache, on the output that ends an exporting prefill."""
    timings: RequestTimings | None = None
    """Timings, on the first output of the request that has tokens or ends it."""
    prefilled_tokens: int = 0
    """Number of prompt tokens that are computed now, on an output without tokens whose step computed part of the
    prompt."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The requests and KV blocks that an engine holds at one moment."""

    running_requests: int
    waiting_requests: int
    kv_blocks_total: int
    kv_blocks_used: int
    """Number of blocks that running requests and leases hold; cached blocks that nobody holds are free."""
    kv_blocks_leased: int


@dataclass(frozen=True, slots=True)
class Scheduling:
    """The scheduler's expectation of one step, and counts of what it has done since the engine started."""

    predicted_s: float = 0.0
    """Seconds that the step was expected to take; 0 if nothing was expected."""
    bound_s: float = 0.0
    """Seconds that 99 % of such steps were expected not to exceed, by which steps are composed; 0 if nothing was
    expected."""
    compose_s: float = 0.0
    """Seconds that it took to compose the step."""
    preempted: int = 0
    """Number of times that a request gave up its KV for another."""
    held: int = 0
    """Number of times that a running request sat a step out."""
    contracts_missing: int = 0
    """Number of requests treated as best effort because they came without a contract."""
    contracts_malformed: int = 0
    """Number of requests treated as best effort because their contract makes no sense."""
    drafted: int = 0
    """Number of draft tokens that were verified."""
    accepted: int = 0
    """Number of draft tokens that were right."""


@dataclass(frozen=True, slots=True)
class EngineStep:
    """The report of one engine step. Steps that did nothing are not reported."""

    step: int
    duration_s: float
    shape: StepShape
    outputs: tuple[RequestOutput, ...]
    load: EngineLoad
    scheduling: Scheduling = field(default_factory=Scheduling)


@dataclass(frozen=True, slots=True)
class RequestRejected:
    """The news that the engine did not take a request, or failed on it alone."""

    request_id: str
    invalid: bool
    """Whether the request itself is at fault, so that no other engine would take it."""
    detail: str


@dataclass(frozen=True, slots=True)
class LeaseClosed:
    """The news that the lease on an exported KV cache has ended and its blocks are free."""

    lease_id: str
    outcome: LeaseOutcome


EngineEvent = EngineStep | RequestRejected | LeaseClosed


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The facts of an engine that do not change while it lives."""

    engine_epoch: str
    """Name of this start of the engine; no other start has the same."""
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
    """Seconds that an exported KV cache is held."""
    performance: PerformanceCoefficients
    emulated: bool
    max_step_s: float = math.inf
    """Seconds that no step is composed to exceed, whatever it computes."""
    kv_address_json: str = ""
    """Place where leases on its KV caches are claimed, as in `KvHandle.transfer_params_json`; empty if nowhere."""


class EngineDeadError(Exception):
    """The engine is gone, and its worker has to be started again."""


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
        """Return what the engine holds, as last heard from it."""
        ...

    def events(self) -> AsyncIterator[EngineEvent]:
        """Yield everything that happens, in order, to the only consumer there may be.

        Raises:
            EngineDeadError: the engine died.
        """
        ...

    async def shutdown(self) -> None:
        """Stop the engine and every process it started. Idempotent."""
        ...


class EngineStartError(Exception):
    """The engine cannot serve with this configuration."""
