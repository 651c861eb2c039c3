"""The engine benchmark's records as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

Record = dict[str, Any]


def report(records: Sequence[Record]) -> list[Table | str]:
    """Tables of the parts that were measured, and lines about them."""
    by_part: dict[str, list[Record]] = {}
    for record in records:
        by_part.setdefault(record["part"], []).append(record)
    printed: list[Table | str] = [
        f"A decode step of four requests takes {scale['step_s'] * 1e3:.1f} ms here; TPOT of 50 and 100 ms become "
        f"{scale['tight_tpot_s'] * 1e3:.0f} and {scale['loose_tpot_s'] * 1e3:.0f} ms. A prompt of 2,000 tokens alone "
        f"takes {scale['long_prompt_s'] * 1e3:.0f} ms."
        for scale in by_part.get("scale", [])
    ]
    if "streams" in by_part:
        printed.append(_latencies("Streams while 2,000-token prompts arrive", by_part["streams"]))
        printed += [
            f"{record['variant']}: by its model no scheduler can have a mean gap below "
            f"{record['least_mean_gap_s'] * 1e3:.1f} ms at this load"
            for record in by_part["streams"]
            if record.get("least_mean_gap_s")
        ]
    if "changing" in by_part:
        printed.append(_latencies("A changing load", by_part["changing"]))
    if "sweep" in by_part:
        printed.append(_latencies("A mixed workload", by_part["sweep"]))
        printed.append(goodput([record for record in by_part["sweep"] if record["profile"] == "all"]))
    if "drafts" in by_part:
        printed.append(_drafts(by_part["drafts"]))
    for model in by_part.get("model", []):
        for name in ("frozen", "online"):
            figures = model[name]
            printed.append(
                f"Model, {name} ({model['steps']} steps, second half judged): R2 {figures['r2']:.3f}, "
                f"MAPE {figures['mape']:.1%}, coverage of the 95 % bound {figures['bound_coverage']:.1%}"
            )
    printed += [_relearnt(record) for record in by_part.get("relearning", [])]
    if "cost" in by_part:
        printed += _cost(by_part["cost"])
    return printed


def _relearnt(record: Record) -> str:
    settled = "not at all" if record["settled_s"] is None else f"after {record['settled_s']:.1f} s"
    return (
        f"{record['change']}: error {record['error_before']:.1%} before, {record['error_of_first_10']:.1%} in the "
        f"first 10 steps, at most 10 % {settled}; {record['error_of_second_half']:.1%} in the second half of "
        f"{record['steps']} steps, of which {record['bound_coverage_of_second_half']:.1%} kept the bound for 99 %"
    )


def _latencies(title: str, records: Sequence[Record]) -> Table:
    table = Table(title=f"{title} (milliseconds)")
    columns = ("variant", "req/s", "profile", "n", "kept", "goodput/s", "ITL p50", "p99", "worst", "> 2 TPOT")
    for column in (*columns, "TTFT p50", "p99", "tokens/s"):
        table.add_column(column, justify="left" if column in ("variant", "profile") else "right")
    for record in records:
        times = (f"{record[name] * 1e3:.0f}" for name in ("itl_p50_s", "itl_p99_s", "itl_worst_s"))
        first = (f"{record[name] * 1e3:.0f}" for name in ("ttft_p50_s", "ttft_p99_s"))
        table.add_row(
            record["variant"],
            f"{record['rate']:.2f}",
            record["profile"],
            str(record["requests"]),
            "" if record["attainment"] is None else f"{record['attainment']:.0%}",
            f"{record['goodput_rps']:.2f}",
            *times,
            str(record["gaps_over_twice_tpot"]),
            *first,
            f"{record['tokens_per_s']:.0f}",
            end_section=record["profile"] == "all",
        )
    return table


def goodput(records: Sequence[Record]) -> Table:
    """Attained requests a second, by rate."""
    variants = list(dict.fromkeys(record["variant"] for record in records))
    found = {(record["rate"], record["variant"]): record for record in records}
    table = Table(title="Goodput in requests/s (share that kept its contract)")
    table.add_column("req/s", justify="right")
    for variant in variants:
        table.add_column(variant, justify="right")
    for rate in sorted({record["rate"] for record in records}):
        cells = [found.get((rate, variant)) for variant in variants]
        table.add_row(
            f"{rate:.2f}",
            *("" if cell is None else f"{cell['goodput_rps']:.2f} ({cell['attainment']:.0%})" for cell in cells),
        )
    return table


def _drafts(records: Sequence[Record]) -> Table:
    table = Table(title="Speculation by n-grams, four streams at once; TPOT of 1.3 decode steps")
    for column in ("variant", "text", "drafted", "accepted", "tokens/s per stream", "kept", "ITL p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in ("variant", "text") else "right")
    for record in records:
        table.add_row(
            record["variant"],
            record["profile"],
            f"{record['drafted']:.0f}",
            "" if record["acceptance"] is None else f"{record['acceptance']:.0%}",
            f"{record['decoded_tokens_per_s']:.1f}",
            f"{record['attainment']:.0%}",
            f"{record['itl_p50_s'] * 1e3:.0f}",
            f"{record['itl_p99_s'] * 1e3:.0f}",
        )
    return table


def _cost(records: Sequence[Record]) -> list[str]:
    by_variant = {record["variant"]: record for record in records}
    lines = [
        f"{record['variant']}, {record['running']} decodes: the composer {record['compose_s_p50'] * 1e6:.0f} us (p99 "
        f"{record['compose_s_p99'] * 1e6:.0f}), all of scheduling {record['scheduling_s_p50'] * 1e6:.0f} us of a step "
        f"of {(record['step_s_p50'] or 0.0) * 1e3:.0f} ms"
        for record in records
    ]
    if {"stock", "slo"} <= set(by_variant):
        stock, slo = by_variant["stock"], by_variant["slo"]
        more_s = slo["scheduling_s_p50"] - stock["scheduling_s_p50"]
        lines.append(f"Composing steps adds {more_s / stock['step_s_p50']:.1%} to a step.")
    return lines
