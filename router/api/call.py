"""What comes with a call besides its message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from services.rpc.errors import REQUEST_ID_METADATA
from services.telemetry.traces import TRACEPARENT, TRACESTATE, Trace, Traces

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of Generate or Quote."""

    metadata: Mapping[str, str]
    trace: Trace
    arrival_s: float

    @classmethod
    def of(cls, context: Context, traces: Traces, now_s: float) -> Self:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        trace = traces.begin(metadata.get(TRACEPARENT, ""), metadata.get(TRACESTATE, ""))
        return cls(metadata, trace, now_s)

    @property
    def request_id(self) -> str:
        """The id under which others know it; empty if nobody said one."""
        return self.metadata.get(REQUEST_ID_METADATA, "")
