"""What a planning round is asked: workers as they are now, and candidates that want a promise.

Times are in seconds from now; nothing here reads a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from services.slo.planner.kernels.assignment import work_of
from services.slo.planner.kernels.compiled import Floats
from services.slo.planner.kernels.layout import (
    JOB_COLUMNS,
    RELEASE_AT_S,
    RELEASE_COLUMNS,
    RELEASE_KV_TOKENS,
    RELEASE_REQUESTS,
    RELEASE_TIER,
)
from services.slo.planner.standing import EVEN, OwedArrival, Standing
from services.slo.planner.worker_profile import WorkerProfile

HANDOVER_STEPS = 3.0
"""Decode steps from the first token to the second: receive at a step's end, read, notice, run. Chosen, until hand-overs
were measured: see `services.slo.transfer`."""


@dataclass(frozen=True, slots=True)
class PromisedPrefill:
    """A prefill that was promised already and has not ended."""

    deadline_s: float
    """Time by which the prefill is due; once it is past, or cannot be kept, it is due as soon as possible and binds
    nobody else."""
    prompt_tokens: int
    """Tokens of the prompt."""
    computed_tokens: int = 0
    """Tokens of the prompt that are in the cache or prefilled so far."""
    decode_tier: int = -1
    """Tier in which the request decodes on the same worker afterwards; -1 if it decodes elsewhere, where it counts as
    running."""
    kv_tokens: int = 0
    """Context that the request will reach here, at the promised quantile of its length; it is counted in the worker's
    promises."""


@dataclass(frozen=True, slots=True)
class Release:
    """Running requests that are expected to end."""

    at_s: float
    """Time at which they end."""
    requests: int
    """Number of requests."""
    kv_tokens: int
    """KV tokens that come free."""
    tier: int = -1
    """Tier of the requests; -1 if they are not promised any rate."""


@dataclass(frozen=True)
class Worker:
    """One worker as the planner sees it. Keep the object while nothing changes: its arrays are built once."""

    worker_id: str
    """Id of the worker."""
    profile: WorkerProfile
    """How fast the worker steps."""
    prefills: bool
    """Whether it may prefill."""
    decodes: bool
    """Whether it may decode."""
    kv_tokens_free: int
    """KV tokens that are promised to nobody, with everyone at the promised quantile of their length."""
    kv_tokens: int
    """KV tokens that the worker has in all."""
    running: tuple[int, ...] = ()
    """Number of promised decodes of each tier, those on their way here included; empty: none."""
    context_tokens: tuple[int, ...] = ()
    """Tokens that the contexts of each tier will reach in all."""
    slots_free: int = 1_000_000
    """Number of requests that it may decode beside those it has."""
    handover_steps: float = HANDOVER_STEPS
    """Decode steps from the first token to the second when a request is handed over to it, the transfer apart."""
    busy_s: float = 0.0
    """Seconds until its present step ends."""
    ahead_s: float = 0.0
    """Seconds of its next step that running decodes leave because they are ahead: see `services.slo.planner.ahead`."""
    promised: tuple[PromisedPrefill, ...] = ()
    """Prefills that were promised already."""
    releases: tuple[Release, ...] = ()
    """Running requests that will end; a handful of groups serve as well as every single request."""

    def __post_init__(self) -> None:
        tiers = len(self.profile.tiers.tpot_s)
        for name in ("running", "context_tokens"):
            counts = getattr(self, name)
            if counts and len(counts) != tiers:
                raise ValueError(f"{self.worker_id}: {name} needs one entry for each of {tiers} tiers")
            if any(count < 0 for count in counts):
                raise ValueError(f"{self.worker_id}: {name} must not be negative: {counts}")
        if not (math.isfinite(self.busy_s) and self.busy_s >= 0):
            raise ValueError(f"{self.worker_id}: busy_s must be finite and not negative: {self.busy_s}")
        if not (math.isfinite(self.ahead_s) and self.ahead_s >= 0):
            raise ValueError(f"{self.worker_id}: ahead_s must be finite and not negative: {self.ahead_s}")
        if not (math.isfinite(self.handover_steps) and self.handover_steps >= 0):
            raise ValueError(f"{self.worker_id}: handover_steps must be finite and not negative: {self.handover_steps}")
        if not (self.prefills or self.decodes):
            raise ValueError(f"{self.worker_id} does nothing")
        if any(math.isnan(prefill.deadline_s) for prefill in self.promised):
            raise ValueError(f"{self.worker_id}: a promised deadline is not a number")
        if any(not -1 <= prefill.decode_tier < tiers for prefill in self.promised):
            raise ValueError(f"{self.worker_id}: a promised prefill names no tier")

    @cached_property
    def row(self) -> Floats:
        """The WORKER columns of `kernels.layout`, in their order."""
        tiers = len(self.profile.tiers.tpot_s)
        return np.array(
            [
                self.busy_s - self.ahead_s,
                self.kv_tokens_free,
                self.kv_tokens,
                self.profile.max_step_tokens,
                self.slots_free,
                self.prefills,
                self.decodes,
                self.profile.step_table.shape[0],
                *self.profile.bound.terms,
                self.handover_steps,
                *(self.running or (0,) * tiers),
                *(self.context_tokens or (0,) * tiers),
            ],
            dtype=np.float64,
        )

    @cached_property
    def jobs(self) -> Floats:
        """The JOB columns of `kernels.layout`, in their order, of every promised prefill by due time."""
        row = self.row
        jobs = [
            (
                prefill.deadline_s,
                prefill.deadline_s,
                work_of(row, prefill.prompt_tokens, prefill.computed_tokens),
                0.0,
                prefill.decode_tier,
                0.0,
                prefill.prompt_tokens,
                prefill.kv_tokens,
                prefill.decode_tier,
            )
            for prefill in sorted(self.promised, key=lambda prefill: prefill.deadline_s)
        ]
        return np.array(jobs, dtype=np.float64).reshape(len(jobs), JOB_COLUMNS)

    @cached_property
    def release_rows(self) -> Floats:
        """The RELEASE columns of `kernels.layout` of every release by time."""
        rows = np.zeros((len(self.releases), RELEASE_COLUMNS))
        by_time = sorted(self.releases, key=lambda release: release.at_s)
        for release_row, release in zip(rows, by_time, strict=True):
            release_row[RELEASE_AT_S], release_row[RELEASE_TIER] = release.at_s, release.tier
            release_row[RELEASE_REQUESTS], release_row[RELEASE_KV_TOKENS] = release.requests, release.kv_tokens
        return rows


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that wants a promise."""

    candidate_id: str
    """Id of the request."""
    prompt_tokens: int
    """Tokens of the prompt."""
    kv_tokens: int
    """Context that the request will reach, at the promised quantile of its length."""
    deadline_s: float = math.inf
    """Time by which the first token is due; infinite without such a target."""
    tier: int = -1
    """Tier of the round in which it decodes; -1 without a target for the later tokens."""
    value: float = 1.0
    """Value of a guarantee: a round guarantees the most in all that it finds."""
    cached: tuple[tuple[str, int], ...] = ()
    """Workers that have the beginning of the prompt in their cache, and how many tokens of it."""
    standing: Standing = EVEN
    """What its tenant has had of its fair share."""

    @property
    def work_per_value(self) -> float:
        """Cost of the request: prompt tokens that no worker has cached for each unit of value, infinite without any."""
        tokens = self.prompt_tokens - max([tokens for _, tokens in self.cached], default=0)
        return max(1, tokens) / self.value if self.value else math.inf

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.kv_tokens < self.prompt_tokens:
            raise ValueError(
                f"{self.candidate_id}: {self.prompt_tokens} prompt tokens, {self.kv_tokens} KV tokens: a prompt has "
                "tokens, and the context includes them"
            )
        if math.isnan(self.deadline_s) or not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"{self.candidate_id}: deadline {self.deadline_s}, value {self.value}")


