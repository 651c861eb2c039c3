"""Tables of simulated figures, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from simulator.experiments import BOUND, PAPER, CapacityRecord, RateRecord
from simulator.policies.catalogue import OURS, OURS_TUNED

NOTE = "simulated: no GPU was used"
PAPERS_BASELINES = frozenset({"vllm-prefill-first", "vllm-chunked", "vllm-speculative", "sarathi", "distserve"})


def capacity_table(records: Sequence[CapacityRecord], *, at_99: bool = False) -> str:
    """Return a table with a row for each policy and a column for each scenario, and how ours compares with each."""
    scenarios = list(dict.fromkeys(record.scenario for record in records))
    policies = list(dict.fromkeys(record.policy for record in records))
    figures = {(r.scenario, r.policy): _figure(r, at_99=at_99) for r in records}

    def best_of(names: Iterable[str]) -> dict[str, float]:
        return {s: max((figures.get((s, name), 0.0) for name in names), default=0.0) for s in scenarios}

    best = best_of(OURS)
    share = "99 %" if at_99 else "90 %"
    lines = [
        f"| requests/s per GPU at {share} ({NOTE}) | {' | '.join(scenarios)} | ours / this, geometric mean |",
        "|---|" + "---:|" * (len(scenarios) + 1),
    ]
    for name in policies:
        cells = [f"{figures[s, name]:.3f}" if (s, name) in figures else "-" for s in scenarios]
        ratio, missing = geometric_mean([(best[s], figures[s, name]) for s in scenarios if (s, name) in figures])
        told = (
            ""
            if math.isnan(ratio)
            else f"{ratio:.2f}" + (f" ({missing} left out, where one of them is 0)" if missing else "")
        )
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if name in OURS else told} |")
    rivals = [name for name in policies if name not in OURS and name not in {BOUND, PAPER, OURS_TUNED}]
    papers = best_of(PAPERS_BASELINES)
    for told, these, those in (
        ("Best of ours over the best of what the paper compared with", best, papers),
        ("Best of ours over the best baseline of each scenario", best, best_of(rivals)),
        ("Best of ours over the paper's planner", best, best_of([PAPER])),
        ("Best of ours over the bound", best, best_of([BOUND])),
        ("The bound over the best of what the paper compared with", best_of([BOUND]), papers),
    ):
        ratio, missing = geometric_mean([(these[s], those[s]) for s in scenarios])
        if not math.isnan(ratio):
            note = f"; left out, where one of them is 0: {missing}" if missing else ""
            lines.append(f"\n{told}: {ratio:.2f}x{note}.")
    lengths = [f"{s} {_seconds(records, s)}" for s in scenarios]
    lines.append(f"\nSeconds of arrivals that count, at the capacity of each policy: {', '.join(lengths)}.")
    return "\n".join(lines)


def _seconds(records: Sequence[CapacityRecord], scenario: str) -> str:
    found = [record.seconds for record in records if record.scenario == scenario and record.seconds > 0]
    return f"{min(found):.0f} to {max(found):.0f}" if found else "-"


def geometric_mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Return the geometric mean of the ratios of pairs, NaN without any, and how many pairs with a 0 were left out."""
    ratios = [ours / theirs for ours, theirs in pairs if ours > 0 and theirs > 0]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    return mean, len(pairs) - len(ratios)


def rate_table(records: Sequence[RateRecord]) -> str:
    """Return a table of attainment and goodput by rate."""
    lines = [
        f"| scenario | policy ({NOTE}) | requests/s offered | attained | goodput, requests/s | guaranteed | kept |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in records:
        promised = f"{r.guaranteed} | {r.guaranteed_kept}" if r.guaranteed else " | "
        lines.append(
            f"| {r.scenario} | {r.policy} | {r.rate:.2f} | {r.attainment:.3f} | {r.goodput_rps:.2f} | {promised} |"
        )
    return "\n".join(lines)


def change_table(records: Sequence[RateRecord], cpu_ms: Mapping[RateRecord, float]) -> str:
    """Return a table of what ours keeps with one thing changed at a time.

    Args:
        cpu_ms: CPU time that simulating a request took, in milliseconds, where that was measured.
    """
    more = " CPU, ms a request |" if cpu_ms else ""
    lines = [
        f"| scenario | policy ({NOTE}) | changed | GPUs | requests/s | requests | attained | guaranteed | kept |{more}",
        "|---|---|---|---:|---:|---:|---:|---:|---:|" + ("---:|" if more else ""),
    ]
    for r in records:
        cost = f" {cpu_ms[r]:.2f} |" if r in cpu_ms else ""
        lines.append(
            f"| {r.scenario} | {r.policy} | {r.change} | {r.gpus} | {r.rate:.2f} | {r.offered} | {r.attainment:.3f} "
            f"| {r.guaranteed} | {r.guaranteed_kept} |{cost}"
        )
    return "\n".join(lines)


def _figure(record: CapacityRecord, *, at_99: bool) -> float:
    return record.capacity_99_rps_per_gpu if at_99 else record.capacity_90_rps_per_gpu
