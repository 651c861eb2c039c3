"""The cluster benchmark's records as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def details(records: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="A mixed workload on two cores (milliseconds)")
    columns = (
        "variant",
        "req/s",
        "n",
        "kept",
        "guaranteed",
        "of them kept",
        "local",
        "ITL p50",
        "p99",
        "TTFT p50",
        "p99",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for figures in records:
        times = (f"{figures[name] * 1e3:.0f}" for name in ("itl_p50_s", "itl_p99_s", "ttft_p50_s", "ttft_p99_s"))
        promised = figures["guaranteed"] is not None
        table.add_row(
            figures["variant"],
            f"{figures['rate']:.2f}",
            str(figures["requests"]),
            f"{figures['attainment']:.0%}",
            str(figures["guaranteed"]) if promised else "",
            str(figures["guarantees_kept"]) if promised else "",
            str(figures["prefilled_locally"]) if promised else "",
            *times,
        )
    return table
