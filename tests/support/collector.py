"""An OpenTelemetry collector for tests: it speaks OTLP over gRPC and keeps what it is sent."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """One span, and who sent it."""

    service: str
    instance: str
    span: trace_pb2.Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def span_id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def attributes(self) -> dict[str, object]:
        return _values(self.span.attributes)


@dataclass(slots=True)
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Everything that was exported to it."""

    endpoint: str = ""
    metric_names: dict[str, set[str]] = field(default_factory=dict)
    """By service."""
    received: list[bytes] = field(default_factory=list)
    """Every export, as it came over the wire."""
    _spans: list[CollectedSpan] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def trace(self, trace_id: str) -> list[CollectedSpan]:
        """The spans of a trace so far, by their begin."""
        with self._lock:
            found = [item for item in self._spans if item.span.trace_id.hex() == trace_id]
        return sorted(found, key=lambda item: item.span.start_time_unix_nano)

    def counted(self, trace_id: str) -> Counter[tuple[str, str]]:
        """How many spans of each service and name a trace has."""
        return Counter((item.service, item.name) for item in self.trace(trace_id))

    def Export(  # noqa: N802 - the name is the wire's
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.received.append(request.SerializeToString())
        for resource in request.resource_spans:
            named = _values(resource.resource.attributes)
            service, instance = str(named["service.name"]), str(named["service.instance.id"])
            with self._lock:
                self._spans += [
                    CollectedSpan(service, instance, span) for scope in resource.scope_spans for span in scope.spans
                ]
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, names: dict[str, set[str]], received: list[bytes]) -> None:
        self._names = names
        self._received = received

    def Export(  # noqa: N802
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        self._received.append(request.SerializeToString())
        for resource in request.resource_metrics:
            service = str(_values(resource.resource.attributes)["service.name"])
            for scope in resource.scope_metrics:
                self._names.setdefault(service, set()).update(metric.name for metric in scope.metrics)
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    metrics = _Metrics(collector.metric_names, collector.received)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(metrics, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(grace=None)


def _values(attributes: Iterable[common_pb2.KeyValue]) -> dict[str, object]:
    return {item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in attributes}
