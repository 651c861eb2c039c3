"""Who runs where: whether a candidate fits on a pair of workers, placing it there and taking it back.

A pair is a `prefiller` and a `decoder`, indexes of `PlanState.workers`; both may be the same worker. `job` is the
candidate's row of `PlanState.jobs`, made for that pair by `set_destination`.
"""

from __future__ import annotations

from services.slo.planner.kernels.arrays import copy_floats
from services.slo.planner.kernels.compiled import Floats, compiled, entry
from services.slo.planner.kernels.layout import (
    DECODE_SHARE,
    DECODE_STEP_S,
    FITS,
    JOB_DUE_S,
    JOB_KV_TOKENS,
    JOB_LOCAL_TIER,
    JOB_PROMPT_TOKENS,
    JOB_TIER,
    JOB_WORK_S,
    LACKS_DECODE_RATE,
    LACKS_KV_MEMORY,
    PLACED_DECODER,
    PLACED_PREFILLER,
    SCHEDULE_STEP_ROW,
    SETTING_PROMISED_JOBS,
    STEP_LENGTH_S,
    WORKER_DECODES,
    WORKER_FREE_SLOTS,
    WORKER_HANDOVER_STEPS,
    WORKER_KV_FREE_TOKENS,
    WORKER_LOAD,
    WORKER_PER_ATTENTION_PAIR_S,
    WORKER_PER_REQUEST_S,
    WORKER_PER_TOKEN_S,
    WORKER_PREFILLS,
)
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.schedule import advance, begin, keeps_up, queue_position, run_schedule
from services.slo.planner.kernels.step_table import choose_step, idle_share, shortest_step


@entry
def work_of(worker: Floats, prompt_tokens: float, cached_tokens: float) -> float:
    """Return the seconds of computing that a prompt takes on a worker, step overheads excluded.

    At least one token is always computed, even of a prompt that is cached as a whole.

    Args:
        worker: a row of `PlanState.workers`.
    """
    new_tokens = max(1.0, prompt_tokens - cached_tokens)
    pairs = new_tokens * (prompt_tokens - new_tokens / 2)
    tokens_s = new_tokens * worker[WORKER_PER_TOKEN_S]
    return float(tokens_s + worker[WORKER_PER_REQUEST_S] + pairs * worker[WORKER_PER_ATTENTION_PAIR_S])


@compiled
def set_destination(state: PlanState, candidate: int, prefiller: int, decoder: int) -> int:
    """Fill in what depends on where the candidate would run, and return its job."""
    job = int(state.settings[SETTING_PROMISED_JOBS]) + candidate
    cached_tokens = 0.0
    for option in range(state.prefillers.shape[1]):
        if state.prefillers[candidate, option] == prefiller:
            cached_tokens = state.cached[candidate, option]
            break
    prompt_tokens = state.jobs[job, JOB_PROMPT_TOKENS]
    state.jobs[job, JOB_WORK_S] = work_of(state.workers[prefiller], prompt_tokens, cached_tokens)
    state.jobs[job, JOB_LOCAL_TIER] = state.jobs[job, JOB_TIER] if prefiller == decoder else -1.0
    return job


@compiled
def memory_fits(state: PlanState, job: int, prefiller: int, decoder: int) -> bool:
    """Return whether the prompt's KV cache fits on the prefiller and the whole context on the decoder."""
    if prefiller != decoder and state.jobs[job, JOB_PROMPT_TOKENS] > state.workers[prefiller, WORKER_KV_FREE_TOKENS]:
        return False
    return bool(state.jobs[job, JOB_KV_TOKENS] <= state.workers[decoder, WORKER_KV_FREE_TOKENS])


@compiled
def prefill_fits(state: PlanState, job: int, prefiller: int) -> int:
    """Return FITS if the prefiller can take the prefill, and the decode after it where it stays, or what is lacking.

    The schedule with it is left in `state.schedule`.
    """
    worker, table, tpot_s, jobs = state.workers[prefiller], state.step_tables[prefiller], state.tpot_s, state.jobs
    queue, queued, schedule = state.queue[prefiller], state.queued[prefiller], state.schedule
    at = queue_position(jobs, queue, queued, jobs[job, JOB_DUE_S])
    if not _checkpoint(state, prefiller, at):
        return LACKS_DECODE_RATE
    copy_floats(state.checkpoints[prefiller, at], schedule)
    state.spent[0] += 1
    outcome = advance(worker, table, tpot_s, jobs, job, schedule)
    behind = at
    while outcome == FITS and behind < queued:
        outcome = advance(worker, table, tpot_s, jobs, queue[behind], schedule)
        state.spent[0] += 1
        behind += 1
    if outcome == FITS and not keeps_up(worker, table, tpot_s.size, schedule, state.chosen_step):
        return LACKS_DECODE_RATE
    return outcome


