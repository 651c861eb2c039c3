"""What to tell a candidate without a place: what it lacks, when the same contract would be kept, how long to wait."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats
from services.slo.planner.kernels.assignment import (
    address,
    prefill_fits,
    step_at_handover,
)
from services.slo.planner.kernels.compiled import Floats, compiled
from services.slo.planner.kernels.layout import (
    ASK_TIER,
    AT,
    BASE,
    BINDING,
    BUSY,
    DECODE_RATE,
    DECODES,
    DUE,
    EARLIEST,
    EXPECTED,
    FITS,
    FLOOR,
    GROW,
    HANDOVER,
    KV_FREE,
    KV_FULL,
    KV_MEMORY,
    KV_TOTAL,
    LATEST,
    LIMIT,
    NEXT_EVENT,
    POSSIBLE,
    PREFILL_TIME,
    READY,
    RELEASED_KV,
    RELEASED_REQUESTS,
    RELEASED_TIER,
    ROOM,
    SLOTS,
    STATE_COUNTS,
    WORK,
    WORKER_COUNTS,
)
from services.slo.planner.kernels.plan_state import WORK_LIMIT, PlanState
from services.slo.planner.kernels.step_table import choose_step

_LANES, _DECODERS = 4, 4


@compiled
def explain_all(
    board: PlanState, releases: Floats, finish: Floats, ends: Floats, future: Floats, reasons: Floats
) -> None:
    """Fill `reasons` for every candidate without a place, from the first few of its options.

    Args:
        finish, ends: from `finish_all`.
        future: from `count_newcomers`.
    """
    for candidate in range(board.placed.shape[0]):
        if board.placed[candidate, 0] < 0:
            _explain(board, candidate, releases, finish, ends, future, reasons[candidate])


@compiled
def _explain(
    board: PlanState, candidate: int, releases: Floats, finish: Floats, ends: Floats, future: Floats, reason: Floats
) -> None:
    decode_at, decode_binding, decode_possible = np.inf, DECODE_RATE, False
    prefill_at, latest, expected, event = np.inf, -np.inf, np.inf, np.inf
    for other in range(min(_DECODERS, board.decoders.shape[1])):
        decoder = board.decoders[candidate, other]
        if decoder < 0:
            continue
        job = address(board, candidate, decoder, -1)
        at_s, binding, possible = _decode_from(
            board, job, decoder, _handover_budget(board, candidate, job, other), future[decoder], releases
        )
        decode_possible = decode_possible or possible
        if at_s < decode_at or (at_s == decode_at and binding == KV_MEMORY):
            decode_at, decode_binding = at_s, binding
        event = min(event, releases[decoder, 0, AT])
    local_at, local_binding, local_possible, may_stay = np.inf, DECODE_RATE, False, False
    for option in range(min(_LANES, board.lanes.shape[1])):
        lane = board.lanes[candidate, option]
        if lane < 0:
            continue
        stays = board.workers[lane, DECODES] > 0
        job = address(board, candidate, lane, lane if stays else -1)
        at_s, duration, idle = _prefill_from(board, job, lane, finish, ends, future[lane])
        expected = min(expected, ends[lane] + duration)
        latest = max(latest, board.jobs[job, LIMIT] - idle)
        if board.queued[lane] > 0:
            event = min(event, finish[board.order[lane, 0]])
        prefill_at = min(prefill_at, at_s)
        if stays:
            from_s, binding, possible = _decode_from(board, job, lane, np.inf, future[lane], releases)
            local_possible = local_possible or possible
            may_stay = True
            if max(at_s, from_s) < local_at or local_at == np.inf:
                local_at, local_binding = max(at_s, from_s), binding if from_s > 0 else PREFILL_TIME
            event = min(event, releases[lane, 0, AT])
    remote_at = max(prefill_at, decode_at)
    if may_stay and local_at <= remote_at:
        reason[EARLIEST], reason[BINDING] = local_at, local_binding
    else:
        reason[EARLIEST] = remote_at
        reason[BINDING] = PREFILL_TIME if decode_at == 0 else decode_binding
    reason[EXPECTED] = expected
    reason[LATEST] = latest
    reason[POSSIBLE] = 1.0 if latest >= 0 and (decode_possible or local_possible) else 0.0
    reason[NEXT_EVENT] = event


@compiled
def _duration(state: Floats, work: float, first: bool) -> float:
    """Most time that a prefill takes from a step boundary on; see `advance` for what differs if it is not the first."""
    if state[ROOM] <= 0:
        return np.inf
    full = np.ceil(work / state[ROOM]) - 1
    step_s = max(state[BASE] + state[ROOM], state[FLOOR])
    alone_s = 0.0 if first and full == 0 else max(0.0, state[FLOOR] - state[BASE])
    return float(full * step_s + max(state[BASE] + work - full * state[ROOM], state[FLOOR]) + alone_s)


@compiled
def _prefill_from(
    board: PlanState, job: int, lane: int, finish: Floats, ends: Floats, worker: Floats
) -> tuple[float, float, float]:
    """When the same prefill deadline would be kept here, its duration then, and its duration on the worker idle."""
    table, tiers = board.tables[lane], board.tpots.size
    state, jobs, order, held = board.state, board.jobs, board.order[lane], board.queued[lane]
    work, deadline = jobs[job, WORK], jobs[job, LIMIT]
    for tier in range(2 * tiers):
        state[STATE_COUNTS + tier] = 0.0
    choose_step(worker, table, tiers, state[STATE_COUNTS:], state)
    idle = _duration(state, work, True)
    if not choose_step(worker, table, tiers, worker[WORKER_COUNTS:], state):
        return np.inf, np.inf, idle
    duration = _duration(state, work, held == 0)
    if duration > deadline:
        return np.inf, duration, idle
    behind_all = max(0.0, ends[lane] + duration - deadline)
    if held > 0 and jobs[order[held - 1], DUE] < np.inf:
        behind_all = max(behind_all, jobs[order[held - 1], DUE] - deadline)
    earliest, slack = behind_all, np.inf
    for at in range(held - 1, -1, -1):
        slack = min(slack, jobs[order[at], LIMIT] - finish[order[at]])
        if slack < duration:
            break
        previous_end = finish[order[at - 1]] if at > 0 else worker[BUSY]
        from_s = max(0.0, previous_end + duration - deadline)
        if at > 0:
            from_s = max(from_s, jobs[order[at - 1], DUE] - deadline)
        if from_s <= jobs[order[at], DUE] - deadline:
            earliest = min(earliest, from_s)
    if earliest < behind_all and board.spent[0] > board.settings[WORK_LIMIT]:
        earliest = behind_all
    if earliest < behind_all:
        due, ready = jobs[job, DUE], jobs[job, READY]
        jobs[job, DUE] = jobs[job, LIMIT] = deadline + earliest
        jobs[job, READY] = earliest
        if prefill_fits(board, job, lane) != FITS:
            earliest = behind_all
        jobs[job, DUE], jobs[job, LIMIT], jobs[job, READY] = due, deadline, ready
    return earliest, duration, idle


@compiled
def _decode_from(
    board: PlanState, job: int, decoder: int, budget_s: float, future: Floats, releases: Floats
) -> tuple[float, int, bool]:
    """When the worker could take the decode, what forbids it now, and whether it could if it were empty.

    Args:
        budget_s: what the hand-over may take beside the transfer; infinite without one.
    """
    table = board.tables[decoder]
    worker = np.empty_like(future)
    copy_floats(future, worker)
    tiers, tier, needs = board.tpots.size, int(board.jobs[job, ASK_TIER]), board.jobs[job, KV_FULL]
    binding = KV_MEMORY if needs > worker[KV_FREE] else DECODE_RATE
    empty = np.empty_like(worker)
    copy_floats(worker, empty)
    for at in range(WORKER_COUNTS, WORKER_COUNTS + 2 * tiers):
        empty[at] = 0.0
    possible = needs <= worker[KV_TOTAL] and _keeps_rate(board, job, empty, table, budget_s)
    for at in range(-1, releases.shape[1]):
        from_s = 0.0
        if at >= 0:
            release = releases[decoder, at]
            from_s = release[AT]
            if from_s == np.inf:
                break
            gone = int(release[RELEASED_TIER])
            worker[KV_FREE] += release[RELEASED_KV]
            worker[SLOTS] += release[RELEASED_REQUESTS]
            if gone >= 0:
                count, context = WORKER_COUNTS + gone, WORKER_COUNTS + tiers + gone
                worker[count] = max(0.0, worker[count] - release[RELEASED_REQUESTS])
                worker[context] = max(0.0, worker[context] - release[RELEASED_KV])
        if needs <= worker[KV_FREE] and (
            tier < 0 or (worker[SLOTS] >= 1 and _keeps_rate(board, job, worker, table, budget_s))
        ):
            return from_s, binding, possible
    return np.inf, binding, possible


@compiled
def _keeps_rate(board: PlanState, job: int, worker: Floats, table: Floats, budget_s: float) -> bool:
    tier, tiers = int(board.jobs[job, ASK_TIER]), board.tpots.size
    if tier < 0:
        return True
    held = worker[WORKER_COUNTS:]
    held[tier] += 1
    held[tiers + tier] += board.jobs[job, GROW]
    fits = choose_step(worker, table, tiers, held, board.scratch)
    if fits and budget_s < np.inf:
        fits = worker[HANDOVER] * step_at_handover(worker, table, tiers, held, board.scratch) <= budget_s
    held[tier] -= 1
    held[tiers + tier] -= board.jobs[job, GROW]
    return bool(fits)


@compiled
def _handover_budget(board: PlanState, candidate: int, job: int, other: int) -> float:
    """What is left of the first token's TPOT after the quickest transfer to a decoder."""
    tier = int(board.jobs[job, ASK_TIER])
    if tier < 0:
        return np.inf
    quickest = np.inf
    for option in range(board.lanes.shape[1]):
        if board.lanes[candidate, option] >= 0:
            quickest = min(quickest, board.handover_s[candidate, option, other])
    return float(board.tpots[tier] - quickest)
