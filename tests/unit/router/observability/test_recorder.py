"""What the router counts of its requests."""

from __future__ import annotations

from pathlib import Path

import prometheus_client
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry

from router.observability.recorder import Recorder
from router.requests.events import Refusal
from router.requests.live_request import LiveRequest
from router.requests.phases import Phase
from router.requests.planning_log import PlanningLog
from router.requests.request_record import record_of
from services.rpc.errors import OverloadedError, RequestError, WorkerLostError
from services.state.journal_entry import RequestState
from services.telemetry.catalogue import router as catalogue
from services.telemetry.meters import Meters
from services.telemetry.traces import Traces
from tests.support.scrape import Page
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import Desk, contract

PROMPT_TOKENS = 100
UNTRACED = Traces(Resource.get_empty(), 0.0, None)


class Bench:
    """Requests whose phases a test makes up, and what is shown of them."""

    def __init__(self, model_dir: Path) -> None:
        self.registry = CollectorRegistry()
        reader = PrometheusMetricReader(scope_info_enabled=False, registry=self.registry)
        self.recorder = Recorder(Meters(MeterProvider([reader])), UNTRACED, "m", ("chatbot",), max_label_values=2)
        self._model_dir = model_dir
        self._requests = 0

    def request(self, ttft_s: float = 0.1, tpot_s: float = 0.05) -> LiveRequest:
        self._requests += 1
        desk = Desk(self._model_dir)
        arrival = desk.arrival(f"r{self._requests}", PROMPT_TOKENS, contract(ttft_s, tpot_s), 0.0)
        live = desk.take(arrival, desk.assess(arrival.parsed.request_id, PROMPT_TOKENS, arrival.contract, 0.0))
        assert live.guaranteed
        self.recorder.on_admitted(live)
        return live

    def end(self, live: LiveRequest, state: RequestState, at_s: float, error: RequestError | None = None) -> None:
        live.enter(state)
        self.recorder.on_ended(live, record_of(live, at_s, lambda request: 0.02), error)

    def page(self) -> Page:
        return Page(prometheus_client.generate_latest(self.registry).decode())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(write_tiny_model(tmp_path / "tiny"))


def run(live: LiveRequest, *phases: tuple[Phase, float]) -> None:
    """Enter the phases at these times."""
    for phase, at_s in phases:
        live.clock.enter(phase, at_s)


def tokens(live: LiveRequest, *times_s: float) -> None:
    for at_s in times_s:
        live.generated.append(1)
        live.meter.note_tokens(1, at_s)


def test_a_promise_kept_shows_in_every_figure(bench: Bench) -> None:
    live = bench.request()
    run(live, (Phase.QUEUE, 0.001), (Phase.PREFILL_WAIT, 0.002), (Phase.PREFILL, 0.012))
    tokens(live, 0.05)
    run(live, (Phase.HANDOVER, 0.05), (Phase.DECODE, 0.055))
    tokens(live, 0.065, 0.085)
    bench.end(live, RequestState.DONE, 0.086)
    page = bench.page()
    assert page.value(catalogue.PROMISES_GUARANTEED, slos_profile="own contract", slos_tenant="none") == 1
    assert page.value(catalogue.PROMISES_KEPT) == 1
    assert page.value(catalogue.PROMISES_MISSED) == 0
    assert page.value(catalogue.REQUESTS_ENDED, slos_outcome="done") == 1
    assert page.value(catalogue.TOKENS, gen_ai_token_type="input") == PROMPT_TOKENS
    assert page.value(catalogue.TOKENS, gen_ai_token_type="output") == 3
    assert page.value(catalogue.PHASE_TIME, slos_phase="prefill") == pytest.approx(0.038)
    assert page.value(catalogue.PHASE_TIME) == pytest.approx(0.086)
    for histogram, total_s in (
        (catalogue.REQUEST_DURATION, 0.086),
        (catalogue.TIME_TO_FIRST_TOKEN, 0.05),
        (catalogue.TIME_PER_OUTPUT_TOKEN, 0.0175),
        (catalogue.REQUIRED_TIME_PER_OUTPUT_TOKEN, 0.0175),
    ):
        assert page.value(histogram) == 1
        ((_, sum_s),) = page.samples[f"{histogram.prometheus_name}_sum"]
        assert sum_s == pytest.approx(total_s)


def test_a_promise_missed_is_counted_where_the_time_went(bench: Bench) -> None:
    live = bench.request()
    run(live, (Phase.QUEUE, 0.001), (Phase.PREFILL_WAIT, 0.180), (Phase.PREFILL, 0.185))
    tokens(live, 0.2)
    run(live, (Phase.HANDOVER, 0.2), (Phase.DECODE, 0.9))
    bench.end(live, RequestState.DONE, 1.0)
    assert bench.page().value(catalogue.PROMISES_MISSED, slos_phase="queue", slos_profile="own contract") == 1
    assert bench.page().value(catalogue.PROMISES_MISSED) == 1
    assert bench.page().value(catalogue.FORECASTS, slos_figure="ttft", slos_within_bound="false") == 1


def test_a_failure_breaks_the_promise_and_a_cancellation_does_not(bench: Bench) -> None:
    for state, error in ((RequestState.FAILED, WorkerLostError("lost")), (RequestState.CANCELLED, None)):
        live = bench.request()
        run(live, (Phase.QUEUE, 0.001), (Phase.PREFILL_WAIT, 0.002), (Phase.RESTART, 0.003))
        bench.end(live, state, 0.5, error)
    page = bench.page()
    assert page.value(catalogue.PROMISES_MISSED, slos_phase="restart") == 1
    assert page.value(catalogue.PROMISES_MISSED) == 1
    assert page.value(catalogue.REQUEST_DURATION, error_type="WORKER_LOST") == 1
    assert page.value(catalogue.REQUEST_DURATION, error_type="CANCELLED") == 1
    assert page.value(catalogue.TIME_TO_FIRST_TOKEN) == 0


def test_refusals_are_told_apart_by_reason_and_by_what_binds(bench: Bench) -> None:
    for error in (OverloadedError("no", metadata={"binding": "DECODE_RATE"}), OverloadedError("queue full")):
        bench.recorder.on_refused(Refusal(error, UNTRACED.begin(), "r", 70.0, 71.0, None, PlanningLog()))
    page = bench.page()
    assert page.value(catalogue.REQUESTS_REFUSED, slos_reason="OVERLOADED", slos_binding="decode_rate") == 1
    assert page.value(catalogue.REQUESTS_REFUSED, slos_reason="OVERLOADED", slos_binding="none") == 1
