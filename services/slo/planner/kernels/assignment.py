"""Who runs where, in compiled form: whether a candidate fits on a pair of workers, taking it and letting it go."""

from __future__ import annotations

from services.slo.planner.kernels.arrays import copy_floats
from services.slo.planner.kernels.compiled import Floats, compiled, entry
from services.slo.planner.kernels.layout import (
    ASK_TIER,
    BASE,
    DECODE_RATE,
    DECODES,
    DUE,
    FITS,
    FLOOR,
    GROW,
    HANDOVER,
    KV_FREE,
    KV_FULL,
    KV_MEMORY,
    KV_PROMPT,
    PER_PAIR,
    PER_REQUEST,
    PER_TOKEN,
    PREFILLS,
    ROOM,
    ROW,
    SLOTS,
    TIER,
    WORK,
    WORKER_COUNTS,
)
from services.slo.planner.kernels.plan_state import COMMITTED, PlanState
from services.slo.planner.kernels.schedule import advance, begin, keeps_up, place_in_order, run_schedule
from services.slo.planner.kernels.step_table import choose_step, headroom, shortest_step


@entry
def work_of(worker: Floats, prompt_tokens: float, cached_tokens: float) -> float:
    """Seconds of computing for a prompt, step overheads excluded; at least one token is always computed."""
    new_tokens = max(1.0, prompt_tokens - cached_tokens)
    pairs = new_tokens * (prompt_tokens - new_tokens / 2)
    return float(new_tokens * worker[PER_TOKEN] + worker[PER_REQUEST] + pairs * worker[PER_PAIR])


@compiled
def address(board: PlanState, candidate: int, lane: int, decoder: int) -> int:
    """Fill in what depends on where the candidate would run. Returns its job."""
    job = int(board.settings[COMMITTED]) + candidate
    cached = 0.0
    for option in range(board.lanes.shape[1]):
        if board.lanes[candidate, option] == lane:
            cached = board.cached[candidate, option]
            break
    board.jobs[job, WORK] = work_of(board.workers[lane], board.jobs[job, KV_PROMPT], cached)
    board.jobs[job, TIER] = board.jobs[job, ASK_TIER] if lane == decoder else -1.0
    return job


@compiled
def memory_fits(board: PlanState, job: int, lane: int, decoder: int) -> bool:
    if lane != decoder and board.jobs[job, KV_PROMPT] > board.workers[lane, KV_FREE]:
        return False
    return bool(board.jobs[job, KV_FULL] <= board.workers[decoder, KV_FREE])


@compiled
def prefill_fits(board: PlanState, job: int, lane: int) -> int:
    """Whether the lane can take an addressed prefill, and the decode after it where it stays: FITS or what forbids.

    Leaves the schedule with it in `board.state`.
    """
    worker, table, tpots, jobs = board.workers[lane], board.tables[lane], board.tpots, board.jobs
    order, queued, state = board.order[lane], board.queued[lane], board.state
    at = place_in_order(jobs, order, queued, jobs[job, DUE])
    if not _mark(board, lane, at):
        return DECODE_RATE
    copy_floats(board.marks[lane, at], state)
    board.spent[0] += 1
    outcome = advance(worker, table, tpots, jobs, job, state)
    behind = at
    while outcome == FITS and behind < queued:
        outcome = advance(worker, table, tpots, jobs, order[behind], state)
        board.spent[0] += 1
        behind += 1
    if outcome == FITS and not keeps_up(worker, table, tpots.size, state, board.scratch):
        return DECODE_RATE
    return outcome


@compiled
def _mark(board: PlanState, lane: int, at: int) -> bool:
    """Bring the lane's marks up to `at`. False if the worker cannot even keep up with its decodes."""
    worker, table, tpots = board.workers[lane], board.tables[lane], board.tpots
    marks = board.marks[lane]
    marked = board.marked[lane]
    if marked < 0:
        if not begin(worker, table, tpots, marks[0]):
            return False
        marked = 0
    while marked < at:
        copy_floats(marks[marked], marks[marked + 1])
        if advance(worker, table, tpots, board.jobs, board.order[lane, marked], marks[marked + 1]) != FITS:
            return False
        board.spent[0] += 1
        marked += 1
    board.marked[lane] = marked
    return True


@compiled
def decode_share(
    worker: Floats, table: Floats, tpots: Floats, tier: int, context_tokens: float, scratch: Floats, cost: Floats
) -> bool:
    """Whether the worker can step one decode more; counts as if it decoded there already, until `forget`.

    `cost` gets the share of the worker's time that it takes, and the length of a step with it in seconds.
    """
    tiers, held = tpots.size, worker[WORKER_COUNTS:]
    before = headroom(worker, table, tiers, held)
    held[tier] += 1
    held[tiers + tier] += context_tokens
    if not choose_step(worker, table, tiers, held, scratch):
        return False
    cost[0] = before - headroom(worker, table, tiers, held)
    cost[1] = step_at_handover(worker, table, tiers, held, scratch)
    return True


@compiled
def step_at_handover(worker: Floats, table: Floats, tiers: int, held: Floats, chosen: Floats) -> float:
    """Longest step that a decode which has just come may wait for, `chosen` being what `choose_step` found."""
    if worker[PREFILLS] > 0:
        return float(table[int(chosen[ROW]), 0])
    return shortest_step(worker, table, tiers, held)


