"""What telemetry costs a router's event loop for one request: every call that a request makes, and nothing else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_records
from router.observability.recorder import Recorder
from router.requests.live_request import LiveRequest
from router.requests.parsed_request import ParsedRequest
from router.requests.phases import Phase, PhaseClock
from router.requests.request_record import record_of
from services.config.settings import Settings
from services.engine.protocol import SamplingOptions
from services.model.directory import locate_model
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.latency_forecast import Forecast, Placement
from services.state.journal_entry import RequestState
from services.telemetry.meters import Meters
from services.telemetry.traces import Traces

REPEATS, CALLS = 7, 1000
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TOKENS = 50


class _Nowhere(SpanExporter):
    """A collector that takes everything and is not there: the cost of the wire is not the event loop's."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def run(output: Path | None) -> None:
    """Measure, print, and write JSON if told where."""
    model = locate_model(Settings().model, weights=False)
    tokenizer = Tokenizer(model.path)
    resource = Resource.get_empty()
    processor = BatchSpanProcessor(_Nowhere(), max_queue_size=1 << 20)
    without, sampling = Traces(resource, 0.0, None), Traces(resource, 1.0, processor)
    meters = Meters(MeterProvider([InMemoryMetricReader()], exemplar_filter=AlwaysOffExemplarFilter()))
    recorders = [Recorder(meters, traces, model.name, ("chatbot",), 100) for traces in (without, sampling)]
    lives = [_request(tokenizer, traces) for traces in (without, sampling)]
    records = [record_of(live, 3.0, lambda _request: 0.02) for live in lives]
    assert lives[1].trace is not None
    trace = lives[1].trace
    calls: dict[str, Callable[[], object]] = {
        "begin a trace, none sent along": without.begin,
        "begin a trace, one sent along": lambda: sampling.begin(TRACEPARENT, "vendor=1"),
        "context for a worker (twice a request)": lambda: (trace.traceparent, trace.tracestate),
        "count an admission": lambda: recorders[0].on_admitted(lives[0]),
        "count a planning round": lambda: recorders[0].on_round_ended(0.001),
        "count an end": lambda: recorders[0].on_ended(lives[0], records[0], None),
        "count an end and build its spans": lambda: recorders[1].on_ended(lives[1], records[1], None),
    }
    costs_us = {name: _measure(call) for name, call in calls.items()}
    processor.shutdown()  # type: ignore[no-untyped-call]
    table = Table("call", "us, median", "us, best")
    for name, (median_us, best_us) in costs_us.items():
        table.add_row(name, f"{median_us:.1f}", f"{best_us:.1f}")
    console = Console()
    console.print(table)
    console.print(machine())
    write_records(
        output, [{"call": name, "median_us": median, "best_us": best} for name, (median, best) in costs_us.items()]
    )


def _measure(call: Callable[[], object]) -> tuple[float, float]:
    times_us = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        for _ in range(CALLS):
            call()
        times_us.append((time.perf_counter() - began_s) / CALLS * 1e6)
    return statistics.median(times_us), min(times_us)


def _request(tokenizer: Tokenizer, traces: Traces) -> LiveRequest:
    """A promised request of fifty tokens that ran to its end."""
    contract = Contract(PrefillTarget(ttft_s=1.0), (DecodeTarget(0.1),), profile="chatbot")
    parsed = ParsedRequest(
        request_id="request",
        prompt=tuple(range(100, 200)),
        sampling=SamplingOptions(TOKENS),
        stop=(),
        include_stop=False,
        skip_special_tokens=True,
        contract=contract,
        application="",
        tenant="tenant",
    )
    live = LiveRequest(
        parsed=parsed,
        contract=contract,
        meter=AttainmentMeter(contract, 0.0),
        clock=PhaseClock(0.0),
        text=tokenizer.stream(skip_special_tokens=True),
        stops=StopStrings(()),
        placement=Placement("prefill-0", "decode-0", 1.0, Forecast(0.1, 0.2), Forecast(0.05, 0.1)),
        trace=traces.begin(),
        guaranteed=True,
    )
    phases = (Phase.QUEUE, Phase.PREFILL_WAIT, Phase.PREFILL, Phase.HANDOVER, Phase.DECODE)
    for index, phase in enumerate(phases):
        live.clock.enter(phase, 0.02 * (index + 1))
    for index in range(TOKENS):
        live.generated.append(1)
        live.meter.note_tokens(1, 0.08 + 0.05 * index)
    live.enter(RequestState.DONE)
    return live
