"""The catalogue is sound, and processes show what it says."""

from __future__ import annotations

import re

import prometheus_client
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from services.telemetry.catalogue import CATALOGUE, Kind, Metric, router
from services.telemetry.meters import Meters
from tests.support.scrape import Page


def test_no_name_stands_for_two_things() -> None:
    names = [metric.prometheus_name for metric in CATALOGUE]
    assert len(names) == len(set(names))


def test_histograms_and_only_they_have_buckets() -> None:
    for metric in CATALOGUE:
        assert bool(metric.buckets) is (metric.kind is Kind.HISTOGRAM), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name


@pytest.mark.parametrize("target_s", [0.02, 0.05, 0.1, 0.2])
def test_buckets_tell_a_target_kept_from_one_missed_by_a_tenth(target_s: float) -> None:
    bounds = router.TIME_PER_OUTPUT_TOKEN.buckets
    assert target_s in bounds
    if target_s <= 0.1:
        assert any(target_s < bound <= 1.1 * target_s + 1e-9 for bound in bounds)


@pytest.mark.parametrize("metric", [metric for metric in CATALOGUE if ":" not in metric.name], ids=lambda m: m.name)
def test_a_scrape_shows_the_name_that_the_catalogue_says(metric: Metric) -> None:
    registry = CollectorRegistry()
    meters = Meters(MeterProvider([PrometheusMetricReader(scope_info_enabled=False, registry=registry)]))
    labels = dict.fromkeys(metric.labels, "x")
    if metric.kind is Kind.HISTOGRAM:
        meters.histogram(metric).record(1.0, labels)
    else:
        meters.observe(metric, lambda: [(1.0, labels)])
    page = Page(prometheus_client.generate_latest(registry).decode())
    assert page.value(metric) == 1
    assert page.labels(metric) == set(metric.prometheus_labels)
    assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", metric.prometheus_name)
