"""Metric instruments under vLLM's names, whose colon OpenTelemetry does not allow: for Prometheus only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import prometheus_client

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from services.telemetry.catalogue import Metric

ENGINE = "0"
"""Label of the only engine of a worker; vLLM numbers the engines of a process."""


class VllmNames:
    """Builds the instruments of one worker from the entries of the catalogue."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry = registry
        self._labels = {"model_name": model_name, "engine": ENGINE}

    def gauge(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Register a gauge.

        Args:
            read: returns the current value; it is called from another thread.
            labels: values of the labels besides model and engine.
        """
        values = {**self._labels, **labels}
        gauge = prometheus_client.Gauge(metric.name, metric.meaning, metric.labels, registry=self._registry)
        gauge.labels(**{label: values[label] for label in metric.labels}).set_function(read)

    def counter(self, metric: Metric) -> prometheus_client.Counter:
        """Build a counter."""
        return self._counter(metric).labels(**self._labels)

    def counters(self, metric: Metric, label: str, values: tuple[str, ...]) -> dict[str, prometheus_client.Counter]:
        """Build one counter for each value of a further label."""
        counter = self._counter(metric)
        return {value: counter.labels(**self._labels, **{label: value}) for value in values}

    def histogram(self, metric: Metric) -> prometheus_client.Histogram:
        """Build a histogram."""
        histogram = prometheus_client.Histogram(
            metric.name, metric.meaning, metric.labels, registry=self._registry, buckets=metric.buckets
        )
        return histogram.labels(**self._labels)

    def _counter(self, metric: Metric) -> prometheus_client.Counter:
        return prometheus_client.Counter(metric.name, metric.meaning, metric.labels, registry=self._registry)
