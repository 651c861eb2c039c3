"""Reads the page that Prometheus would read."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from services.telemetry.catalogue import Kind, Metric

PROMETHEUS_ACCEPTS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@dataclass(slots=True)
class Page:
    """One scrape."""

    text: str
    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    """By the name of the sample."""
    types: dict[str, str] = field(default_factory=dict)
    """By the name of the family, as Prometheus has it."""

    def __post_init__(self) -> None:
        for family in text_string_to_metric_families(self.text):
            self.types[family.name] = family.type
            for sample in family.samples:
                self.samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def value(self, metric: Metric, **labels: str) -> float:
        """The sum over all series with these labels; of a histogram, the count."""
        name = metric.prometheus_name + ("_count" if metric.kind is Kind.HISTOGRAM else "")
        return sum(value for found, value in self.samples.get(name, []) if labels.items() <= found.items())

    def labels(self, metric: Metric) -> set[str]:
        name = metric.prometheus_name + ("_count" if metric.kind is Kind.HISTOGRAM else "")
        return {label for found, _ in self.samples.get(name, []) for label in found}


def scrape(address: str) -> Page:
    request = urllib.request.Request(f"http://{address}/metrics", headers={"accept": PROMETHEUS_ACCEPTS})
    with urllib.request.urlopen(request, timeout=10) as response:
        return Page(response.read().decode())
