"""Metric instruments, built from the entries of the catalogue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Observation

from services.telemetry.catalogue import Kind, Metric

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, Meter, MeterProvider

SCOPE = "slos-serve"

Labels = Mapping[str, str]
Reading = tuple[float, Labels]

_log = logging.getLogger(__name__)


class Meters:
    """Builds the metric instruments of one process.

    Counters and gauges are read from figures that the process keeps anyway, when somebody scrapes, so that counting
    costs nothing. Histograms must be given each value, which takes about 10 us: give them one per request or engine
    step, not one per token.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._meter: Meter = provider.get_meter(SCOPE)

    def histogram(self, metric: Metric) -> Histogram:
        """Build a histogram."""
        assert metric.kind is Kind.HISTOGRAM, metric.name
        return self._meter.create_histogram(
            metric.name, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=metric.buckets
        )

    def observe(self, metric: Metric, read: Callable[[], Iterable[Reading]]) -> None:
        """Register a counter or gauge with labels.

        Args:
            read: returns the current values with their labels. It is called from another thread at any moment, so that
                it must copy (`list(...)`) whatever the event loop changes.
        """

        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            try:
                return [Observation(value, labels) for value, labels in read()]
            except Exception:
                _log.exception("metric %s could not be read", metric.name)
                raise

        if metric.kind is Kind.COUNTER:
            self._meter.create_observable_counter(metric.name, [callback], metric.unit, metric.meaning)
        else:
            assert metric.kind is Kind.GAUGE, metric.name
            self._meter.create_observable_gauge(metric.name, [callback], metric.unit, metric.meaning)

    def observe_one(self, metric: Metric, read: Callable[[], float]) -> None:
        """Register a counter or gauge without labels; `read` is called as in `observe`."""
        self.observe(metric, lambda: ((read(), {}),))


class Tally:
    """A counter with labels that is cheap to increase: it keeps one dictionary entry per combination of values."""

    def __init__(self, labels: tuple[str, ...], *expected: tuple[str, ...]) -> None:
        """
        Args:
            labels: names of the labels.
            expected: combinations of values that show 0 before their first count, so that a rate sees that count.
        """
        self._labels = labels
        self._counts: dict[tuple[str, ...], float] = dict.fromkeys(expected, 0)

    def add(self, *values: str, amount: float = 1) -> None:
        """Increase the count of one combination of label values.

        Args:
            values: one value per label, in the order of the labels.
        """
        self._counts[values] = self._counts.get(values, 0) + amount

    def readings(self) -> list[Reading]:
        """Return all counts with their labels. Any thread may call it."""
        return [(count, dict(zip(self._labels, values, strict=True))) for values, count in list(self._counts.items())]
