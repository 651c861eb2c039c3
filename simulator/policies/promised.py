"""What was promised on each worker, and the cluster as a planning problem.

The counterpart of `router.planning_view` and `router.memory`, on simulated requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from services.slo.lengths import LengthForecast, OutputLengths
from services.slo.performance import PerformanceModel
from services.slo.planner import Profile, PromisedPrefill, Release, StepBound, Tiers, Worker
from simulator.belief import Belief
from simulator.engine import Engine
from simulator.request import Live

LENGTH_COVERAGE, POOL_COVERAGE = 0.95, 0.99
REFORECAST_TOKENS = 16
RELEASE_GROUPS = 4
MOST_OUTPUT_TOKENS = 16_384
"""`max_tokens` of every request."""
_POOL = NormalDist().inv_cdf(POOL_COVERAGE)


@dataclass(slots=True, eq=False)
class Place:
    """Where a request goes, kept in `Live.placed`."""

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
    max_step_s: float
    prompts: dict[str, Live] = field(default_factory=dict)
    """Whose first token it is to make."""
    decoding: dict[str, Live] = field(default_factory=dict)
    """Who decodes here, or will."""
    drafts: tuple[int, ...] = ()
    """Of each tier, as planned last."""
    unplanned_tokens: int = 0
    """Of prompts without a promise that the engine was given."""
    _profile: tuple[PerformanceModel, Tiers, Profile] | None = None

    @property
    def worker_id(self) -> str:
        return self.engine.worker_id

    def profile(self, tiers: Tiers) -> Profile:
        bound = self.belief.planning
        if self._profile is None or self._profile[0] is not bound or self._profile[1] is not tiers:
            step_bound = StepBound.of(bound, prefills=self.prefills, decodes=self.decodes)
            limits = self.engine.machine.limits
            profile = Profile(step_bound, tiers, limits.max_step_tokens, self.max_step_s)
            self._profile = (bound, tiers, profile)
        return self._profile[2]

    def busy_s(self, now_s: float) -> float:
        """Until its step ends, as far as can be foreseen."""
        engine = self.engine
        if engine.step is None:
            return 0.0
        return max(0.0, engine.step_began_s + self.belief.planning.step_s(engine.step.shape) - now_s)


@dataclass(slots=True)
class Lengths:
    """How long outputs are expected to become."""

    known: bool
    book: OutputLengths = field(default_factory=OutputLengths)

    def of(self, live: Live) -> LengthForecast:
        if self.known:
            return LengthForecast(float(live.output_tokens), 0.0, live.output_tokens)
        application = live.offered.application
        return self.book.forecast("", application, LENGTH_COVERAGE, MOST_OUTPUT_TOKENS, live.generated)

    def ended(self, live: Live) -> None:
        if not self.known:
            self.book.observe("", live.offered.application, live.generated, complete=True)

    def refresh(self, live: Live, place: Place) -> LengthForecast:
        """The forecast, made again from time to time."""
        generated = live.generated
        if generated >= place.forecast_at + REFORECAST_TOKENS or generated >= place.forecast.tail_tokens:
            place.forecast, place.forecast_at = self.of(live), generated
        return place.forecast


def place_of(live: Live) -> Place:
    place = live.placed
    assert isinstance(place, Place)
    return place


def worker_of(spot: Spot, tiers: Tiers, lengths: Lengths, now_s: float, handover_steps: float) -> Worker:
    """A worker as the planner is asked about it."""
    count = len(tiers.tpot_s)
    running, contexts = [0] * count, [0] * count
    engine, size = spot.engine, spot.engine.machine.limits.block_tokens
    prompts_kv = tails = 0
    expected = variance = 0.0
    ends: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for live in spot.decoding.values():
        place = place_of(live)
        if not place.planned:
            continue
        forecast = lengths.refresh(live, place)
        prompt = live.offered.prompt_tokens
        prompts_kv += prompt
        tails += forecast.tail_tokens
        expected += forecast.expected_tokens
        variance += forecast.variance
        if live.request_id in spot.prompts:
            continue
        kv = prompt + forecast.tail_tokens
        if place.tier >= 0:
            running[place.tier] += 1
            contexts[place.tier] += kv
        ends[place.tier].append((max(1.0, forecast.expected_tokens - live.generated), kv))
    step_s = spot.belief.model.decode_step_s(sum(running), sum(contexts))
    if spot.decodes:
        held = prompts_kv + round(min(float(tails), expected + _POOL * variance**0.5))
        slots = max(0, engine.machine.limits.max_running_requests - len(spot.decoding))
    else:
        held = engine.leased_blocks * size + sum(live.context_tokens for live in _planned(spot.prompts.values()))
        slots = 1_000_000
    kv_tokens = engine.machine.kv_tokens
    return Worker(
        worker_id=spot.worker_id,
        profile=spot.profile(tiers),
        prefills=spot.prefills,
        decodes=spot.decodes,
        kv_tokens_free=max(0, kv_tokens - held),
        kv_tokens=kv_tokens,
        running=tuple(running),
        context_tokens=tuple(contexts),
        slots_free=slots,
        busy_s=spot.busy_s(now_s),
        promised=_promised(spot, now_s),
        releases=_releases(ends, step_s) if spot.decodes else (),
        handover_steps=handover_steps,
    )


def _planned(lives: Iterable[Live]) -> list[Live]:
    return [live for live in lives if place_of(live).planned]


def _promised(spot: Spot, now_s: float) -> tuple[PromisedPrefill, ...]:
    step = spot.engine.step
    grants = step.grants if step is not None else {}
    promised = []
    for live in _planned(spot.prompts.values()):
        place, work = place_of(live), live.work
        local = place.decoder is spot
        computed = min(live.context_tokens - 1, work.computed_tokens + grants.get(live.request_id, 0))
        promised.append(
            PromisedPrefill(
                live.due_s - now_s,
                live.context_tokens,
                computed,
                place.tier if local else -1,
                live.offered.prompt_tokens + place.forecast.tail_tokens if local else 0,
            )
        )
    return tuple(promised)


def _releases(ends: dict[int, list[tuple[float, int]]], step_s: float) -> tuple[Release, ...]:
    releases = []
    for tier, of_tier in ends.items():
        of_tier.sort()
        size = -(-len(of_tier) // RELEASE_GROUPS)
        for first in range(0, len(of_tier), size):
            together: Sequence[tuple[float, int]] = of_tier[first : first + size]
            kv = sum([kv for _, kv in together])
            releases.append(Release(together[-1][0] * step_s, len(together), kv, tier))
    return tuple(releases)
