"""Room for the tenant that is owed most: whoever has had more than its fair share is promised only what leaves it.

Room is left for one request like the owed tenant's, but never for more than its share of a worker, and it is not asked
for where a worker does nothing else: a tenant whose requests are huge, or due at once, keeps nobody out by that.
"""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import falling
from services.slo.planner.kernels.assignment import decode_fits, detach, prefill_fits, stays_fit, work_of
from services.slo.planner.kernels.compiled import Integers, compiled, entry
from services.slo.planner.kernels.layout import (
    FITS,
    JOB_DUE_S,
    JOB_KV_TOKENS,
    JOB_LIMIT_S,
    JOB_LOCAL_TIER,
    JOB_PROMPT_TOKENS,
    JOB_TIER,
    JOB_VALUE,
    JOB_WORK_S,
    PLACED_DECODER,
    PLACED_PREFILLER,
    SETTING_PROMISED_JOBS,
    WORKER_KV_FREE_TOKENS,
    WORKER_KV_TOKENS,
)
from services.slo.planner.kernels.plan_state import PlanState


@entry
def leave_room(state: PlanState, leaves_room: Integers, requests: float, share: float) -> None:
    """Take candidates out of the plan that leave no room for the owed arrival, the last row of `state.jobs`.

    Those that take most work for their value go first.

    Args:
        leaves_room: (C,), 1 for the candidates that have to leave room, else 0.
        requests: number of owed arrivals that room is left for on each worker.
        share: most that is left of a worker, between 0 and 1.
    """
    first = int(state.settings[SETTING_PROMISED_JOBS])
    size = state.placed.shape[0]
    costs = np.zeros(size)
    for candidate in range(size):
        if state.placed[candidate, PLACED_PREFILLER] >= 0:
            job = first + candidate
            costs[candidate] = state.jobs[job, JOB_WORK_S] / max(state.jobs[job, JOB_VALUE], 1e-9)
    for candidate in falling(costs, size):
        if leaves_room[candidate] == 0 or state.placed[candidate, PLACED_PREFILLER] < 0:
            continue
        if not _leaves_room(state, candidate, requests, share):
            detach(state, candidate)


@compiled
def _leaves_room(state: PlanState, candidate: int, requests: float, share: float) -> bool:
    """Return whether the owed arrival would fit beside the candidate, as far as its share goes.

    It decodes at the candidate's own rate: what a rate of its own would forbid, others could not help.
    """
    job = int(state.settings[SETTING_PROMISED_JOBS]) + candidate
    owed = int(state.jobs.shape[0]) - 1
    jobs, workers = state.jobs, state.workers
    prefiller, decoder = state.placed[candidate, PLACED_PREFILLER], state.placed[candidate, PLACED_DECODER]
    kv_tokens = jobs[owed, JOB_KV_TOKENS]
    held_by_others = workers[decoder, WORKER_KV_TOKENS] - workers[decoder, WORKER_KV_FREE_TOKENS]
    if held_by_others > jobs[job, JOB_KV_TOKENS]:
        wanted = min(requests * kv_tokens, share * workers[decoder, WORKER_KV_TOKENS])
        if wanted > workers[decoder, WORKER_KV_FREE_TOKENS]:
            return False
        jobs[owed, JOB_TIER] = jobs[job, JOB_TIER]
        jobs[owed, JOB_KV_TOKENS] = min(kv_tokens, jobs[job, JOB_KV_TOKENS])
        decodes = stays_fit(state, owed, prefiller) if prefiller == decoder else decode_fits(state, owed, decoder)
        jobs[owed, JOB_KV_TOKENS] = kv_tokens
        if not decodes:
            return False
    if state.queued[prefiller] < 2:
        return True
    due_s, limit_s = jobs[owed, JOB_DUE_S], jobs[job, JOB_LIMIT_S]
    work_s = requests * work_of(workers[prefiller], jobs[owed, JOB_PROMPT_TOKENS], 0.0)
    jobs[owed, JOB_WORK_S] = min(work_s, share * limit_s)
    jobs[owed, JOB_LIMIT_S] = max(due_s, limit_s)
    jobs[owed, JOB_LOCAL_TIER] = jobs[job, JOB_TIER] if prefiller == decoder else -1.0
    jobs[owed, JOB_KV_TOKENS] = min(kv_tokens, jobs[job, JOB_KV_TOKENS])
    fits = prefill_fits(state, owed, prefiller) == FITS
    jobs[owed, JOB_KV_TOKENS] = kv_tokens
    return bool(fits)
