"""Telemetry of one process: a page for Prometheus, and exports to an OTLP collector if there is one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import prometheus_client
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry, ProcessCollector

from services import audit
from services.network.address import advertised_address
from services.telemetry import otlp
from services.telemetry.catalogue.audit import AUDIT_EVENTS, AUDIT_LEFT_OUT, EVENT, REASON
from services.telemetry.meters import Meters
from services.telemetry.metrics_page import MetricsPage
from services.telemetry.traces import Traces

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

    from services.telemetry.settings import TelemetrySettings

SPANS_WAITING = 16384
"""Number of spans that may wait for the collector; further ones are dropped."""
SPAN_DELAY_S = 1.0
"""Seconds that a span waits, at most, to be sent together with others."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ProcessTelemetry:
    """Metrics and traces of one process. `close` sends what has not been sent.

    It starts threads, so that it must be built after the process has forked its children.

    Args:
        service: kind of the process, for example `slos-serve-router`.
        instance: name of this process among those of its kind.
    """

    settings: TelemetrySettings
    service: str
    instance: str
    meters: Meters = field(init=False)
    traces: Traces = field(init=False)
    registry: CollectorRegistry = field(init=False)
    """Registry for metrics whose names OpenTelemetry does not allow."""
    metrics_address: str = ""
    """Address of the page for Prometheus as host:port; empty if it is switched off or could not be served."""
    _provider: MeterProvider = field(init=False)
    _page: MetricsPage | None = None

    def __post_init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        resource = Resource.create(
            {
                SERVICE_NAME: self.service,
                SERVICE_INSTANCE_ID: self.instance,
                SERVICE_VERSION: version("slos-serve"),
            }
        )
        readers: list[MetricReader] = []
        if self.settings.metrics:
            readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=self.registry))
            ProcessCollector(registry=self.registry)
        if self.settings.otlp_endpoint:
            readers.append(
                PeriodicExportingMetricReader(
                    otlp.metric_exporter(self.settings), export_interval_millis=self.settings.otlp_interval_s * 1e3
                )
            )
        self._provider = MeterProvider(readers, resource, exemplar_filter=AlwaysOffExemplarFilter())
        self.meters = Meters(self._provider)
        self.meters.observe(AUDIT_EVENTS, lambda: [(count, {EVENT: kind}) for kind, count in audit.noted().items()])
        self.meters.observe(AUDIT_LEFT_OUT, lambda: [(count, {REASON: why}) for why, count in audit.left_out().items()])
        processor = None
        if self.settings.otlp_endpoint:
            processor = BatchSpanProcessor(
                otlp.span_exporter(self.settings),
                max_queue_size=SPANS_WAITING,
                schedule_delay_millis=SPAN_DELAY_S * 1e3,
            )
        self.traces = Traces(resource, self.settings.trace_sample_ratio, processor)

    def serve(self) -> str:
        """Serve the page for Prometheus and return its address; empty if it is switched off or its port is taken.

        A port that is taken is logged and nothing more, because requests can be served without metrics.
        """
        settings = self.settings
        if not settings.metrics:
            return ""
        try:
            page = MetricsPage(settings.metrics_host, settings.metrics_port, self.registry, settings.metrics_token_file)
        except OSError as error:
            _log.error("no metrics: cannot listen on %s:%d: %s", settings.metrics_host, settings.metrics_port, error)
            return ""
        self._page = page
        self.metrics_address = advertised_address(settings.metrics_host, page.port)
        _log.info("metrics on http://%s/metrics", self.metrics_address)
        return self.metrics_address

    def close(self) -> None:
        """Stop, and send what has not been sent. It waits for the collector: call it in a thread."""
        if self._page is not None:
            self._page.close()
            self._page = None
        self.traces.close()
        self._provider.shutdown(timeout_millis=otlp.TIMEOUT_S * 1e3)
