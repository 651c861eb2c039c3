"""Figures that tell how well the scheduler's predictions went, for benchmarks and for looking at a running engine."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from services.engine.protocol import Scheduling

KEPT = 4096
"""Number of latest steps that the figures are computed from."""
COUNTS = ("preempted", "held", "contracts_missing", "contracts_malformed", "drafted", "accepted")
"""Counts that are reported with each step: fields of `Scheduling`."""


class SchedulingFigures:
    """The counts since the start, and the latest steps for quantiles."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._compose_s: deque[float] = deque(maxlen=KEPT)
        self._schedule_s: deque[float] = deque(maxlen=KEPT)
        self._update_s: deque[float] = deque(maxlen=KEPT)
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=KEPT)

    def composed(self, compose_s: float) -> None:
        """Record how long the composer took for a step."""
        self._compose_s.append(compose_s)

    def scheduled(self, schedule_s: float) -> None:
        """Record how long planning a step took, composing it included."""
        self._schedule_s.append(schedule_s)

    def updated(self, update_s: float) -> None:
        """Record how long it took to take in what a step made."""
        self._update_s.append(update_s)

    def ran(self, predicted_s: float, bound_s: float, took_s: float) -> None:
        """Record how long a step took, beside what was expected and what it should not have exceeded."""
        self._steps.append((predicted_s, bound_s, took_s))

    def of_step(self, predicted_s: float, bound_s: float, compose_s: float) -> Scheduling:
        """Return what is reported with a step."""
        counts = {name: self.counts[name] for name in COUNTS}
        return Scheduling(predicted_s, bound_s, compose_s, **counts)

    def to_wire(self) -> dict[str, float]:
        """Return all figures by name: counts, p50 and p99 of durations, error and coverage of predictions."""
        figures: dict[str, float] = dict(self.counts)
        timings = {"compose_s": self._compose_s, "schedule_s": self._schedule_s, "update_s": self._update_s}
        for name, values in timings.items():
            for share, title in ((0.5, "p50"), (0.99, "p99")):
                figures[f"{name}_{title}"] = quantile(values, share)
        if self._steps:
            errors = [abs(predicted_s - took_s) / took_s for predicted_s, _, took_s in self._steps if took_s > 0]
            figures["prediction_error"] = sum(errors) / max(1, len(errors))
            figures["bound_coverage"] = sum(took_s <= bound_s for _, bound_s, took_s in self._steps) / len(self._steps)
        figures["steps"] = len(self._steps)
        return figures


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
