"""How much KV memory each request is promised: its context and the tail of what it may still generate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from services.slo.admission.requests import RequestFacts, TrackedRequest
from services.slo.lengths import POOL_COVERAGE, TAIL_COVERAGE, LengthForecast, OutputLengths, pooled_tail
from services.slo.planner import Commitment


class LengthForecasts(Protocol):
    """Forecasts of output lengths. `OutputLengths` is the one that ships."""

    def observe(self, tenant: str, application: str, tokens: int, *, complete: bool) -> None: ...

    def forecast(
        self,
        tenant: str,
        application: str,
        coverage: float,
        limit_tokens: int,
        produced_tokens: int = 0,
        hint_tokens: int | None = None,
    ) -> LengthForecast: ...


@dataclass(slots=True)
class KvForecasts:
    """Forecasts of KV memory for each request, learnt from requests that ended and renewed as a request goes on.

    Owned by one event loop.
    """

    lengths: LengthForecasts = field(default_factory=OutputLengths)
    _forecasts: dict[str, tuple[int, LengthForecast]] = field(default_factory=dict)
    """Forecast of each request, with the tokens of output that there were when it was made."""

    def of_new(self, facts: RequestFacts) -> int:
        """Return the context tokens that a request is promised memory for before it has begun."""
        return facts.prompt_tokens + self._forecast(facts, 0).tail_tokens

    def expected_output(self, facts: RequestFacts) -> float:
        """Return the tokens of output that are expected of a request before it has begun."""
        return self._forecast(facts, 0).expected_tokens

    def of(self, request: TrackedRequest) -> int:
        """Return the context tokens that a request is promised memory for now."""
        return request.facts.prompt_tokens + self.current(request).tail_tokens

    def commitment(self, request: TrackedRequest, tier: int, *, decodes: bool) -> Commitment:
        """Return the request as the planner counts it on its decode worker.

        Args:
            decodes: its prompt is not, or no longer, to be computed on that worker.
        """
        forecast = self.current(request)
        return Commitment(request.facts.prompt_tokens, forecast, tier, request.generated_tokens, decodes)

    def of_all(self, requests: Iterable[TrackedRequest]) -> int:
        """Return the context tokens that these requests are promised memory for together."""
        requests = list(requests)
        prompts = sum(request.facts.prompt_tokens for request in requests)
        return prompts + round(pooled_tail((self.current(request) for request in requests), POOL_COVERAGE))

    def ended(self, request: TrackedRequest, *, complete: bool) -> None:
        """Learn from a request that ended.

        Args:
            complete: it ended by itself; false if a limit, a cancellation or a failure cut it off.
        """
        facts = request.facts
        self._forecasts.pop(facts.request_id, None)
        if request.generated_tokens:
            self.lengths.observe(facts.tenant, facts.application, request.generated_tokens, complete=complete)

    def serves(self, request: TrackedRequest) -> bool:
        """Return whether the forecast made last is still good enough."""
        made_at, forecast = self._forecasts.get(request.facts.request_id, (0, None))
        return forecast is not None and forecast.serves(made_at, request.generated_tokens)

    def current(self, request: TrackedRequest) -> LengthForecast:
        """Return the forecast of the request's length, made again if it no longer serves."""
        produced = request.generated_tokens
        made_at, forecast = self._forecasts.get(request.facts.request_id, (0, None))
        if forecast is None or not forecast.serves(made_at, produced):
            forecast = self._forecast(request.facts, produced)
            self._forecasts[request.facts.request_id] = (produced, forecast)
        return forecast

    def _forecast(self, facts: RequestFacts, produced_tokens: int) -> LengthForecast:
        return self.lengths.forecast(
            facts.tenant,
            facts.application,
            TAIL_COVERAGE,
            facts.max_tokens,
            produced_tokens,
            facts.expected_output_tokens,
        )
