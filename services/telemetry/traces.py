"""Traces: one a request, through every process. Spans are built from recorded times when a request's part here is over.

No tracer is asked for a span when something begins: the context that travels is made of two random numbers, and a
request that is not sampled costs no more than that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry import trace as api
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
SCOPE = InstrumentationScope("slos-serve")
_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_propagator = TraceContextTextMapPropagator()
_ids = RandomIdGenerator()

Attributes = Mapping[str, str | bool | int | float]


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace of a request as one process carries it on."""

    context: SpanContext
    """Of the span that stands for this process; the next hop's parent."""
    parent: SpanContext | None = None

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, as tools show it."""
        return f"{self.context.trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """W3C's header for the next hop."""
        flags = int(self.context.trace_flags) & TraceFlags.SAMPLED
        return f"00-{self.context.trace_id:032x}-{self.context.span_id:016x}-{flags:02x}"

    @property
    def tracestate(self) -> str:
        return self.context.trace_state.to_header()


@dataclass(frozen=True, slots=True)
class Part:
    """Something that took time, on the monotonic clock."""

    name: str
    began_s: float
    ended_s: float
    attributes: Attributes = field(default_factory=dict)


class Traces:
    """Makes and sends the spans of one process."""

    def __init__(self, resource: Resource, sample_ratio: float, processor: SpanProcessor | None) -> None:
        """
        Args:
            sample_ratio: share of traces sampled of those that begin here; whoever sends a context has decided.
            processor: takes the spans. None: contexts are handed on, and no span is made.
        """
        self._resource = resource
        self._processor = processor
        self._bound = TraceIdRatioBased.get_bound_for_rate(sample_ratio)

    def begin(self, traceparent: str = "", tracestate: str = "") -> Trace:
        """A request has come, with the context of whoever sent it; one that makes no sense is none."""
        parent = _extract(traceparent, tracestate) if traceparent else None
        if parent is not None and self._processor is None:
            return Trace(parent)
        if parent is None:
            trace_id = _ids.generate_trace_id()
            sampled = self._processor is not None and trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
            flags, state = _SAMPLED if sampled else _NOT_SAMPLED, None
        else:
            trace_id, flags, state = parent.trace_id, parent.trace_flags, parent.trace_state
        return Trace(SpanContext(trace_id, _ids.generate_span_id(), False, flags, state), parent)

    def wants(self, trace: Trace) -> bool:
        """Its spans are to be made."""
        return self._processor is not None and trace.context.trace_flags.sampled

    def end(
        self, trace: Trace, whole: Part, parts: Iterable[Part] = (), *, serves: bool = True, error: str = ""
    ) -> None:
        """The part of a request that passes here is over.

        Args:
            whole: becomes the span of `trace`.
            parts: become its children.
            serves: it answered a call; else it is work inside of one.
            error: why it failed; empty if it did not.
        """
        if self._processor is None or not trace.context.trace_flags.sampled:
            return
        to_unix_ns = time.time_ns() - time.monotonic_ns()
        kind = SpanKind.SERVER if serves else SpanKind.INTERNAL
        status = Status(StatusCode.ERROR, error) if error else Status(StatusCode.UNSET)
        self._emit(whole, trace.context, trace.parent, to_unix_ns, kind, status)
        for part in parts:
            own = trace.context
            context = SpanContext(own.trace_id, _ids.generate_span_id(), False, own.trace_flags, own.trace_state)
            self._emit(part, context, own, to_unix_ns, SpanKind.INTERNAL, Status(StatusCode.UNSET))

    def close(self) -> None:
        """Send what is left."""
        if self._processor is not None:
            self._processor.shutdown()

    def _emit(
        self,
        part: Part,
        context: SpanContext,
        parent: SpanContext | None,
        to_unix_ns: int,
        kind: SpanKind,
        status: Status,
    ) -> None:
        assert self._processor is not None
        # Built directly: a tracer would choose the id of a span that others have named as their parent already.
        span = ReadableSpan(
            name=part.name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=dict(part.attributes),
            kind=kind,
            status=status,
            start_time=int(part.began_s * 1e9) + to_unix_ns,
            end_time=int(max(part.began_s, part.ended_s) * 1e9) + to_unix_ns,
            instrumentation_scope=SCOPE,
        )
        self._processor.on_end(span)


def trace_id_of(traceparent: str) -> str:
    """Of a header that this cluster made; empty for none."""
    return traceparent.split("-")[1] if traceparent else ""


def _extract(traceparent: str, tracestate: str) -> SpanContext | None:
    carried = _propagator.extract({TRACEPARENT: traceparent, TRACESTATE: tracestate})
    context = api.get_current_span(carried).get_span_context()
    return context if context.is_valid else None
