"""Metrics and traces of requests, made when one is admitted, refused or ends, never per token."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from router.observability import spans
from router.requests.events import Refusal, RequestObserver
from router.requests.request_record import NO_CONTRACT, OWN_CONTRACT, Ending, profile_of
from services.rpc.errors import InvalidRequestError, RequestError, reason_of
from services.telemetry.catalogue import router as catalogue
from services.telemetry.catalogue.metric import Metric
from services.telemetry.labels import NONE, LabelCap
from services.telemetry.meters import Meters, Tally
from services.telemetry.traces import Part, Traces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.requests.live_request import LiveRequest
    from router.requests.request_record import RequestRecord
    from services.slo.attainment import Attainment

PROVIDER = "slos-serve"
CANCELLED = "CANCELLED"
DONE = "done"
OUTCOMES = {
    Ending.KEPT: DONE,
    Ending.MISSED: DONE,
    Ending.UNPROMISED: DONE,
    Ending.CANCELLED: "cancelled",
    Ending.FAILED: "failed",
}


class Recorder(RequestObserver):
    """Counts requests by profile, tenant and phase, and sends their traces."""

    def __init__(
        self, meters: Meters, traces: Traces, model_name: str, profiles: Iterable[str], max_label_values: int
    ) -> None:
        """
        Args:
            profiles: names of the configured profiles.
            max_label_values: number of tenants that are kept apart; see `TelemetrySettings`.
        """
        self._traces = traces
        self._model_name = model_name
        self._profiles = LabelCap(max_label_values, known=(*profiles, OWN_CONTRACT, NO_CONTRACT))
        self._tenants = LabelCap(max_label_values)

        def tally(metric: Metric, *expected: tuple[str, ...]) -> Tally:
            counts = Tally(metric.labels, *expected)
            meters.observe(metric, counts.readings)
            return counts

        self._guaranteed = tally(catalogue.PROMISES_GUARANTEED)
        self._kept = tally(catalogue.PROMISES_KEPT)
        self._missed = tally(catalogue.PROMISES_MISSED)
        self._best_effort = tally(catalogue.BEST_EFFORT)
        self._ended = tally(catalogue.REQUESTS_ENDED, *((outcome,) for outcome in sorted({*OUTCOMES.values()})))
        self._refused = tally(catalogue.REQUESTS_REFUSED)
        self._over_quota = tally(catalogue.QUOTA_REFUSALS)
        self._times = tally(catalogue.PHASE_TIME)
        self._tokens = tally(catalogue.TOKENS, ("input",), ("cached",), ("output",))
        self._forecasts = tally(catalogue.FORECASTS, *product(("ttft", "tpot"), (_yes(True), _yes(False))))
        self._duration = meters.histogram(catalogue.REQUEST_DURATION)
        self._ttft = meters.histogram(catalogue.TIME_TO_FIRST_TOKEN)
        self._tpot = meters.histogram(catalogue.TIME_PER_OUTPUT_TOKEN)
        self._required_tpot = meters.histogram(catalogue.REQUIRED_TIME_PER_OUTPUT_TOKEN)
        self._rounds = meters.histogram(catalogue.PLANNER_ROUND_DURATION)

    def on_round_ended(self, took_s: float) -> None:
        """Record the duration of a planning round."""
        self._rounds.record(took_s)

    def on_admitted(self, request: LiveRequest) -> None:
        """Count a request by its verdict."""
        (self._guaranteed if request.guaranteed else self._best_effort).add(*self._whose(request))

    def on_refused(self, refusal: Refusal) -> None:
        """Count a refusal by its reason, and send its trace."""
        error = refusal.error
        if self._traces.wants(refusal.trace):
            attributes = {spans.REQUEST_ID: refusal.request_id, catalogue.ERROR: reason_of(error)}
            part = Part("refused", refusal.arrival_s, refusal.refused_s, attributes)
            self._traces.end(refusal.trace, part, error=_told(error))
        binding = error.metadata.get("binding", NONE).lower()
        self._refused.add(reason_of(error), binding)

    def over_quota(self, tenant: str, quota: str) -> None:
        """Count a call that was not let through because a quota is used up."""
        self._over_quota.add(self._tenants.value(tenant), quota)

    def on_ended(self, request: LiveRequest, record: RequestRecord, error: RequestError | None) -> None:
        """Count an end and what it says of the promise, and send the trace."""
        if request.trace is not None and self._traces.wants(request.trace):
            whole = spans.whole(record, request.parsed.operation, self._model_name)
            self._traces.end(request.trace, whole, spans.parts(record), error=record.detail)
        whose = profile, _ = self._whose(request)
        attainment, phases_s = record.attainment, record.phases_s
        assert attainment is not None
        assert phases_s is not None
        self._ended.add(OUTCOMES[record.ending])
        for phase, spent_s in phases_s.items():
            self._times.add(phase.value, profile, amount=spent_s)
        self._tokens.add("input", amount=record.prompt_tokens)
        self._tokens.add("cached", amount=record.cached_tokens)
        self._tokens.add("output", amount=record.completion_tokens)
        if record.guaranteed and record.ending is Ending.KEPT:
            self._kept.add(*whose)
        elif record.guaranteed and record.ending in (Ending.MISSED, Ending.FAILED):
            broken_by = record.broken_by or record.phase
            self._missed.add(*whose, NONE if broken_by is None else broken_by.value)
        labels = {
            catalogue.OPERATION: request.parsed.operation,
            catalogue.PROVIDER: PROVIDER,
            catalogue.MODEL: self._model_name,
            catalogue.PROFILE: profile,
        }
        duration_s = record.ended_s - record.arrival_s
        if OUTCOMES[record.ending] != DONE:
            failure = CANCELLED if error is None else reason_of(error)
            self._duration.record(duration_s, {**labels, catalogue.ERROR: failure})
            return
        self._duration.record(duration_s, labels)
        self._latencies(attainment, labels)
        if record.guaranteed:
            self._compare(request, attainment)

    def _latencies(self, attainment: Attainment, labels: dict[str, str]) -> None:
        if attainment.ttft_s is not None:
            self._ttft.record(attainment.ttft_s, labels)
        if attainment.mean_tpot_s is not None:
            self._tpot.record(attainment.mean_tpot_s, labels)
            self._required_tpot.record(attainment.required_tpot_s, {catalogue.PROFILE: labels[catalogue.PROFILE]})

    def _compare(self, request: LiveRequest, attainment: Attainment) -> None:
        """Count whether the request kept within the bounds that were forecast at its admission."""
        promised = request.promised
        if attainment.ttft_s is not None:
            self._forecasts.add("ttft", _yes(attainment.ttft_s <= promised.ttft.bound_s))
        if attainment.mean_tpot_s is not None:
            self._forecasts.add("tpot", _yes(attainment.required_tpot_s <= promised.tpot.bound_s))

    def _whose(self, request: LiveRequest) -> tuple[str, str]:
        return self._profiles.value(profile_of(request.contract)), self._tenants.value(request.parsed.tenant)


def _yes(answer: bool) -> str:
    return "true" if answer else "false"


def _told(error: RequestError) -> str:
    """Return what a trace says of a refusal: of a field that makes no sense only its name, because errors quote it."""
    return f"{error.field}: makes no sense" if isinstance(error, InvalidRequestError) else str(error)