@dataclass(frozen=True, slots=True)
class Link:
    """How a KV cache moves between two workers."""

    latency_s: float = 0.0
    """Seconds that a transfer takes before the first byte."""
    bytes_per_s: float = math.inf
    """Bandwidth."""

    def __post_init__(self) -> None:
        if not (self.latency_s >= 0 and math.isfinite(self.latency_s)) or not self.bytes_per_s > 0:
            raise ValueError(f"latency must not be negative, bandwidth must be positive: {self}")


@dataclass(frozen=True)
class Topology:
    """Which workers may work together; changes when workers come and go, not from round to round."""

    workers: tuple[str, ...]
    """Ids of the workers, in the order of `Problem.workers`."""
    prefill: tuple[int, ...]
    """Indexes of the workers that may prefill, those that decode as well included."""
    decode: tuple[int, ...]
    """Indexes of the workers that may decode, those that prefill as well included."""
    link: Link = field(default_factory=Link)
    """How a KV cache moves between any two workers."""
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    """Exceptions from `link`, by prefill and decode worker."""
    kv_bytes_per_token: float = 0.0
    """Bytes of KV cache for a token."""

    @cached_property
    def index(self) -> dict[str, int]:
        """Place of each worker in `workers`, by id."""
        return {worker_id: index for index, worker_id in enumerate(self.workers)}

    @classmethod
    def of(
        cls,
        workers: Sequence[Worker],
        link: Link | None = None,
        links: Mapping[tuple[str, str], Link] | None = None,
        kv_bytes_per_token: float = 0.0,
    ) -> Topology:
        """Return the topology in which each of these workers may work with every other."""
        return cls(
            workers=tuple(worker.worker_id for worker in workers),
            prefill=tuple(index for index, worker in enumerate(workers) if worker.prefills),
            decode=tuple(index for index, worker in enumerate(workers) if worker.decodes),
            link=link or Link(),
            links=links or {},
            kv_bytes_per_token=kv_bytes_per_token,
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """What one planning round decides about."""

    workers: Sequence[Worker]
    """Workers as they are now."""
    topology: Topology
    """Which of them may work together."""
    candidates: tuple[Candidate, ...]
    """Requests that want a promise."""
    typical_arrival: Candidate | None = None
    """A typical request, from `ArrivalSample`, for which headroom is reserved where workers are crowded. None: for
    nobody."""
    headroom_requests: float = 1.0
    """Number of typical requests for which headroom is reserved at once."""
    cost_threshold: float = 0.0
    """Work per value up to which a candidate need leave no headroom: see `CostThreshold`. One that costs no more than
    the typical arrival need not either."""
    owed_arrival: OwedArrival | None = None
    """Request for which candidates of tenants that have had most leave room; None: nobody is owed anything."""
    seed: int = 0
    """Seed by which workers are sampled."""
    work_limit: int = 0
    """Bound on the search, in prefills scheduled; 0: `planning.default_work_limit`."""

    def __post_init__(self) -> None:
        if self.work_limit < 0:
            raise ValueError(f"work_limit must not be negative: {self.work_limit}")
