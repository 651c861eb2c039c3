"""The step composer: it decides how many tokens of each request the next engine step computes, and keeps promises.

`step` holds the question and the answer, `compose` the decision, `token_deadlines` the due times of one request,
`tightest_tpot` the TPOT that a newcomer may have, and `recorded_step` a step as plain values. Functions are pure: the
clock is an argument, and nothing does I/O. `README.md` explains how a step is composed.
"""

from services.slo.composer.compose import compose
from services.slo.composer.step import ComposerPolicy, Composition, Limits, SchedulableRequest
from services.slo.composer.step_meter import StepMeter
from services.slo.composer.tightest_tpot import TightestTpot
from services.slo.composer.token_deadlines import TokenDeadlines

__all__ = [
    "ComposerPolicy",
    "Composition",
    "Limits",
    "SchedulableRequest",
    "StepMeter",
    "TightestTpot",
    "TokenDeadlines",
    "compose",
]
