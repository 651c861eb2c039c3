"""The entries of the metric catalogue."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """Type of a metric, which says how its values are to be read."""

    COUNTER = "counter"
    """A count since the process started, which only grows."""
    GAUGE = "gauge"
    """A value at the moment of the scrape."""
    HISTOGRAM = "histogram"
    """Counts of values by size since the process started."""


class Process(enum.Enum):
    """Kinds of processes that have metrics."""

    ROUTER = "router"
    PREFILL = "prefill worker"
    DECODE = "decode worker"
    GATEWAY = "gateway"


WORKERS = (Process.PREFILL, Process.DECODE)
_UNIT_SUFFIXES = {"s": "_seconds", "By": "_bytes"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, from which its instrument and its documentation are built."""

    name: str
    """Name for OpenTelemetry, or vLLM's own name with a colon, which OpenTelemetry does not allow."""
    kind: Kind
    unit: str
    """Unit by UCUM: `s`, `By`, `1` for a share, or the counted thing in braces."""
    meaning: str
    processes: tuple[Process, ...]
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""

    @property
    def prometheus_name(self) -> str:
        """Name that a scrape shows, without the `_bucket`, `_count` and `_sum` of a histogram."""
        if ":" in self.name:
            name = self.name
        else:
            name = self.name.replace(".", "_")
            suffix = _UNIT_SUFFIXES.get(self.unit, "")
            name = name if name.endswith(suffix) else name + suffix
        return f"{name}_total" if self.kind is Kind.COUNTER and not name.endswith("_total") else name

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """Names of the labels that a scrape shows."""
        return tuple(label.replace(".", "_") for label in self.labels)
