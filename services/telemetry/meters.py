"""Instruments, made from the entries of the catalogue."""

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
    """What measures in one process.

    Counters and gauges are read from figures that the process keeps anyway, when somebody scrapes: counting costs
    nothing. Only histograms are told of every value, about 10 us each; tell them per request or step, not per token.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._meter: Meter = provider.get_meter(SCOPE)

    def histogram(self, metric: Metric) -> Histogram:
        assert metric.kind is Kind.HISTOGRAM, metric.name
        return self._meter.create_histogram(
            metric.name, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=metric.buckets
        )

    def observe(self, metric: Metric, read: Callable[[], Iterable[Reading]]) -> None:
        """
        Args:
            read: the values with their labels now. Called from another thread, in the middle of anything: it must take
                copies (`list(...)`) of what the event loop changes.
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
        """As `observe`, for a metric without labels."""
        self.observe(metric, lambda: ((read(), {}),))


class Tally:
    """A counter by labels that is cheap to count with: one dictionary entry per combination."""

    def __init__(self, labels: tuple[str, ...], *expected: tuple[str, ...]) -> None:
        """
        Args:
            labels: their names.
            expected: values that are shown before they are counted first, so that a rate sees the first count.
        """
        self._labels = labels
        self._counts: dict[tuple[str, ...], float] = dict.fromkeys(expected, 0)

    def add(self, *values: str, amount: float = 1) -> None:
        """
        Args:
            values: of the labels, in their order.
        """
        self._counts[values] = self._counts.get(values, 0) + amount

    def readings(self) -> list[Reading]:
        return [(count, dict(zip(self._labels, values, strict=True))) for values, count in list(self._counts.items())]
