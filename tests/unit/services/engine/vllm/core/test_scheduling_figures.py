"""The figures by which scheduling is judged."""

from __future__ import annotations

import pytest

from services.engine.vllm.core.scheduling_figures import SchedulingFigures


def test_figures_of_nothing_and_of_something() -> None:
    figures = SchedulingFigures()
    assert figures.to_wire()["steps"] == 0
    figures.ran(0.04, 0.05, 0.05)
    figures.ran(0.04, 0.05, 0.08)
    assert figures.to_wire()["bound_coverage"] == 0.5
    assert figures.to_wire()["prediction_error"] == pytest.approx((0.2 + 0.5) / 2)
