"""What a worker has promised to the requests that decode there, as sums: adding one takes no look at the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.slo.lengths import POOL_COVERAGE, LengthForecast, pooled
from services.slo.performance import PerformanceModel
from services.slo.planner.problem import Release

RELEASE_GROUPS = 4
"""Groups in which the running requests of a tier are expected to end."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """A request that decodes on a worker, or will."""

    prompt_tokens: int
    forecast: LengthForecast
    tier: int = -1
    """Of the round's tiers; -1: it has memory, but no rate is promised."""
    produced_tokens: int = 0
    """When the forecast was made."""
    decodes: bool = True
    """It counts among the running. Not while its prompt is to be computed on the same worker: see `PromisedPrefill`."""

    @property
    def kv_tokens(self) -> int:
        """Context that it is promised memory for."""
        return self.prompt_tokens + self.forecast.tail_tokens


@dataclass(slots=True)
class _Tier:
    """Sums over the running requests of a tier."""

    requests: int = 0
    prompts: int = 0
    tails: int = 0
    expected: float = 0.0
    variance: float = 0.0

    def count(self, holding: Commitment, sign: int) -> None:
        forecast = holding.forecast
        self.requests += sign
        self.prompts += sign * holding.prompt_tokens
        self.tails += sign * forecast.tail_tokens
        self.expected += sign * forecast.expected_tokens
        self.variance += sign * forecast.variance
        if not self.requests:
            self.expected = self.variance = 0.0

    def context_tokens(self) -> int:
        return self.prompts + round(pooled(self.expected, self.variance, self.tails, POOL_COVERAGE))


class CommittedLoad:
    """Of one worker, for one set of tiers. Put a request again when anything about it changed.

    The owner decides how often: a forecast serves for `REFORECAST_TOKENS`, and releases are no more exact than that.
    """

    __slots__ = (
        "_by_tier",
        "_decoding_context",
        "_expected",
        "_held",
        "_prompts",
        "_releases",
        "_tails",
        "_variance",
        "decodes",
    )

    def __init__(self, tiers: int) -> None:
        self.decodes = 0
        """Those that decode now, with a promised rate or without."""
        self._held: dict[str, Commitment] = {}
        self._by_tier = [_Tier() for _ in range(tiers)]
        self._prompts = self._tails = 0
        self._expected = self._variance = self._decoding_context = 0.0
        self._releases: tuple[float, tuple[Release, ...]] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    @property
    def held(self) -> Mapping[str, Commitment]:
        return self._held

    @property
    def running(self) -> tuple[int, ...]:
        """As `Worker.running`."""
        return tuple([tier.requests for tier in self._by_tier])

    @property
    def context_tokens(self) -> tuple[int, ...]:
        """As `Worker.context_tokens`: that the requests of each tier stay within together, as `kv_tokens` has it. The
        sum of what each is promised would be far more, where lengths vary, than there ever is to be read in a step.
        """
        return tuple([tier.context_tokens() for tier in self._by_tier])

    def put(self, request_id: str, holding: Commitment) -> None:
        """It is held from now on; instead of what was known of it before."""
        self.drop(request_id)
        self._held[request_id] = holding
        self._count(holding, 1)

    def drop(self, request_id: str) -> None:
        """It is gone; nothing happens if it was not there."""
        holding = self._held.pop(request_id, None)
        if holding is None:
            return
        self._count(holding, -1)
        if not self._held:
            self._expected = self._variance = self._decoding_context = 0.0

    def kv_tokens(self, coverage: float = POOL_COVERAGE) -> int:
        """Context that all of them stay within together, with that probability."""
        return self._prompts + round(pooled(self._expected, self._variance, self._tails, coverage))

    def releases(self, model: PerformanceModel) -> tuple[Release, ...]:
        """When memory and rate come free, in a few groups: the last of a group stands for all of it."""
        step_s = model.decode_step_s(self.decodes, int(self._decoding_context))
        if self._releases is None or self._releases[0] != step_s:
            self._releases = step_s, tuple(self._grouped(step_s))
        return self._releases[1]

    def _count(self, holding: Commitment, sign: int) -> None:
        forecast = holding.forecast
        self._prompts += sign * holding.prompt_tokens
        self._tails += sign * forecast.tail_tokens
        self._expected += sign * forecast.expected_tokens
        self._variance += sign * forecast.variance
        self._releases = None
        if holding.decodes:
            self.decodes += sign
            self._decoding_context += sign * (holding.prompt_tokens + forecast.expected_tokens)
            if holding.tier >= 0:
                self._by_tier[holding.tier].count(holding, sign)

    def _grouped(self, step_s: float) -> Iterator[Release]:
        ends: dict[int, list[tuple[float, int]]] = {}
        for holding in self._held.values():
            if holding.decodes:
                left = max(1.0, holding.forecast.expected_tokens - holding.produced_tokens)
                ends.setdefault(holding.tier, []).append((left * step_s, holding.kv_tokens))
        for tier, of_tier in ends.items():
            of_tier.sort()
            size = -(-len(of_tier) // RELEASE_GROUPS)
            for first in range(0, len(of_tier), size):
                together = of_tier[first : first + size]
                yield Release(together[-1][0], len(together), sum([kv for _, kv in together]), tier)
