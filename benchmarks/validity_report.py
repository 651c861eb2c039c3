"""Two distributions side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.validity_fit import Fitted, Step
from services.slo.performance import PerformanceModel

TOLERANCE = 0.15
METRICS: Mapping[str, str] = {"ttft_s": "TTFT", "tpot_s": "TPOT, mean", "e2e_s": "E2E", "handover_s": "hand-over"}
PERCENTILES = (50, 90)
EVERYTHING = "all"


@dataclass(frozen=True, slots=True)
class ClientOutcome:
    """One request, at its client. Seconds."""

    profile: str
    ttft_s: float
    tpot_s: float
    e2e_s: float
    handover_s: float
    """From the first token until the decode worker could work on the request."""
    guaranteed: bool
    kept: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One percentile of one figure."""

    profile: str
    metric: str
    percentile: int
    real_s: float
    simulated_s: float
    before_s: float
    """Simulated with a model that knows the steps before the compared workload only."""
    low: float
    """Range of the ratio, were other requests of the same kind drawn: 5 and 95 % of resampled real ones."""
    high: float

    @property
    def ratio(self) -> float:
        return self.simulated_s / self.real_s if self.real_s else float("inf")

    @property
    def close(self) -> bool:
        return abs(self.ratio - 1.0) <= TOLERANCE


def comparisons(
    real: Sequence[ClientOutcome], simulated: Sequence[ClientOutcome], before: Sequence[ClientOutcome]
) -> list[Comparison]:
    """All together, then by profile."""
    profiles = [EVERYTHING, *sorted({outcome.profile for outcome in real})]
    rng = np.random.default_rng(0)
    found = []
    for profile in profiles:
        for metric in METRICS:
            ours, theirs, earlier = (
                np.array([getattr(o, metric) for o in outcomes if profile in {EVERYTHING, o.profile}])
                for outcomes in (real, simulated, before)
            )
            for percentile in PERCENTILES:
                measured, made = float(np.percentile(ours, percentile)), float(np.percentile(theirs, percentile))
                drawn = np.percentile(rng.choice(ours, (2000, ours.size)), percentile, axis=1)
                low, high = np.percentile(made / drawn, (5, 95))
                guessed = float(np.percentile(earlier, percentile))
                found.append(Comparison(profile, metric, percentile, measured, made, guessed, float(low), float(high)))
    return found


def step_ratio(steps: Sequence[Step], model: PerformanceModel) -> float:
    """Time of all these steps over what the model says of them."""
    computed = [step for step in steps if step.shape.tokens]
    return sum(step.cycle_s for step in computed) / sum(model.step_s(step.shape) for step in computed)


_COLUMNS = (
    "requests",
    "figure",
    "",
    "real, ms",
    "simulated, ms",
    "simulated / real",
    "5-95 %",
    "within 15 %",
    "fitted before / real",
)


def _rows(found: Sequence[Comparison]) -> list[list[str]]:
    return [
        [
            one.profile,
            METRICS[one.metric],
            f"p{one.percentile}",
            f"{1e3 * one.real_s:.1f}",
            f"{1e3 * one.simulated_s:.1f}",
            f"{one.ratio:.2f}",
            f"{one.low:.2f}-{one.high:.2f}",
            "yes" if one.close else "no",
            f"{one.before_s / one.real_s:.2f}" if one.real_s else "-",
        ]
        for one in found
    ]


def table(found: Sequence[Comparison], note: str) -> Table:
    shown = Table(title=note)
    for column in _COLUMNS:
        shown.add_column(column, justify="left" if column in {"requests", "figure"} else "right")
    for row in _rows(found):
        shown.add_row(*row)
    return shown


def markdown(found: Sequence[Comparison], learnt: Fitted, drift: float, note: str) -> str:
    fit = (
        f"Fitted: {learnt.quality.steps} steps, R2 {learnt.quality.r2:.3f}, mean error {learnt.quality.mape:.1%}, "
        f"noise {learnt.noise.alone:.1%} of each step and {learnt.noise.shared:.1%} that lasts "
        f"{learnt.noise.lasts_s:.2g} s; {1e3 * learnt.between_steps_s:.1f} ms between steps; link "
        f"{1e3 * learnt.latency_s:.2f} ms + {learnt.bytes_per_s / 1e9:.2f} GB/s; to the engine "
        f"{1e3 * learnt.request_delay_s:.1f} ms, between engines {1e3 * learnt.relay_delay_s:.1f} ms, to the client "
        f"{1e3 * learnt.delivery_s:.1f} ms. Steps of the compared workload took {drift:.3f} of what "
        "those before it let expect."
    )
    lines = [
        note + ".",
        "",
        fit,
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in _rows(found)),
    ]
    return "\n".join(lines) + "\n"


def plot(real: Sequence[ClientOutcome], simulated: Sequence[ClientOutcome], path: Path) -> None:
    """Cumulative distributions."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3.6), sharey=True)
    for axes, (metric, name) in zip(panels, METRICS.items(), strict=True):
        for outcomes, label, style in ((real, "real cluster", "-"), (simulated, "simulated", "--")):
            values = np.sort([1e3 * getattr(outcome, metric) for outcome in outcomes])
            axes.plot(values, (np.arange(values.size) + 1) / values.size, style, label=label)
        axes.set_xlabel(f"{name}, ms")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of requests")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
