"""What to tell a candidate without a place: what it lacks, when the same contract would be kept, how long to wait.

Arrays: `releases` (W, n, RELEASE_COLUMNS) are running requests that will end, by time; `finish_s` (J,) says when each
prefill ends and `ends_s` (W,) when each worker has none left, in seconds from now; `future` (as `PlanState.workers`)
are the workers as they will be then.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats
from services.slo.planner.kernels.assignment import (
    prefill_fits,
    set_destination,
    step_at_handover,
)
from services.slo.planner.kernels.compiled import Floats, compiled
from services.slo.planner.kernels.layout import (
    FITS,
    JOB_DUE_S,
    JOB_KV_TOKENS,
    JOB_LIMIT_S,
    JOB_READY_S,
    JOB_TIER,
    JOB_WORK_S,
    LACKS_DECODE_RATE,
    LACKS_KV_MEMORY,
    LACKS_PREFILL_TIME,
    PLACED_PREFILLER,
    REASON_BINDING,
    REASON_EARLIEST_S,
    REASON_EXPECTED_S,
    REASON_LATEST_S,
    REASON_NEXT_EVENT_S,
    REASON_POSSIBLE,
    RELEASE_AT_S,
    RELEASE_KV_TOKENS,
    RELEASE_REQUESTS,
    RELEASE_TIER,
    SCHEDULE_BASE_S,
    SCHEDULE_CAPACITY_S,
    SCHEDULE_FLOOR_S,
    SCHEDULE_LOAD,
    SETTING_WORK_LIMIT,
    WORKER_BUSY_S,
    WORKER_DECODES,
    WORKER_FREE_SLOTS,
    WORKER_HANDOVER_STEPS,
    WORKER_KV_FREE_TOKENS,
    WORKER_KV_TOKENS,
    WORKER_LOAD,
)
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.schedule import full_step_of, own_step_of
from services.slo.planner.kernels.step_table import choose_step

_PREFILLERS: Final = 4
_DECODERS: Final = 4
"""Options of a candidate that an answer looks at. Chosen: as many as are offered first (`packing.CHOICES`)."""


@compiled
def explain_all(
    state: PlanState, releases: Floats, finish_s: Floats, ends_s: Floats, future: Floats, reasons: Floats
) -> None:
    """Fill `reasons` (C, REASON_COLUMNS) for every candidate without a place, from the first few of its options."""
    for candidate in range(state.placed.shape[0]):
        if state.placed[candidate, PLACED_PREFILLER] < 0:
            _explain(state, candidate, releases, finish_s, ends_s, future, reasons[candidate])


@compiled
def _explain(
    state: PlanState,
    candidate: int,
    releases: Floats,
    finish_s: Floats,
    ends_s: Floats,
    future: Floats,
    reason: Floats,
) -> None:
    """Fill `reason` (REASON_COLUMNS,) for one candidate."""
    decode_at_s, decode_binding, decode_possible = np.inf, LACKS_DECODE_RATE, False
    prefill_at_s, latest_s, expected_s, event_s = np.inf, -np.inf, np.inf, np.inf
    for other in range(min(_DECODERS, state.decoders.shape[1])):
        decoder = state.decoders[candidate, other]
        if decoder < 0:
            continue
        job = set_destination(state, candidate, decoder, -1)
        budget_s = _handover_budget(state, candidate, job, other)
        at_s, binding, possible = _decode_from(state, job, decoder, budget_s, future[decoder], releases)
        decode_possible = decode_possible or possible
        if at_s < decode_at_s or (at_s == decode_at_s and binding == LACKS_KV_MEMORY):
            decode_at_s, decode_binding = at_s, binding
        event_s = min(event_s, releases[decoder, 0, RELEASE_AT_S])
    local_at_s, local_binding, local_possible, may_stay = np.inf, LACKS_DECODE_RATE, False, False
    for option in range(min(_PREFILLERS, state.prefillers.shape[1])):
        prefiller = state.prefillers[candidate, option]
        if prefiller < 0:
            continue
        stays = state.workers[prefiller, WORKER_DECODES] > 0
        job = set_destination(state, candidate, prefiller, prefiller if stays else -1)
        at_s, duration_s, idle_s = _prefill_from(state, job, prefiller, finish_s, ends_s, future[prefiller])
        expected_s = min(expected_s, ends_s[prefiller] + duration_s)
        latest_s = max(latest_s, state.jobs[job, JOB_LIMIT_S] - idle_s)
        if state.queued[prefiller] > 0:
            event_s = min(event_s, finish_s[state.queue[prefiller, 0]])
        prefill_at_s = min(prefill_at_s, at_s)
        if stays:
            from_s, binding, possible = _decode_from(state, job, prefiller, np.inf, future[prefiller], releases)
            local_possible = local_possible or possible
            may_stay = True
            if max(at_s, from_s) < local_at_s or local_at_s == np.inf:
                local_at_s, local_binding = max(at_s, from_s), binding if from_s > 0 else LACKS_PREFILL_TIME
            event_s = min(event_s, releases[prefiller, 0, RELEASE_AT_S])
    remote_at_s = max(prefill_at_s, decode_at_s)
    if may_stay and local_at_s <= remote_at_s:
        reason[REASON_EARLIEST_S], reason[REASON_BINDING] = local_at_s, local_binding
    else:
        reason[REASON_EARLIEST_S] = remote_at_s
        reason[REASON_BINDING] = LACKS_PREFILL_TIME if decode_at_s == 0 else decode_binding
    reason[REASON_EXPECTED_S] = expected_s
    reason[REASON_LATEST_S] = latest_s
    reason[REASON_POSSIBLE] = 1.0 if latest_s >= 0 and (decode_possible or local_possible) else 0.0
    reason[REASON_NEXT_EVENT_S] = event_s


@compiled
def _duration(schedule: Floats, work_s: float, first: bool) -> float:
    """Return the most seconds that a prefill takes from a step boundary on, in steps as in `schedule`.

    Args:
        first: no prefill comes before it; see `advance` for what differs if one does.
    """
    capacity_s = schedule[SCHEDULE_CAPACITY_S]
    if capacity_s <= 0:
        return np.inf
    full_steps = np.ceil(work_s / capacity_s) - 1
    alone_s = 0.0 if first and full_steps == 0 else own_step_of(schedule)
    last_step_s = max(schedule[SCHEDULE_BASE_S] + work_s - full_steps * capacity_s, schedule[SCHEDULE_FLOOR_S])
    return float(full_steps * full_step_of(schedule) + last_step_s + alone_s)


@compiled
def _prefill_from(
    state: PlanState, job: int, prefiller: int, finish_s: Floats, ends_s: Floats, worker: Floats
) -> tuple[float, float, float]:
    """Return from when on the same prefill deadline would be kept here, and how long the prefill takes, in seconds.

    Args:
        worker: the prefiller's row of `future`.

    Returns:
        Seconds from now, its duration then, and its duration on the worker idle.
    """
    table, tiers = state.step_tables[prefiller], state.tpot_s.size
    schedule, jobs, queue, queued = state.schedule, state.jobs, state.queue[prefiller], state.queued[prefiller]
    work_s, deadline_s = jobs[job, JOB_WORK_S], jobs[job, JOB_LIMIT_S]
    for tier in range(2 * tiers):
        schedule[SCHEDULE_LOAD + tier] = 0.0
    choose_step(worker, table, tiers, schedule[SCHEDULE_LOAD:], schedule)
    idle_s = _duration(schedule, work_s, True)
    if not choose_step(worker, table, tiers, worker[WORKER_LOAD:], schedule):
        return np.inf, np.inf, idle_s
    duration_s = _duration(schedule, work_s, queued == 0)
    if duration_s > deadline_s:
        return np.inf, duration_s, idle_s
    behind_all_s = max(0.0, ends_s[prefiller] + duration_s - deadline_s)
    if queued > 0 and jobs[queue[queued - 1], JOB_DUE_S] < np.inf:
        behind_all_s = max(behind_all_s, jobs[queue[queued - 1], JOB_DUE_S] - deadline_s)
    earliest_s, slack_s = behind_all_s, np.inf
    for at in range(queued - 1, -1, -1):
        slack_s = min(slack_s, jobs[queue[at], JOB_LIMIT_S] - finish_s[queue[at]])
        if slack_s < duration_s:
            break
        previous_end_s = finish_s[queue[at - 1]] if at > 0 else worker[WORKER_BUSY_S]
        from_s = max(0.0, previous_end_s + duration_s - deadline_s)
        if at > 0:
            from_s = max(from_s, jobs[queue[at - 1], JOB_DUE_S] - deadline_s)
        if from_s <= jobs[queue[at], JOB_DUE_S] - deadline_s:
            earliest_s = min(earliest_s, from_s)
    if earliest_s < behind_all_s and state.spent[0] > state.settings[SETTING_WORK_LIMIT]:
        earliest_s = behind_all_s
    if earliest_s < behind_all_s:
        due_s, ready_s = jobs[job, JOB_DUE_S], jobs[job, JOB_READY_S]
        jobs[job, JOB_DUE_S] = jobs[job, JOB_LIMIT_S] = deadline_s + earliest_s
        jobs[job, JOB_READY_S] = earliest_s
        if prefill_fits(state, job, prefiller) != FITS:
            earliest_s = behind_all_s
        jobs[job, JOB_DUE_S], jobs[job, JOB_LIMIT_S], jobs[job, JOB_READY_S] = due_s, deadline_s, ready_s
    return earliest_s, duration_s, idle_s


@compiled
def _decode_from(
    state: PlanState, job: int, decoder: int, budget_s: float, future: Floats, releases: Floats
) -> tuple[float, int, bool]:
    """Return from when on the worker could take the decode, in seconds from now, and why not before.

    Args:
        budget_s: what the hand-over may take beside the transfer, in seconds; infinite without one.
        future: the decoder's row of `future`.

    Returns:
        Seconds from now, what is lacking now, and whether the worker could take the decode if it were empty.
    """
    table = state.step_tables[decoder]
    worker = np.empty_like(future)
    copy_floats(future, worker)
    tiers, tier, kv_tokens = state.tpot_s.size, int(state.jobs[job, JOB_TIER]), state.jobs[job, JOB_KV_TOKENS]
    binding = LACKS_KV_MEMORY if kv_tokens > worker[WORKER_KV_FREE_TOKENS] else LACKS_DECODE_RATE
    empty = np.empty_like(worker)
    copy_floats(worker, empty)
    for at in range(WORKER_LOAD, WORKER_LOAD + 2 * tiers):
        empty[at] = 0.0
    possible = kv_tokens <= worker[WORKER_KV_TOKENS] and _keeps_rate(state, job, empty, table, budget_s)
    for at in range(-1, releases.shape[1]):
        from_s = 0.0
        if at >= 0:
            release = releases[decoder, at]
            from_s = release[RELEASE_AT_S]
            if from_s == np.inf:
                break
            worker[WORKER_KV_FREE_TOKENS] += release[RELEASE_KV_TOKENS]
            worker[WORKER_FREE_SLOTS] += release[RELEASE_REQUESTS]
            released_tier = int(release[RELEASE_TIER])
            if released_tier >= 0:
                requests, context = WORKER_LOAD + released_tier, WORKER_LOAD + tiers + released_tier
                worker[requests] = max(0.0, worker[requests] - release[RELEASE_REQUESTS])
                worker[context] = max(0.0, worker[context] - release[RELEASE_KV_TOKENS])
        if kv_tokens <= worker[WORKER_KV_FREE_TOKENS] and (
            tier < 0 or (worker[WORKER_FREE_SLOTS] >= 1 and _keeps_rate(state, job, worker, table, budget_s))
        ):
            return from_s, binding, possible
    return np.inf, binding, possible


@compiled
def _keeps_rate(state: PlanState, job: int, worker: Floats, table: Floats, budget_s: float) -> bool:
    """Return whether a worker keeps every rate, the second token's included, with the job's decode beside its own.

    Args:
        worker: a row as of `state.workers`; left as it was.
        budget_s: what the hand-over may take beside the transfer, in seconds; infinite without one.
    """
    tier, tiers = int(state.jobs[job, JOB_TIER]), state.tpot_s.size
    if tier < 0:
        return True
    load = worker[WORKER_LOAD:]
    load[tier] += 1
    load[tiers + tier] += state.jobs[job, JOB_KV_TOKENS]
    fits = choose_step(worker, table, tiers, load, state.chosen_step)
    if fits and budget_s < np.inf:
        step_s = step_at_handover(worker, table, tiers, load, state.chosen_step)
        fits = worker[WORKER_HANDOVER_STEPS] * step_s <= budget_s
    load[tier] -= 1
    load[tiers + tier] -= state.jobs[job, JOB_KV_TOKENS]
    return bool(fits)


@compiled
def _handover_budget(state: PlanState, candidate: int, job: int, other: int) -> float:
    """Return what the quickest transfer to the decoder at option `other` leaves of a TPOT, in seconds."""
    tier = int(state.jobs[job, JOB_TIER])
    if tier < 0:
        return np.inf
    quickest_s = np.inf
    for option in range(state.prefillers.shape[1]):
        if state.prefillers[candidate, option] >= 0:
            quickest_s = min(quickest_s, state.handover_s[candidate, option, other])
    return float(state.tpot_s[tier] - quickest_s)
