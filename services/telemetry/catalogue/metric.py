"""One entry of the metric catalogue."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """How a metric is to be read."""

    COUNTER = "counter"
    """Grows since the process started."""
    GAUGE = "gauge"
    """What is, at the moment of the scrape."""
    HISTOGRAM = "histogram"


class Process(enum.Enum):
    """Where a metric is found."""

    ROUTER = "router"
    PREFILL = "prefill worker"
    DECODE = "decode worker"
    GATEWAY = "gateway"


WORKERS = (Process.PREFILL, Process.DECODE)
_UNIT_SUFFIXES = {"s": "_seconds", "By": "_bytes"}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it is announced: the instruments are made from it, the documentation too."""

    name: str
    """As OpenTelemetry has it; vLLM's own names, which OpenTelemetry does not allow, as vLLM has them."""
    kind: Kind
    unit: str
    """UCUM: `s`, `By`, `1` for a share, or what is counted in braces."""
    meaning: str
    processes: tuple[Process, ...]
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""

    @property
    def prometheus_name(self) -> str:
        """As a scrape shows it, without the `_bucket`, `_count` and `_sum` of a histogram."""
        if ":" in self.name:
            name = self.name
        else:
            name = self.name.replace(".", "_")
            suffix = _UNIT_SUFFIXES.get(self.unit, "")
            name = name if name.endswith(suffix) else name + suffix
        return f"{name}_total" if self.kind is Kind.COUNTER and not name.endswith("_total") else name

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        return tuple(label.replace(".", "_") for label in self.labels)
