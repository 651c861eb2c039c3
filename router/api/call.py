"""A gRPC call as it reached this router, besides its message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from services.network.address import peer_host
from services.rpc.errors import REQUEST_ID_METADATA
from services.telemetry.traces import TRACEPARENT, TRACESTATE, Trace, Traces

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of Generate or Quote has reached this router."""

    metadata: Mapping[str, str]
    """Metadata of the call, without binary values; names are in lower case."""
    trace: Trace
    """The part of the client's trace, or of a new one, that this router adds to."""
    arrival_s: float
    """Time at which the call arrived, on the router's monotonic clock; its TTFT counts from here."""
    peer_host: str = ""
    """Host that the call came from, as gRPC names it, without its port."""

    @classmethod
    def from_context(cls, context: Context, traces: Traces, now_s: float) -> Self:
        """Read a call that arrived at `now_s`."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        trace = traces.begin(metadata.get(TRACEPARENT, ""), metadata.get(TRACESTATE, ""), from_client=True)
        return cls(metadata, trace, now_s, peer_host(context.peer()))

    @property
    def request_id(self) -> str:
        """Id that the caller gave the request in metadata; empty if it gave none."""
        return self.metadata.get(REQUEST_ID_METADATA, "")
