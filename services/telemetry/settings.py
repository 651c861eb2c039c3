"""Options for metrics and traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class TelemetrySettings(BaseModel):
    """Metrics and traces of every process; `docs/reference/telemetry.md` has the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    metrics: bool = True
    """Serve metrics for Prometheus at `/metrics`, in every process."""
    metrics_host: str = "127.0.0.1"
    """Address to listen on for Prometheus."""
    metrics_token_file: Path | None = None
    """File with a token that Prometheus must send (`authorization`, `credentials_file` in its configuration); it is
    read for each scrape. Unset: everybody who reaches the page reads it; on other addresses than loopback only with
    `auth.insecure`."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port to listen on for Prometheus; 0 takes a free one. The launcher counts up from it, one per process;
    `slos-serve status` shows which process has which."""
    otlp_endpoint: str = ""
    """`http://host:port` of an OpenTelemetry collector. Empty: nothing is exported."""
    otlp_protocol: Literal["grpc", "http/protobuf"] = "grpc"
    """Protocol of the collector."""
    otlp_interval_s: PositiveFloat = 15.0
    """Interval at which metrics are exported. Seconds."""
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of requests that are traced. A request with a trace context is traced if that context says so: within
    this share, and beyond it ten a second. Without a collector there are no traces."""
    max_label_values: PositiveInt = 100
    """Number of values that are kept apart of a label that clients choose (tenant, profile); later ones count as
    `other`."""
