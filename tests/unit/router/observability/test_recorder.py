"""Metrics tell requests apart by profile, ending and phase, and promises kept from missed."""

from __future__ import annotations

from pathlib import Path

import prometheus_client
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from router.observability.recorder import Recorder
from router.requests.events import Refusal
from router.requests.live_request import LiveRequest
from router.requests.phases import Phase, PhaseClock
from router.requests.planning_log import PlanningLog
from router.requests.request_record import record_of
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.rpc.errors import InvalidRequestError, OverloadedError, RequestError, WorkerLostError
from services.slo.attainment import AttainmentMeter
from services.slo.latency_forecast import Forecast, Placement
from services.state.journal_entry import RequestState
from services.telemetry.catalogue import router as catalogue
from services.telemetry.meters import Meters
from services.telemetry.traces import Traces
from tests.support.scrape import Page
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import contract, parsed

PROMPT_TOKENS = 100
ARRIVAL_S = 600.0
UNTRACED = Traces(Resource.get_empty(), 0.0, None)


class Bench:
    """Requests whose phases a test makes up, and what is shown of them."""

    def __init__(self, model_dir: Path) -> None:
        self.registry = CollectorRegistry()
        reader = PrometheusMetricReader(scope_info_enabled=False, registry=self.registry)
        self.recorder = Recorder(Meters(MeterProvider([reader])), UNTRACED, "m", ("chatbot",), max_label_values=2)
        self._tokenizer = Tokenizer(model_dir)
        self._requests = 0

    def request(self, *, guaranteed: bool = True) -> LiveRequest:
        """Return an admitted request with targets of 0.1 s and 0.05 s, for which 0.1 s and 0.04 s were forecast."""
        self._requests += 1
        wanted = contract(0.1, 0.05)
        live = LiveRequest(
            parsed=parsed(f"r{self._requests}", PROMPT_TOKENS, wanted),
            contract=wanted,
            meter=AttainmentMeter(wanted, ARRIVAL_S),
            clock=PhaseClock(ARRIVAL_S),
            text=self._tokenizer.stream(skip_special_tokens=True),
            stops=StopStrings(()),
            placement=Placement("p1", "d1", ARRIVAL_S + 0.1, Forecast(0.04, 0.1), Forecast(0.01, 0.04)),
            guaranteed=guaranteed,
        )
        self.recorder.on_admitted(live)
        return live

    def end(self, live: LiveRequest, state: RequestState, at_s: float, error: RequestError | None = None) -> None:
        live.enter(state)
        self.recorder.on_ended(live, record_of(live, ARRIVAL_S + at_s, lambda request: 0.02), error)

    def page(self) -> Page:
        return Page(prometheus_client.generate_latest(self.registry).decode())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(write_tiny_model(tmp_path / "tiny"))


def run(live: LiveRequest, *phases: tuple[Phase, float]) -> None:
    """Enter the phases so many seconds after the arrival."""
    for phase, at_s in phases:
        live.clock.enter(phase, ARRIVAL_S + at_s)


def tokens(live: LiveRequest, *times_s: float) -> None:
    for at_s in times_s:
        live.generated.append(1)
        live.meter.note_tokens(1, ARRIVAL_S + at_s)


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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            InvalidRequestError("unknown role 'secret'", field="chat.messages[0].role"),
            "chat.messages[0].role: makes no sense",
        ),
        (OverloadedError("queue full"), "queue full"),
    ],
)
def test_the_trace_of_a_refusal_names_a_field_and_not_what_its_client_wrote(error: RequestError, said: str) -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(Resource.get_empty(), 1.0, SimpleSpanProcessor(exporter))
    recorder = Recorder(Meters(MeterProvider()), traces, "m", (), max_label_values=2)
    recorder.on_refused(Refusal(error, traces.begin(), "r", 70.0, 71.0, None, PlanningLog()))
    (span,) = exporter.get_finished_spans()
    assert span.status.description == said
    assert "secret" not in span.to_json()


def test_best_effort_is_no_promise(bench: Bench) -> None:
    live = bench.request(guaranteed=False)
    tokens(live, 0.5, 0.52)
    bench.end(live, RequestState.DONE, 0.6)
    page = bench.page()
    assert page.value(catalogue.BEST_EFFORT) == 1
    assert page.value(catalogue.TIME_TO_FIRST_TOKEN) == 1
    for metric in (catalogue.PROMISES_GUARANTEED, catalogue.PROMISES_KEPT, catalogue.PROMISES_MISSED):
        assert page.value(metric) == 0
    assert page.value(catalogue.FORECASTS) == 0


def test_forecasts_are_held_to_their_bounds(bench: Bench) -> None:
    for ttft_s, gap_s in ((0.08, 0.03), (0.08, 0.045), (0.11, 0.03)):
        live = bench.request()
        tokens(live, ttft_s, ttft_s + gap_s)
        bench.end(live, RequestState.DONE, 0.2)
    within = {
        (figure, answer): bench.page().value(catalogue.FORECASTS, slos_figure=figure, slos_within_bound=answer)
        for figure in ("ttft", "tpot")
        for answer in ("true", "false")
    }
    assert within == {("ttft", "true"): 2, ("ttft", "false"): 1, ("tpot", "true"): 2, ("tpot", "false"): 1}


def test_a_failure_is_missed_in_the_phase_that_it_ended_in(bench: Bench) -> None:
    live = bench.request()
    run(live, (Phase.QUEUE, 0.001), (Phase.PREFILL_WAIT, 0.002), (Phase.PREFILL, 0.003), (Phase.DECODE, 0.05))
    tokens(live, 0.05)
    bench.end(live, RequestState.FAILED, 0.06, WorkerLostError("lost"))
    assert bench.page().value(catalogue.PROMISES_MISSED, slos_phase="decode") == 1


def test_tokens_from_a_cache_are_counted(bench: Bench) -> None:
    live = bench.request()
    live.begin_prefill(32, ARRIVAL_S, ARRIVAL_S)
    bench.end(live, RequestState.CANCELLED, 0.06)
    assert bench.page().value(catalogue.TOKENS, gen_ai_token_type="cached") == 32
