"""Traces of requests through all processes. Each request has one trace, and each process adds its spans at the end.

Spans are built from recorded times when a process has finished its part of a request. The context that travels with a
request is made of two random numbers, and a request that is not sampled costs no more than that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry import trace as api
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
SCOPE = InstrumentationScope("slos-serve")
_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_propagator = TraceContextTextMapPropagator()
_ids = RandomIdGenerator()

CLIENT_TRACES_PER_S, CLIENT_TRACES_AT_ONCE = 10.0, 100
"""Traces that clients may have sampled beyond the ratio, per second and in a burst: enough to follow requests from
another service, too few to load whoever stores them."""

Attributes = Mapping[str, str | bool | int | float]


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace of a request as one process carries it on."""

    context: SpanContext
    """Context of this process's span, which is the parent of the next hop's span."""
    parent: SpanContext | None = None
    """Context of the span that sent the request here; None if the trace begins here."""

    @property
    def trace_id(self) -> str:
        """Id of the trace in 32 hexadecimal digits, as tools show it."""
        return f"{self.context.trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """Value of W3C's `traceparent` header for the next hop."""
        flags = int(self.context.trace_flags) & TraceFlags.SAMPLED
        return f"00-{self.context.trace_id:032x}-{self.context.span_id:016x}-{flags:02x}"

    @property
    def tracestate(self) -> str:
        """Value of W3C's `tracestate` header for the next hop."""
        return self.context.trace_state.to_header()


@dataclass(frozen=True, slots=True)
class Part:
    """A span to be built: something that took time, on the monotonic clock."""

    name: str
    began_s: float
    ended_s: float
    attributes: Attributes = field(default_factory=dict)


@dataclass(slots=True)
class _Allowance:
    """A number of permissions that grows with time up to a limit."""

    per_s: float
    most: float
    clock: Callable[[], float]
    _left: float = field(init=False)
    _at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at_s = self.most, self.clock()

    def take(self) -> bool:
        """Take one permission; return False if none is left."""
        now_s = self.clock()
        self._left = min(self.most, self._left + self.per_s * (now_s - self._at_s))
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Traces:
    """Builds and sends the spans of one process."""

    def __init__(
        self,
        resource: Resource,
        sample_ratio: float,
        processor: SpanProcessor | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            sample_ratio: share of the traces beginning here that is sampled.
            processor: receives the spans; None: contexts are passed on, and no spans are built.
        """
        self._allowance = _Allowance(CLIENT_TRACES_PER_S, CLIENT_TRACES_AT_ONCE, clock)
        self._resource = resource
        self._processor = processor
        self._bound = TraceIdRatioBased.get_bound_for_rate(sample_ratio)

    def begin(self, traceparent: str = "", tracestate: str = "", *, from_client: bool = False) -> Trace:
        """Continue the trace of an incoming request; without a valid context, begin a trace.

        Args:
            from_client: whether the context may come from anybody. Sampling is then granted as far as the ratio and an
                allowance of `CLIENT_TRACES_PER_S` go. A context that this cluster made is followed.
        """
        parent = _extract(traceparent, tracestate) if traceparent else None
        if parent is not None and self._processor is None:
            return Trace(parent)
        if parent is None:
            trace_id = _ids.generate_trace_id()
            sampled = self._processor is not None and self._within_ratio(trace_id)
            flags, state = _SAMPLED if sampled else _NOT_SAMPLED, None
        else:
            trace_id, flags, state = parent.trace_id, parent.trace_flags, parent.trace_state
            if from_client and flags.sampled and not (self._within_ratio(trace_id) or self._allowance.take()):
                flags = _NOT_SAMPLED
        return Trace(SpanContext(trace_id, _ids.generate_span_id(), False, flags, state), parent)

    def _within_ratio(self, trace_id: int) -> bool:
        return trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound

    def wants(self, trace: Trace) -> bool:
        """Return whether spans of this trace are sent."""
        return self._processor is not None and trace.context.trace_flags.sampled

    def end(
        self, trace: Trace, whole: Part, parts: Iterable[Part] = (), *, serves: bool = True, error: str = ""
    ) -> None:
        """Send the spans of a request whose part in this process is over.

        Args:
            whole: the span of `trace` itself.
            parts: children of that span.
            serves: whether the span answered a call; otherwise it is work inside of one.
            error: the reason of a failure; empty if there was none.
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
        """Send the spans that have not been sent."""
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
    """Return the trace id in a `traceparent` header, 32 hexadecimal digits; empty if the header holds no valid one."""
    context = _extract(traceparent, "") if traceparent else None
    return "" if context is None else format_trace_id(context.trace_id)


def _extract(traceparent: str, tracestate: str) -> SpanContext | None:
    carried = _propagator.extract({TRACEPARENT: traceparent, TRACESTATE: tracestate})
    context = api.get_current_span(carried).get_span_context()
    return context if context.is_valid else None
