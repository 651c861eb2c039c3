"""How much KV memory each request is promised: its context and the tail of what it may still generate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from router.requests.live_request import LiveRequest
from router.requests.parsed_request import ParsedRequest
from services.slo.lengths import POOL_COVERAGE, TAIL_COVERAGE, LengthForecast, OutputLengths, pooled_tail
from services.slo.planner.committed_load import Commitment


@dataclass(slots=True)
class MemoryPromises:
    """Forecasts of output lengths, learnt from requests that ended; memory is handed back as they go on."""

    lengths: OutputLengths = field(default_factory=OutputLengths)
    _forecasts: dict[str, tuple[int, LengthForecast]] = field(default_factory=dict)
    """By request id: made after so many tokens of output."""

    def of_new(self, parsed: ParsedRequest) -> int:
        """Context tokens that a request that has not begun is promised."""
        return len(parsed.prompt) + self._forecast(parsed, 0).tail_tokens

    def of(self, request: LiveRequest) -> int:
        """Context tokens that a request is promised now."""
        return len(request.parsed.prompt) + self._current(request).tail_tokens

    def holding(self, request: LiveRequest, tier: int, *, decodes: bool) -> Commitment:
        """As the planner's view of its worker counts it."""
        forecast = self._current(request)
        return Commitment(len(request.parsed.prompt), forecast, tier, len(request.generated), decodes)

    def of_all(self, requests: Iterable[LiveRequest]) -> int:
        """Context tokens that these requests are promised together."""
        requests = list(requests)
        prompts = sum(len(request.parsed.prompt) for request in requests)
        return prompts + round(pooled_tail((self._current(request) for request in requests), POOL_COVERAGE))

    def ended(self, request: LiveRequest, *, complete: bool) -> None:
        """Learn from a request that ended.

        Args:
            complete: it ended by itself; false if a limit, a cancellation or a failure cut it off.
        """
        self._forecasts.pop(request.request_id, None)
        if request.generated:
            parsed = request.parsed
            self.lengths.observe(parsed.tenant, parsed.application, len(request.generated), complete=complete)

    def _current(self, request: LiveRequest) -> LengthForecast:
        produced = len(request.generated)
        made_at, forecast = self._forecasts.get(request.request_id, (0, None))
        if forecast is None or not forecast.serves(made_at, produced):
            forecast = self._forecast(request.parsed, produced)
            self._forecasts[request.request_id] = (produced, forecast)
        return forecast

    def _forecast(self, parsed: ParsedRequest, produced_tokens: int) -> LengthForecast:
        return self.lengths.forecast(
            parsed.tenant,
            parsed.application,
            TAIL_COVERAGE,
            parsed.sampling.max_tokens,
            produced_tokens,
            parsed.expected_output_tokens,
        )
