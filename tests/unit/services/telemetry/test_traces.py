"""Trace contexts on their way, and the spans that are made of recorded times."""

from __future__ import annotations

import time

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.telemetry.traces import (
    CLIENT_TRACES_AT_ONCE,
    CLIENT_TRACES_PER_S,
    Part,
    Traces,
    trace_id_of,
)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = PARENT[:-2] + "00"


def traces(ratio: float = 1.0) -> tuple[Traces, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    return Traces(Resource.get_empty(), ratio, SimpleSpanProcessor(exporter)), exporter


def test_a_callers_trace_goes_on_under_a_span_of_ours() -> None:
    made, _ = traces(ratio=0.0)
    trace = made.begin(PARENT, "a=1,b=2")
    assert trace.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert trace.traceparent.startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert trace.traceparent.endswith("-01")
    assert "b7ad6b7169203331" not in trace.traceparent
    assert trace.tracestate == "a=1,b=2"
    assert made.wants(trace), "the caller has decided that it is sampled, whatever our ratio"
    assert trace_id_of(trace.traceparent) == trace.trace_id


def test_a_caller_that_does_not_sample_is_heeded() -> None:
    made, exporter = traces(ratio=1.0)
    trace = made.begin(NOT_SAMPLED)
    made.end(trace, Part("whole", 0.0, 1.0), [Part("part", 0.0, 1.0)])
    assert not made.wants(trace)
    assert trace.traceparent.endswith("-00")
    assert not exporter.get_finished_spans()


def test_without_a_collector_the_callers_context_is_handed_on_as_it_is() -> None:
    made = Traces(Resource.get_empty(), 1.0, None)
    assert made.begin(PARENT, "a=1").traceparent == PARENT
    own = made.begin()
    assert own.traceparent.endswith("-00")
    assert not made.wants(own)


@pytest.mark.parametrize(
    "garbage", ["", "x", "00-" + "0" * 32 + "-b7ad6b7169203331-01", PARENT[:-1], "ff" + PARENT[2:], PARENT.upper() * 2]
)
def test_a_context_that_makes_no_sense_is_none(garbage: str) -> None:
    made, _ = traces()
    trace = made.begin(garbage, "a=1")
    assert trace.parent is None
    assert trace.trace_id not in garbage.lower() or not garbage


def test_a_span_answers_a_call_or_is_work_inside_of_one() -> None:
    made, exporter = traces()
    made.end(made.begin(), Part("call", 0.0, 1.0), [Part("work", 0.0, 1.0)])
    made.end(made.begin(), Part("inside", 0.0, 1.0), serves=False)
    assert [(span.name, span.kind) for span in exporter.get_finished_spans()] == [
        ("call", SpanKind.SERVER),
        ("work", SpanKind.INTERNAL),
        ("inside", SpanKind.INTERNAL),
    ]


def test_a_span_never_ends_before_it_began() -> None:
    made, exporter = traces()
    made.end(made.begin(), Part("whole", 5_000.0, 4_999.5))
    (span,) = exporter.get_finished_spans()
    assert span.start_time == span.end_time


def test_children_carry_the_state_of_their_trace() -> None:
    made, exporter = traces()
    made.end(made.begin(PARENT, "a=1"), Part("whole", 0.0, 1.0), [Part("part", 0.0, 1.0)])
    for span in exporter.get_finished_spans():
        assert span.context is not None
        assert span.context.trace_state.to_header() == "a=1"
        assert span.context.trace_flags.sampled


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_the_ratio_is_kept_among_traces_that_begin_here(ratio: float) -> None:
    made, _ = traces(ratio)
    sampled = sum(made.wants(made.begin()) for _ in range(2000))
    assert abs(sampled - 2000 * ratio) <= 200


def test_spans_hang_together_and_lie_where_the_times_say() -> None:
    made, exporter = traces()
    trace = made.begin(PARENT)
    began_s = time.monotonic() - 5.0
    before_s = time.time() - 5.0
    made.end(
        trace,
        Part("whole", began_s, began_s + 2.0, {"slos.restarts": 1}),
        [Part("first", began_s, began_s + 0.5), Part("second", began_s + 0.5, began_s + 2.0)],
        error="it failed",
    )
    whole, first, second = exporter.get_finished_spans()
    assert whole.context is not None
    assert f"{whole.context.span_id:016x}" in trace.traceparent
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == "b7ad6b7169203331"
    assert [span.parent for span in (first, second)] == [whole.context, whole.context]
    assert len({span.context.span_id for span in (whole, first, second) if span.context}) == 3
    assert whole.attributes == {"slos.restarts": 1}
    assert not whole.status.is_ok
    assert first.status.is_ok
    assert whole.start_time is not None
    assert whole.end_time is not None
    assert whole.start_time / 1e9 == pytest.approx(before_s, abs=0.1)
    assert (whole.end_time - whole.start_time) / 1e9 == pytest.approx(2.0)


def test_what_clients_ask_to_be_sampled_is_bounded_beyond_the_ratio() -> None:
    now_s = 1000.0
    traces = Traces(Resource.get_empty(), 0.0, SimpleSpanProcessor(InMemorySpanExporter()), clock=lambda: now_s)
    asked = f"00-{'a' * 32}-{'b' * 16}-01"

    def sampled(count: int, *, from_client: bool = False) -> int:
        return sum(traces.wants(traces.begin(asked, from_client=from_client)) for _ in range(count))

    assert sampled(500, from_client=True) == CLIENT_TRACES_AT_ONCE
    now_s += 2.0
    assert sampled(500, from_client=True) == 2 * CLIENT_TRACES_PER_S
    assert sampled(500) == 500, "a router's own word is followed"
    assert traces.begin(asked, from_client=True).trace_id == "a" * 32, "the trace goes on without being sampled"


def test_a_client_is_followed_within_the_ratio() -> None:
    traces = Traces(Resource.get_empty(), 1.0, SimpleSpanProcessor(InMemorySpanExporter()))
    asked = f"00-{'a' * 32}-{'b' * 16}-01"
    assert all(traces.wants(traces.begin(asked, from_client=True)) for _ in range(500))


@pytest.mark.parametrize(
    "header", ["", "0", "no-trace", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", PARENT[:40], "-" * 99]
)
def test_what_is_no_trace_context_has_no_trace_id(header: str) -> None:
    assert trace_id_of(header) == ""
    assert trace_id_of(PARENT) == "0af7651916cd43dd8448eb211c80319c"
