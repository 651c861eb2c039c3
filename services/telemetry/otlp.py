"""Exporters that send metrics and spans to an OpenTelemetry collector."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

    from services.telemetry.settings import TelemetrySettings

TIMEOUT_S = 5.0
"""Seconds that one export may take, which bounds a shutdown while the collector does not answer."""


def metric_exporter(settings: TelemetrySettings) -> MetricExporter:
    """Build the exporter of metrics for the configured collector and protocol."""
    if settings.otlp_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        return GrpcExporter(endpoint=settings.otlp_endpoint, timeout=TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    return HttpExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/metrics", timeout=TIMEOUT_S)


def span_exporter(settings: TelemetrySettings) -> SpanExporter:
    """Build the exporter of spans for the configured collector and protocol."""
    if settings.otlp_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=settings.otlp_endpoint, timeout=TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces", timeout=TIMEOUT_S)