@compiled
def _checkpoint(state: PlanState, prefiller: int, at: int) -> bool:
    """Bring the prefiller's checkpoints up to place `at` of its queue; False if its own jobs do not fit so far."""
    worker, table, tpot_s = state.workers[prefiller], state.step_tables[prefiller], state.tpot_s
    checkpoints = state.checkpoints[prefiller]
    done = state.checkpointed[prefiller]
    if done < 0:
        if not begin(worker, table, tpot_s, checkpoints[0]):
            return False
        done = 0
    while done < at:
        copy_floats(checkpoints[done], checkpoints[done + 1])
        if advance(worker, table, tpot_s, state.jobs, state.queue[prefiller, done], checkpoints[done + 1]) != FITS:
            return False
        state.spent[0] += 1
        done += 1
    state.checkpointed[prefiller] = done
    return True


@compiled
def add_decode(
    worker: Floats,
    table: Floats,
    tpot_s: Floats,
    tier: int,
    context_tokens: float,
    chosen_step: Floats,
    decode_cost: Floats,
) -> bool:
    """Return whether the worker can step one decode more, which counts from now on, until `remove_decode`.

    Args:
        worker: a row of `PlanState.workers`, `table` its step table.
        tpot_s: (tiers,), TPOT of each tier in seconds.
        chosen_step: scratch for `choose_step`.
        decode_cost: (DECODE_COLUMNS,), gets what the decode costs if it can be stepped.
    """
    tiers, load = tpot_s.size, worker[WORKER_LOAD:]
    before = idle_share(worker, table, tiers, load)
    load[tier] += 1
    load[tiers + tier] += context_tokens
    if not choose_step(worker, table, tiers, load, chosen_step):
        return False
    decode_cost[DECODE_SHARE] = before - idle_share(worker, table, tiers, load)
    decode_cost[DECODE_STEP_S] = step_at_handover(worker, table, tiers, load, chosen_step)
    return True


@compiled
def remove_decode(worker: Floats, tiers: int, tier: int, context_tokens: float) -> None:
    """Take back what `add_decode` counted on the row `worker`."""
    worker[WORKER_LOAD + tier] -= 1
    worker[WORKER_LOAD + tiers + tier] -= context_tokens


@compiled
def step_at_handover(worker: Floats, table: Floats, tiers: int, load: Floats, chosen_step: Floats) -> float:
    """Return the longest step, in seconds, that a decode which has just come may have to wait for.

    Args:
        load: (2 * tiers,), the decodes with it.
        chosen_step: what `choose_step` found for them.
    """
    if worker[WORKER_PREFILLS] > 0:
        return float(table[int(chosen_step[SCHEDULE_STEP_ROW]), STEP_LENGTH_S])
    return shortest_step(worker, table, tiers, load)


@compiled
def decode_fits(state: PlanState, job: int, decoder: int) -> bool:
    """Return whether the worker can take a decode that comes from another one; `state.decode_cost` gets its cost."""
    state.decode_cost[DECODE_SHARE] = 0.0
    state.decode_cost[DECODE_STEP_S] = 0.0
    tier = int(state.jobs[job, JOB_TIER])
    if tier < 0:
        return True
    worker, table, tpot_s = state.workers[decoder], state.step_tables[decoder], state.tpot_s
    if worker[WORKER_FREE_SLOTS] < 1:
        return False
    context_tokens = state.jobs[job, JOB_KV_TOKENS]
    queue, queued = state.queue[decoder], state.queued[decoder]
    state.spent[0] += 4 + queued
    fits = add_decode(worker, table, tpot_s, tier, context_tokens, state.chosen_step, state.decode_cost)
    if fits and queued > 0:
        outcome = run_schedule(worker, table, tpot_s, state.jobs, queue, queued, state.schedule, state.chosen_step)
        fits = outcome == FITS
    remove_decode(worker, tpot_s.size, tier, context_tokens)
    return fits