@compiled
def forget(worker: Floats, tiers: int, tier: int, context_tokens: float) -> None:
    """Undo what `decode_share` counted."""
    worker[WORKER_COUNTS + tier] -= 1
    worker[WORKER_COUNTS + tiers + tier] -= context_tokens


@compiled
def decode_fits(board: PlanState, job: int, decoder: int) -> bool:
    """Whether the worker can take a decode that comes from another worker; `cost` as `decode_share` fills it."""
    board.cost[0] = 0.0
    board.cost[1] = 0.0
    tier = int(board.jobs[job, ASK_TIER])
    if tier < 0:
        return True
    worker, table = board.workers[decoder], board.tables[decoder]
    if worker[SLOTS] < 1:
        return False
    context_tokens = board.jobs[job, GROW]
    board.spent[0] += 4 + board.queued[decoder]
    fits = decode_share(worker, table, board.tpots, tier, context_tokens, board.scratch, board.cost)
    if fits and board.queued[decoder] > 0:
        fits = (
            run_schedule(
                worker,
                table,
                board.tpots,
                board.jobs,
                board.order[decoder],
                board.queued[decoder],
                board.state,
                board.scratch,
            )
            == FITS
        )
    forget(worker, board.tpots.size, tier, context_tokens)
    return fits


@compiled
def handover_fits(board: PlanState, candidate: int, job: int, lane: int, decoder: int, step_s: float) -> bool:
    """Whether the second token can be in time when the KV cache has to move first."""
    tier = int(board.jobs[job, ASK_TIER])
    if tier < 0:
        return True
    transfer_s = 0.0
    for option in range(board.lanes.shape[1]):
        if board.lanes[candidate, option] == lane:
            for other in range(board.decoders.shape[1]):
                if board.decoders[candidate, other] == decoder:
                    transfer_s = board.handover_s[candidate, option, other]
    return bool(transfer_s + board.workers[decoder, HANDOVER] * step_s <= board.tpots[tier])


@compiled
def spare_share(step: Floats) -> float:
    """Share of time left to prefill by the step found in `step`."""
    return float(step[ROOM] / max(step[BASE] + step[ROOM], step[FLOOR]))


@compiled
def pair_fits(board: PlanState, candidate: int, job: int, lane: int, decoder: int) -> int:
    """Whether an addressed candidate can be promised on this pair: FITS, or the resource that forbids it."""
    if not memory_fits(board, job, lane, decoder):
        return KV_MEMORY
    if lane == decoder:
        if board.workers[lane, DECODES] == 0 or (board.jobs[job, ASK_TIER] >= 0 and board.workers[lane, SLOTS] < 1):
            return DECODE_RATE
    elif not decode_fits(board, job, decoder) or not handover_fits(board, candidate, job, lane, decoder, board.cost[1]):
        return DECODE_RATE
    return prefill_fits(board, job, lane)


@compiled
def attach(board: PlanState, candidate: int, lane: int, decoder: int) -> None:
    """Place a candidate; whether it fits is the caller's to know."""
    job = address(board, candidate, lane, decoder)
    order = board.order[lane]
    queued = board.queued[lane]
    at = place_in_order(board.jobs, order, queued, board.jobs[job, DUE])
    for behind in range(queued, at, -1):
        order[behind] = order[behind - 1]
    order[at] = job
    board.queued[lane] += 1
    board.marked[lane] = min(board.marked[lane], at)
    _hold(board, job, lane, decoder, 1.0)
    board.placed[candidate, 0] = lane
    board.placed[candidate, 1] = decoder


@compiled
def detach(board: PlanState, candidate: int) -> None:
    """Undo `attach`."""
    job = int(board.settings[COMMITTED]) + candidate
    lane, decoder = board.placed[candidate, 0], board.placed[candidate, 1]
    order = board.order[lane]
    at = 0
    while order[at] != job:
        at += 1
    for behind in range(at, board.queued[lane] - 1):
        order[behind] = order[behind + 1]
    board.queued[lane] -= 1
    board.marked[lane] = min(board.marked[lane], at)
    _hold(board, job, lane, decoder, -1.0)
    board.placed[candidate, 0] = -1
    board.placed[candidate, 1] = -1


@compiled
def _hold(board: PlanState, job: int, lane: int, decoder: int, sign: float) -> None:
    workers, jobs = board.workers, board.jobs
    workers[decoder, KV_FREE] -= sign * jobs[job, KV_FULL]
    tier = int(jobs[job, ASK_TIER])
    if tier >= 0:
        workers[decoder, SLOTS] -= sign
    if lane != decoder:
        workers[lane, KV_FREE] -= sign * jobs[job, KV_PROMPT]
        if tier >= 0:
            workers[decoder, WORKER_COUNTS + tier] += sign
            workers[decoder, WORKER_COUNTS + board.tpots.size + tier] += sign * jobs[job, GROW]
            board.marked[decoder] = -1


@compiled
def try_pair(board: PlanState, candidate: int, lane: int, decoder: int) -> bool:
    """Place the candidate there if it fits."""
    job = address(board, candidate, lane, decoder)
    if pair_fits(board, candidate, job, lane, decoder) != FITS:
        return False
    attach(board, candidate, lane, decoder)
    return True
