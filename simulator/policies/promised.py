"""What was promised on each worker, and the cluster as a planning problem.

The counterpart of `router.admission.planning_view` and `router.cluster.memory`, on simulated requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from services.slo.composer import ComposerPolicy, StepMeter
from services.slo.lengths import REFORECAST_TOKENS, TAIL_COVERAGE, LengthForecast, OutputLengths
from services.slo.performance import PerformanceModel
from services.slo.planner import (
    Commitment,
    CommittedLoad,
    PromisedPrefill,
    StepBound,
    Tiers,
    Worker,
    WorkerProfile,
    ahead_s,
)
from simulator.belief import Belief
from simulator.engine import Engine
from simulator.request import SimRequest

MOST_OUTPUT_TOKENS = 16_384
"""`max_tokens` of every request."""


@dataclass(slots=True, eq=False)
class Place:
    """Where a request goes, kept in `SimRequest.placed`."""

    lane: Spot
    decoder: Spot
    planned: bool
    """There is room for it in the plan."""
    tier: int
    forecast: LengthForecast
    forecast_at: int = 0


@dataclass(slots=True, eq=False)
class Spot:
    """One worker as its planner knows it."""

    engine: Engine
    prefills: bool
    decodes: bool
    belief: Belief
    policy: ComposerPolicy
    """How its engine composes steps."""
    prompts: dict[str, SimRequest] = field(default_factory=dict)
    """Whose first token it is to make."""
    decoding: dict[str, SimRequest] = field(default_factory=dict)
    """Who decodes here, or will."""
    drafts: tuple[int, ...] = ()
    """Of each tier, as planned last."""
    holdings: CommittedLoad = field(default_factory=lambda: CommittedLoad(0))
    """Of `decoding`, those with room in the plan."""
    unplanned_tokens: int = 0
    """Of prompts without a promise that the engine was given."""
    _profile: tuple[PerformanceModel, Tiers, WorkerProfile] | None = None
    _reforecast_at_step: int = 0

    @property
    def worker_id(self) -> str:
        return self.engine.worker_id

    def profile(self, tiers: Tiers) -> WorkerProfile:
        bound = self.belief.planning
        if self._profile is None or self._profile[0] is not bound or self._profile[1] is not tiers:
            step_bound = StepBound.of(bound, prefills=self.prefills, decodes=self.decodes)
            limits = self.engine.machine.limits
            longest_s = self.policy.longest_step_s(StepMeter(bound).shortest_step_s())
            profile = WorkerProfile(step_bound, tiers, limits.max_step_tokens, longest_s)
            self._profile = (bound, tiers, profile)
        return self._profile[2]

    def hold(self, request: SimRequest) -> None:
        """It decodes here, or will."""
        place = place_of(request)
        self.decoding[request.request_id] = request
        if place.planned:
            decodes = request.request_id not in self.prompts
            holding = Commitment(request.offered.prompt_tokens, place.forecast, place.tier, place.forecast_at, decodes)
            self.holdings.put(request.request_id, holding)

    def let_go(self, request: SimRequest) -> None:
        self.decoding.pop(request.request_id, None)
        self.holdings.drop(request.request_id)

    def reforecast(self, lengths: LengthForecasts) -> None:
        """Forecasts are made again once in so many steps, for a step brings a token or a few."""
        steps = self.engine.usage.steps
        if steps < self._reforecast_at_step:
            return
        self._reforecast_at_step = steps + REFORECAST_TOKENS
        for request in self.decoding.values():
            place = place_of(request)
            if not place.forecast.serves(place.forecast_at, request.generated):
                place.forecast, place.forecast_at = lengths.of(request), request.generated
                self.hold(request)

    def busy_s(self, now_s: float) -> float:
        """Until its step ends, as far as can be foreseen."""
        engine = self.engine
        if engine.step is None:
            return 0.0
        return max(0.0, engine.step_began_s + self.belief.planning.step_s(engine.step.shape) - now_s)


@dataclass(slots=True)
class LengthForecasts:
    """How long outputs are expected to become."""

    known: bool
    book: OutputLengths = field(default_factory=OutputLengths)

    def of(self, request: SimRequest) -> LengthForecast:
        if self.known:
            return LengthForecast(float(request.output_tokens), 0.0, request.output_tokens)
        application = request.offered.application
        return self.book.forecast("", application, TAIL_COVERAGE, MOST_OUTPUT_TOKENS, request.generated)

    def ended(self, request: SimRequest) -> None:
        if not self.known:
            self.book.observe("", request.offered.application, request.generated, complete=True)


def place_of(request: SimRequest) -> Place:
    place = request.placed
    assert isinstance(place, Place)
    return place


def worker_of(spot: Spot, tiers: Tiers, lengths: LengthForecasts, now_s: float, handover_steps: float) -> Worker:
    """A worker as the planner is asked about it."""
    engine, holdings, busy_s = spot.engine, spot.holdings, spot.busy_s(now_s)
    spot.reforecast(lengths)
    if spot.decodes:
        held = holdings.kv_tokens()
        slots = max(0, engine.machine.limits.max_running_requests - len(holdings))
    else:
        leased = engine.leased_blocks * engine.machine.limits.block_tokens
        held = leased + sum([request.context_tokens for request in spot.prompts.values() if place_of(request).planned])
        slots = 1_000_000
    kv_tokens = engine.machine.kv_tokens
    return Worker(
        worker_id=spot.worker_id,
        profile=spot.profile(tiers),
        prefills=spot.prefills,
        decodes=spot.decodes,
        kv_tokens_free=max(0, kv_tokens - held),
        kv_tokens=kv_tokens,
        running=holdings.running,
        context_tokens=holdings.context_tokens,
        slots_free=slots,
        busy_s=busy_s,
        ahead_s=_ahead_s(spot, tiers, now_s + busy_s),
        promised=tuple(_promised(spot, now_s)),
        releases=holdings.releases(spot.belief.model) if spot.decodes else (),
        handover_steps=handover_steps,
    )


def _ahead_s(spot: Spot, tiers: Tiers, at_s: float) -> float:
    """Of a step that begins then."""
    if not (spot.prefills and spot.decodes and spot.policy.streams_may_skip):
        return 0.0
    held = spot.holdings
    leads = (
        (request.due_s - at_s if request.work.decoding else 0.0, request.tpot_s)
        for request in spot.decoding.values()
        if place_of(request).planned and request.request_id not in spot.prompts
    )
    return ahead_s(spot.profile(tiers).bound, sum(held.running), sum(held.context_tokens), leads)


def _promised(spot: Spot, now_s: float) -> Iterator[PromisedPrefill]:
    step = spot.engine.step
    grants = step.grants if step is not None else {}
    for request in spot.prompts.values():
        place, work = place_of(request), request.work
        if place.planned:
            local = place.decoder is spot
            yield PromisedPrefill(
                request.due_s - now_s,
                request.context_tokens,
                work.computed_tokens + grants.get(request.request_id, 0),
                place.tier if local else -1,
                request.offered.prompt_tokens + place.forecast.tail_tokens if local else 0,
            )
