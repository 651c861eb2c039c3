"""The step composer: who gets how many tokens of the next engine step, from the promises held.

`step` has the question and the answer, `compose` the decision, `token_deadlines` the due times of a request, `pace` how
tight the next one may be, `recording` keeps steps to be composed again. No clock, and no I/O but its file. See
`README.md`.
"""

from services.slo.composer.compose import compose
from services.slo.composer.cost import StepMeter
from services.slo.composer.pace import TightestPace
from services.slo.composer.step import Composition, Limits, Policy, SchedulableRequest
from services.slo.composer.token_deadlines import TokenDeadlines

__all__ = [
    "Composition",
    "Limits",
    "Policy",
    "SchedulableRequest",
    "StepMeter",
    "TightestPace",
    "TokenDeadlines",
    "compose",
]
