"""Tables and pictures of what was simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator.experiments import BOUND, CapacityRecord, RateRecord
from simulator.policies.catalogue import OURS

NOTE = "simulated: no GPU was used"
PAPER = "slos-serve-paper"
PAPERS_BASELINES = frozenset({"vllm-prefill-first", "vllm-chunked", "vllm-speculative", "sarathi", "distserve"})
STEADY_S = 120.0
"""A workload that arrives faster than this says more of bursts than of rates."""


def capacity_table(records: Sequence[CapacityRecord], *, at_99: bool = False) -> str:
    """Markdown: a row for each policy, a column for each scenario, and how ours compares with each."""
    scenarios = list(dict.fromkeys(record.scenario for record in records))
    policies = list(dict.fromkeys(record.policy for record in records))
    figures = {(r.scenario, r.policy): _figure(r, at_99=at_99) for r in records}
    best = {scenario: max((figures.get((scenario, name), 0.0) for name in OURS), default=0.0) for scenario in scenarios}
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
    rivals = [name for name in policies if name not in OURS and name not in {BOUND, PAPER}]
    for told, names in (
        ("the best of what the paper compared with", [name for name in rivals if name in PAPERS_BASELINES]),
        ("the best baseline of each scenario", rivals),
        ("the paper's planner", [name for name in policies if name == PAPER]),
        ("the bound", [name for name in policies if name == BOUND]),
    ):
        ratio, missing = geometric_mean(
            [(best[s], max((figures.get((s, name), 0.0) for name in names), default=0.0)) for s in scenarios]
        )
        if not math.isnan(ratio):
            note = f"; left out, where one of them is 0: {missing}" if missing else ""
            lines.append(f"\nBest of ours over {told}: {ratio:.2f}x{note}.")
    short = [f"{s} ({seconds:.0f} s)" for s in scenarios if (seconds := _traffic_s(records, s, best[s])) < STEADY_S]
    if short:
        lines.append(
            f"\nLess than {STEADY_S:g} s of traffic at the capacity of ours, no steady state: {', '.join(short)}."
        )
    return "\n".join(lines)


def _traffic_s(records: Sequence[CapacityRecord], scenario: str, rps_per_gpu: float) -> float:
    """How long the workload takes to arrive at that rate."""
    record = next(record for record in records if record.scenario == scenario)
    return record.requests / (rps_per_gpu * record.gpus) if rps_per_gpu > 0 else math.inf


def geometric_mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Of the ratios; and how many could not be made because a figure is 0. NaN if none could."""
    ratios = [ours / theirs for ours, theirs in pairs if ours > 0 and theirs > 0]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    return mean, len(pairs) - len(ratios)


def rate_table(records: Sequence[RateRecord]) -> str:
    """Markdown: attainment and goodput by rate."""
    lines = [
        f"| scenario | policy | requests/s offered | attainment | goodput, requests/s | guaranteed | kept | ({NOTE})",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for r in records:
        promised = f"{r.guaranteed} | {r.guaranteed_kept}" if r.guaranteed else " | "
        lines.append(
            f"| {r.scenario} | {r.policy} | {r.rate:.2f} | {r.attainment:.3f} | {r.goodput_rps:.2f} | {promised} | |"
        )
    return "\n".join(lines)


def _figure(record: CapacityRecord, *, at_99: bool) -> float:
    return record.capacity_99_rps_per_gpu if at_99 else record.capacity_90_rps_per_gpu


def plot_capacities(records: Sequence[CapacityRecord], path: Path) -> None:
    """Bars, scenario by scenario."""
    plt = _pyplot()
    scenarios = list(dict.fromkeys(record.scenario for record in records))
    policies = list(dict.fromkeys(record.policy for record in records))
    figures = {(r.scenario, r.policy): r.capacity_90_rps_per_gpu for r in records}
    figure, axes = plt.subplots(1, len(scenarios), figsize=(2.6 * len(scenarios) + 1.5, 3.6), squeeze=False)
    for axis, scenario in zip(axes[0], scenarios, strict=True):
        values = [figures.get((scenario, name), 0.0) for name in policies]
        colours = ["tab:blue" if name in OURS else "0.85" if name == BOUND else "tab:orange" for name in policies]
        axis.barh(range(len(policies)), values, color=colours)
        axis.set_yticks(range(len(policies)), policies if scenario == scenarios[0] else [], fontsize=7)
        axis.invert_yaxis()
        axis.set_title(scenario, fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
    figure.suptitle(f"requests/s per GPU, 90 % of all offered attained ({NOTE})", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_sweeps(records: Sequence[RateRecord], path: Path) -> None:
    """Attainment against rate per GPU."""
    plt = _pyplot()
    scenarios = list(dict.fromkeys(record.scenario for record in records))
    figure, axes = plt.subplots(1, len(scenarios), figsize=(3.4 * len(scenarios), 3.4), squeeze=False)
    for axis, scenario in zip(axes[0], scenarios, strict=True):
        here = [record for record in records if record.scenario == scenario]
        for name in dict.fromkeys(record.policy for record in here):
            of_policy = [record for record in here if record.policy == name]
            axis.plot(
                [r.rate / r.gpus for r in of_policy],
                [r.attainment for r in of_policy],
                marker="o" if name in OURS else ".",
                markersize=3,
                linewidth=2 if name in OURS else 1,
                label=name,
            )
        axis.axhline(0.9, color="0.8", linewidth=0.8)
        axis.set_title(scenario, fontsize=9)
        axis.set_xlabel("requests/s per GPU", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0][0].set_ylabel("attained, of all offered", fontsize=8)
    axes[0][-1].legend(fontsize=6)
    figure.suptitle(NOTE, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
