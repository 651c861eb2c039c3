"""Headroom for what is likely to come: where workers are crowded, many cheap requests go before an expensive one.

A promise cannot be taken back, so an expensive prompt that is promised as soon as it fits keeps out the cheaper ones
that come after it. Whatever costs more for its value than a typical arrival is therefore promised only where several
such arrivals would still fit beside it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.arrays import falling
from services.slo.planner.kernels.assignment import detach, prefill_fits, work_of
from services.slo.planner.kernels.compiled import compiled, entry
from services.slo.planner.kernels.layout import (
    FITS,
    JOB_LOCAL_TIER,
    JOB_PROMPT_TOKENS,
    JOB_TIER,
    JOB_VALUE,
    JOB_WORK_S,
    PLACED_PREFILLER,
    SETTING_HEADROOM_REQUESTS,
    SETTING_PROMISED_JOBS,
    WORKER_DECODES,
    WORKER_PER_TOKEN_S,
)
from services.slo.planner.kernels.plan_state import PlanState

_LEAST_VALUE: Final = 1e-9
"""Value that stands for none, to divide by."""


@entry
def reserve_headroom(state: PlanState, cost_threshold: float) -> None:
    """Take candidates out of the plan that leave no headroom for typical arrivals, the costliest first.

    Cost is prompt tokens to compute for each unit of value. The typical arrival is the last row of `state.jobs`.

    Args:
        cost_threshold: candidates up to this cost need not leave any, and neither need those up to the typical
            arrival's own.
    """
    first = int(state.settings[SETTING_PROMISED_JOBS])
    size = state.placed.shape[0]
    typical = int(state.jobs.shape[0]) - 1
    typical_cost = state.jobs[typical, JOB_PROMPT_TOKENS] / max(state.jobs[typical, JOB_VALUE], _LEAST_VALUE)
    exempt_cost = max(cost_threshold, typical_cost)
    costs = np.zeros(size)
    for candidate in range(size):
        prefiller = state.placed[candidate, PLACED_PREFILLER]
        if prefiller >= 0:
            job = first + candidate
            tokens = state.jobs[job, JOB_WORK_S] / state.workers[prefiller, WORKER_PER_TOKEN_S]
            costs[candidate] = tokens / max(state.jobs[job, JOB_VALUE], _LEAST_VALUE)
    for candidate in falling(costs, size):
        if costs[candidate] <= exempt_cost:
            break
        if not _leaves_headroom(state, typical, state.placed[candidate, PLACED_PREFILLER]):
            detach(state, candidate)


@compiled
def _leaves_headroom(state: PlanState, typical: int, prefiller: int) -> bool:
    """Return whether the typical arrivals, as one prefill, fit on the prefiller beside everything placed there.

    Args:
        typical: the typical arrival's row of `state.jobs`.
    """
    worker = state.workers[prefiller]
    work_s = work_of(worker, state.jobs[typical, JOB_PROMPT_TOKENS], 0.0)
    state.jobs[typical, JOB_WORK_S] = state.settings[SETTING_HEADROOM_REQUESTS] * work_s
    state.jobs[typical, JOB_LOCAL_TIER] = state.jobs[typical, JOB_TIER] if worker[WORKER_DECODES] > 0 else -1.0
    return bool(prefill_fits(state, typical, prefiller) == FITS)
