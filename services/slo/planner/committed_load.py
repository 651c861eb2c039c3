"""The load that a worker has promised to the requests that decode there, as sums: adding one looks at no other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.slo.lengths import POOL_COVERAGE, LengthForecast, pooled
from services.slo.performance import PerformanceModel
from services.slo.planner.problem import Release

RELEASE_GROUPS = 4
"""Number of groups in which the running requests of a tier are expected to end. Chosen: answers need no more detail."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """A request that decodes on a worker, or will."""

    prompt_tokens: int
    """Tokens of the prompt."""
    forecast: LengthForecast
    """Output that is expected of the request."""
    tier: int = -1
    """Tier of the round in which it decodes; -1 if it has memory, but no rate is promised."""
    produced_tokens: int = 0
    """Output tokens that it had produced when it was put here last; its forecast may be older."""
    decodes: bool = True
    """Whether it counts among the running: not while its prompt is to be computed on the same worker, see
    `PromisedPrefill`."""

    @property
    def kv_tokens(self) -> int:
        """Context that the request is promised memory for, in tokens."""
        return self.prompt_tokens + self.forecast.tail_tokens


@dataclass(slots=True)
class _Tier:
    """Sums over the running requests of a tier."""

    requests: int = 0
    """Number of requests."""
    prompts: int = 0
    """Prompt tokens."""
    tails: int = 0
    """Output tokens that each is promised memory for."""
    expected: float = 0.0
    """Expected output tokens."""
    variance: float = 0.0
    """Variance of the output tokens."""

    def count(self, commitment: Commitment, sign: int) -> None:
        """Add a commitment, or take it away with a sign of -1."""
        forecast = commitment.forecast
        self.requests += sign
        self.prompts += sign * commitment.prompt_tokens
        self.tails += sign * forecast.tail_tokens
        self.expected += sign * forecast.expected_tokens
        self.variance += sign * forecast.variance
        if not self.requests:
            self.expected = self.variance = 0.0

    def context_tokens(self) -> int:
        """Return the context that all of them stay within together, in tokens."""
        return self.prompts + round(pooled(self.expected, self.variance, self.tails, POOL_COVERAGE))


class CommittedLoad:
    """The load of one worker, for one set of tiers. Put a request again when anything about it changed.

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
        """Number of requests that decode now, with a promised rate or without."""
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
        """Every commitment, by request id."""
        return self._held

    @property
    def running(self) -> tuple[int, ...]:
        """Number of promised decodes of each tier: `Worker.running`."""
        return tuple([tier.requests for tier in self._by_tier])

    @property
    def context_tokens(self) -> tuple[int, ...]:
        """Context that the requests of each tier stay within together: `Worker.context_tokens`.

        The sum of what each is promised would be far more, where lengths vary, than there ever is to be read in a step.
        """
        return tuple([tier.context_tokens() for tier in self._by_tier])

    def put(self, request_id: str, commitment: Commitment) -> None:
        """Count a request from now on, instead of what was known of it before."""
        self.drop(request_id)
        self._held[request_id] = commitment
        self._count(commitment, 1)

    def drop(self, request_id: str) -> None:
        """Count a request no more; nothing happens if it was not counted."""
        commitment = self._held.pop(request_id, None)
        if commitment is None:
            return
        self._count(commitment, -1)
        if not self._held:
            self._expected = self._variance = self._decoding_context = 0.0

    def kv_tokens(self, coverage: float = POOL_COVERAGE) -> int:
        """Return the context that all requests stay within together with that probability, in tokens."""
        return self._prompts + round(pooled(self._expected, self._variance, self._tails, coverage))

    def releases(self, model: PerformanceModel) -> tuple[Release, ...]:
        """Return when memory and rate come free, in a few groups: the last of a group stands for all of it.

        Args:
            model: how long steps are expected to take.
        """
        step_s = model.decode_step_s(self.decodes, int(self._decoding_context))
        if self._releases is None or self._releases[0] != step_s:
            self._releases = step_s, tuple(self._grouped(step_s))
        return self._releases[1]

    def _count(self, commitment: Commitment, sign: int) -> None:
        """Add a commitment to every sum, or take it away with a sign of -1."""
        forecast = commitment.forecast
        self._prompts += sign * commitment.prompt_tokens
        self._tails += sign * forecast.tail_tokens
        self._expected += sign * forecast.expected_tokens
        self._variance += sign * forecast.variance
        self._releases = None
        if commitment.decodes:
            self.decodes += sign
            self._decoding_context += sign * (commitment.prompt_tokens + forecast.expected_tokens)
            if commitment.tier >= 0:
                self._by_tier[commitment.tier].count(commitment, sign)

    def _grouped(self, step_s: float) -> Iterator[Release]:
        """Yield the releases of each tier if every step takes this many seconds."""
        ends: dict[int, list[tuple[float, int]]] = {}
        for commitment in self._held.values():
            if commitment.decodes:
                left = max(1.0, commitment.forecast.expected_tokens - commitment.produced_tokens)
                ends.setdefault(commitment.tier, []).append((left * step_s, commitment.kv_tokens))
        for tier, of_tier in ends.items():
            of_tier.sort()
            size = -(-len(of_tier) // RELEASE_GROUPS)
            for first in range(0, len(of_tier), size):
                together = of_tier[first : first + size]
                yield Release(together[-1][0], len(together), sum([kv for _, kv in together]), tier)
