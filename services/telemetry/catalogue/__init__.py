"""The catalogue of all metrics of all processes, which `docs/reference/telemetry.md` shows as a table.

Instruments are built from its entries, so that no metric exists that is not listed here.
"""

from __future__ import annotations

from services.telemetry.catalogue import audit, gateway, router, vllm, worker
from services.telemetry.catalogue.metric import Kind, Metric, Process

__all__ = ["CATALOGUE", "Kind", "Metric", "Process", "of_process", "table"]

CATALOGUE: tuple[Metric, ...] = (*router.METRICS, *worker.METRICS, *vllm.METRICS, *gateway.METRICS, *audit.METRICS)


def of_process(process: Process) -> tuple[Metric, ...]:
    """Return the metrics that a scrape of this kind of process shows, besides those named `process_*`."""
    return tuple(metric for metric in CATALOGUE if process in metric.processes)


def table() -> str:
    """Write the catalogue in Markdown, one table per group of names."""
    groups = (
        ("Router", router.METRICS),
        ("Workers", worker.METRICS),
        ("Workers, under vLLM's names", vllm.METRICS),
        ("Gateway", gateway.METRICS),
        ("Audit log", audit.METRICS),
    )
    return "\n".join(f"### {title}\n\n{_rows(metrics)}" for title, metrics in groups)


def _rows(metrics: tuple[Metric, ...]) -> str:
    lines = ["| Prometheus name | type, unit | labels | meaning | where |", "|---|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.prometheus_labels)
        where = ", ".join(process.value for process in metric.processes)
        unit = metric.unit.strip("{}")
        lines.append(
            f"| `{metric.prometheus_name}` | {metric.kind.value}, {unit} | {labels} | {metric.meaning} | {where} |"
        )
    return "\n".join(lines) + "\n"
