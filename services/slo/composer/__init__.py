"""The step composer: who gets how many tokens of the next engine step, from the promises held.

`step` has the question and the answer, `compose` the decision, `token_deadlines` the due times of a request, `pace` how
tight the next one may be, `recording` keeps steps to be composed again. No clock, and no I/O but its file. See
`README.md`.
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
