"""Every metric of every process: name, type, unit, labels, meaning. `docs/telemetry.md` shows it as a table.

Nothing is measured that is not here: the instruments are made from these entries.
"""

from __future__ import annotations

from services.telemetry.catalogue import gateway, router, vllm, worker
from services.telemetry.catalogue.metric import Kind, Metric, Process

__all__ = ["CATALOGUE", "Kind", "Metric", "Process", "of_process", "table"]

CATALOGUE: tuple[Metric, ...] = (*router.METRICS, *worker.METRICS, *vllm.METRICS, *gateway.METRICS)


def of_process(process: Process) -> tuple[Metric, ...]:
    """What a scrape of this kind of process shows, besides the figures of the process itself (`process_*`)."""
    return tuple(metric for metric in CATALOGUE if process in metric.processes)


def table() -> str:
    """The catalogue in Markdown, one table per group of names."""
    groups = (
        ("Router", router.METRICS),
        ("Workers", worker.METRICS),
        ("Workers, under vLLM's names", vllm.METRICS),
        ("Gateway", gateway.METRICS),
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
