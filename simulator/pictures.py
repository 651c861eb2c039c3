"""Pictures of simulated figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator.experiments import BOUND, PAPER, CapacityRecord, RateRecord
from simulator.policies.catalogue import OURS
from simulator.report import NOTE

COLUMNS = 3
SHOWN = {
    "vllm-chunked": ("vLLM", "tab:gray"),
    "vllm-prefill-first": ("vLLM, prefill first", "silver"),
    "vllm-speculative": ("vLLM, drafts", "tab:brown"),
    "distserve": ("DistServe", "tab:olive"),
    "sarathi": ("Sarathi-Serve", "tab:orange"),
    "qoserve": ("QoServe", "tab:red"),
    PAPER: ("the paper's planner", "tab:green"),
    "ours-disaggregated": ("slos-serve, split", "tab:cyan"),
    "ours-local-prefill": ("slos-serve, split, prefill on slack", "tab:purple"),
    OURS[-1]: ("slos-serve", "tab:blue"),
    BOUND: ("no scheduler can exceed", "0.88"),
}
"""Name and colour of each policy in pictures, in the order in which they are drawn."""


def plot_overview(records: Sequence[CapacityRecord], path: Path) -> None:
    """Draw what the same GPUs carry under each policy, scenario by scenario."""
    plt = _pyplot()
    scenarios = list(dict.fromkeys(record.scenario for record in records))
    found = {(r.scenario, r.policy): r.capacity_90_rps_per_gpu for r in records}
    policies = [name for name in SHOWN if any(record.policy == name for record in records)]
    rows = -(-len(scenarios) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(10, 0.24 * len(policies) * rows + 1.4), squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index >= len(scenarios):
            axis.set_visible(False)
            continue
        scenario = scenarios[index]
        values = [found.get((scenario, name), 0.0) for name in policies]
        axis.barh(range(len(policies)), values, color=[SHOWN[name][1] for name in policies])
        for at, value in enumerate(values):
            axis.text(value, at, f" {value:.3g}", va="center", fontsize=6)
        axis.set_yticks(range(len(policies)), [SHOWN[name][0] for name in policies], fontsize=7)
        if index % COLUMNS:
            axis.tick_params(labelleft=False)
        # The bound would leave the others little room: it goes on beyond the edge.
        axis.set_xlim(0, 1.6 * max((v for v, name in zip(values, policies, strict=True) if name != BOUND), default=1))
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_title(scenario, fontsize=9)
    _title(figure, f"requests/s per GPU with 90 % of all contracts kept; {records[0].machine}; {NOTE}")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def plot_sweeps(records: Sequence[RateRecord], path: Path) -> None:
    """Draw attainment against the rate per GPU under each policy, scenario by scenario."""
    plt = _pyplot()
    scenarios = list(dict.fromkeys(record.scenario for record in records))
    rows = -(-len(scenarios) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(10, 2.6 * rows + 0.9), squeeze=False)
    labels: dict[str, Any] = {}
    for index, axis in enumerate(axes.flat):
        if index >= len(scenarios):
            axis.set_visible(False)
            continue
        here = [record for record in records if record.scenario == scenarios[index]]
        for name, (label, colour) in SHOWN.items():
            of_policy = [record for record in here if record.policy == name]
            if of_policy:
                rates = [r.rate / r.gpus for r in of_policy]
                kept = [100 * r.attainment for r in of_policy]
                (labels[label],) = axis.plot(rates, kept, ".-", color=colour, linewidth=2 if name in OURS else 1)
        axis.axhline(90, color="0.7", linewidth=0.8, linestyle=":")
        axis.set_xlim(left=0)
        axis.set_ylim(40, 101)
        axis.set_title(scenarios[index], fontsize=9)
        axis.tick_params(labelsize=7)
        if index >= len(scenarios) - COLUMNS:
            axis.set_xlabel("requests/s per GPU", fontsize=8)
        if not index % COLUMNS:
            axis.set_ylabel("contracts kept, % of all", fontsize=8)
    figure.legend(labels.values(), labels.keys(), loc="lower center", ncol=5, fontsize=7, frameon=False)
    _title(figure, f"contracts kept as load rises; {records[0].machine}; {NOTE}", below=0.06)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _title(figure: Any, text: str, below: float = 0.0) -> None:
    figure.suptitle(text, fontsize=9)
    figure.subplots_adjust(left=0.13, right=0.99, bottom=0.04 + 2 * below, top=0.88, wspace=0.18, hspace=0.4)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    # Text stays text: the files are a quarter as large, and the same every time.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "slos-serve"})
    import matplotlib.pyplot as plt

    return plt
