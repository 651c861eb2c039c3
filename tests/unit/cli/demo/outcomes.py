"""Outcomes of requests, made up for the tests of the demo."""

from __future__ import annotations

from cli.demo.streams import Served
from cli.demo.targets import Targets
from slos_serve import Achieved, Prediction, StageAchieved

TARGETS = Targets(ttft_s=0.8, tpot_s=0.3)


def achieved(ttft_s: float, tpot_s: float) -> Achieved:
    stage = StageAchieved(tokens=20, mean_tpot_s=tpot_s / 2, required_tpot_s=tpot_s, late_tokens=0)
    return Achieved(ttft_s=ttft_s, stages=(stage,), worst_gap_s=tpot_s, kept=True, missed="")


def served(
    name: str = "chatbot-1",
    ttft_s: float = 0.5,
    tpot_s: float = 0.1,
    *,
    promised: bool = True,
    binding: str = "",
    error: str = "",
    targets: Targets = TARGETS,
) -> Served:
    return Served(
        name=name,
        profile=name.rpartition("-")[0],
        targets=targets,
        promised=promised,
        expected=Prediction(ttft_s=0.4, tpot_s=0.05, ttft_bound_s=0.6, tpot_bound_s=0.2),
        achieved=None if error else achieved(ttft_s, tpot_s),
        binding=binding,
        error=error,
    )
