"""The Grafana dashboards ask for nothing that no process of ours measures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from services.telemetry.catalogue import CATALOGUE, Kind
from tests.support.dashboards import FILES, dashboard, expressions, variable_queries

GRAFANA = Path(__file__).resolve().parents[3] / "deploy" / "grafana"
KNOWN = {
    metric.prometheus_name + suffix: {*metric.prometheus_labels, *(("le",) if suffix == "_bucket" else ())}
    for metric in CATALOGUE
    for suffix in (("_bucket", "_count", "_sum") if metric.kind is Kind.HISTOGRAM else ("",))
}
SCRAPED = {"process", "instance", "job"}
"""Labels that Prometheus and the launcher's list of targets add."""
METRIC = re.compile(r"\b((?:slos|gen_ai|http|vllm)[_:][\w:]+)(?:\{([^}]*)\})?(?=[\[\s)\-]|$)")


def test_there_are_dashboards_for_promises_latency_workers_and_the_planner() -> None:
    assert [file.stem for file in FILES] == ["latency", "planner", "promises", "workers"]
    assert len({dashboard(file)["uid"] for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_metric_and_label_is_in_the_catalogue(file: Path) -> None:
    for title, expression in expressions(file):
        grouped = labels_grouped_by(expression)
        metrics = [(name, labels) for name, labels in METRIC.findall(expression) if name not in grouped]
        assert metrics, f"{title}: {expression}"
        known = SCRAPED.union(*(KNOWN[name] for name, _ in metrics if name in KNOWN))
        for name, labels in metrics:
            assert name in KNOWN, f"{title}: no process measures {name}"
            assert set(re.findall(r"(\w+)\s*[=!]", labels)) <= KNOWN[name] | SCRAPED, f"{title}: {name}{{{labels}}}"
        assert grouped <= known, f"{title}: {expression}"
    for name, label in variable_queries(file):
        assert label in KNOWN[name] | SCRAPED


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_do_not_overlap_and_say_what_they_show(file: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(file)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        legends = re.findall(r"\{\{(\w+)\}\}", " ".join(target["legendFormat"] for target in panel["targets"]))
        grouped = set().union(*(labels_grouped_by(target["expr"]) for target in panel["targets"]))
        assert all(label in grouped or "by (" not in panel["targets"][0]["expr"] for label in legends), panel["title"]


def test_provisioning_points_at_what_is_there() -> None:
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "slos-serve.yml").read_text())
    assert provider["providers"][0]["type"] == "file"
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert source["datasources"][0]["type"] == "prometheus"


def labels_grouped_by(expression: str) -> set[str]:
    return {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