@compiled
def handover_fits(state: PlanState, candidate: int, job: int, prefiller: int, decoder: int, step_s: float) -> bool:
    """Return whether the second token can be in time when the KV cache has to move first.

    Args:
        step_s: longest step that the decode may have to wait for, from DECODE_STEP_S.
    """
    tier = int(state.jobs[job, JOB_TIER])
    if tier < 0:
        return True
    transfer_s = 0.0
    for option in range(state.prefillers.shape[1]):
        if state.prefillers[candidate, option] == prefiller:
            for other in range(state.decoders.shape[1]):
                if state.decoders[candidate, other] == decoder:
                    transfer_s = state.handover_s[candidate, option, other]
    return bool(transfer_s + state.workers[decoder, WORKER_HANDOVER_STEPS] * step_s <= state.tpot_s[tier])


@compiled
def pair_fits(state: PlanState, candidate: int, job: int, prefiller: int, decoder: int) -> int:
    """Return FITS if the candidate can be promised on this pair, or the resource that it lacks there."""
    if not memory_fits(state, job, prefiller, decoder):
        return LACKS_KV_MEMORY
    if prefiller == decoder:
        decodes = stays_fit(state, job, prefiller)
    else:
        decodes = decode_fits(state, job, decoder)
        step_s = state.decode_cost[DECODE_STEP_S]
        decodes = decodes and handover_fits(state, candidate, job, prefiller, decoder, step_s)
    if not decodes:
        return LACKS_DECODE_RATE
    return prefill_fits(state, job, prefiller)


@compiled
def stays_fit(state: PlanState, job: int, prefiller: int) -> bool:
    """Return whether the prefiller decodes too and has a slot for the job, if that is promised a rate."""
    worker = state.workers[prefiller]
    return bool(worker[WORKER_DECODES] > 0 and (state.jobs[job, JOB_TIER] < 0 or worker[WORKER_FREE_SLOTS] >= 1))


@compiled
def attach(state: PlanState, candidate: int, prefiller: int, decoder: int) -> None:
    """Place a candidate on a pair; the caller knows that it fits."""
    job = set_destination(state, candidate, prefiller, decoder)
    queue = state.queue[prefiller]
    queued = state.queued[prefiller]
    at = queue_position(state.jobs, queue, queued, state.jobs[job, JOB_DUE_S])
    for behind in range(queued, at, -1):
        queue[behind] = queue[behind - 1]
    queue[at] = job
    state.queued[prefiller] += 1
    state.checkpointed[prefiller] = min(state.checkpointed[prefiller], at)
    _book(state, job, prefiller, decoder, 1.0)
    state.placed[candidate, PLACED_PREFILLER] = prefiller
    state.placed[candidate, PLACED_DECODER] = decoder


@compiled
def detach(state: PlanState, candidate: int) -> None:
    """Take a candidate back from where `attach` placed it."""
    job = int(state.settings[SETTING_PROMISED_JOBS]) + candidate
    prefiller, decoder = state.placed[candidate, PLACED_PREFILLER], state.placed[candidate, PLACED_DECODER]
    queue = state.queue[prefiller]
    at = 0
    while queue[at] != job:
        at += 1
    for behind in range(at, state.queued[prefiller] - 1):
        queue[behind] = queue[behind + 1]
    state.queued[prefiller] -= 1
    state.checkpointed[prefiller] = min(state.checkpointed[prefiller], at)
    _book(state, job, prefiller, decoder, -1.0)
    state.placed[candidate, PLACED_PREFILLER] = -1
    state.placed[candidate, PLACED_DECODER] = -1


@compiled
def _book(state: PlanState, job: int, prefiller: int, decoder: int, sign: float) -> None:
    """Count what the job holds on its two workers; with a sign of -1.0 it is given back."""
    workers, jobs = state.workers, state.jobs
    workers[decoder, WORKER_KV_FREE_TOKENS] -= sign * jobs[job, JOB_KV_TOKENS]
    tier = int(jobs[job, JOB_TIER])
    if tier >= 0:
        workers[decoder, WORKER_FREE_SLOTS] -= sign
    if prefiller != decoder:
        workers[prefiller, WORKER_KV_FREE_TOKENS] -= sign * jobs[job, JOB_PROMPT_TOKENS]
        if tier >= 0:
            workers[decoder, WORKER_LOAD + tier] += sign
            workers[decoder, WORKER_LOAD + state.tpot_s.size + tier] += sign * jobs[job, JOB_KV_TOKENS]
            state.checkpointed[decoder] = -1


@compiled
def try_pair(state: PlanState, candidate: int, prefiller: int, decoder: int) -> bool:
    """Place the candidate on the pair if it fits there, and return whether it did."""
    job = set_destination(state, candidate, prefiller, decoder)
    if pair_fits(state, candidate, job, prefiller, decoder) != FITS:
        return False
    attach(state, candidate, prefiller, decoder)
    return True
