"""Options for metrics and traces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class TelemetrySettings(BaseModel):
    """Metrics and traces of every process; `docs/telemetry.md` has the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    metrics: bool = True
    """Every process serves its metrics for Prometheus, at `/metrics`."""
    metrics_host: str = "127.0.0.1"
    """Address to listen on for it."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port to listen on for it; 0 takes a free one. The launcher counts up from it, one a process; `slos-serve status`
    shows where each is."""
    otlp_endpoint: str = ""
    """`http://host:port` of an OpenTelemetry collector. Empty: nothing is exported."""
    otlp_protocol: Literal["grpc", "http/protobuf"] = "grpc"
    """What the collector speaks there."""
    otlp_interval_s: PositiveFloat = 15.0
    """How often metrics are exported. Seconds."""
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of requests traced, of those that come without a trace context, which says it by itself. Traces are made
    only with a collector to send them to."""
    max_label_values: PositiveInt = 100
    """Values of one label that clients choose (tenant, profile) kept apart; later ones are counted as `other`."""
