"""Greedy placement: each candidate in turn goes to the pair of workers where it costs the others least."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.assignment import (
    add_decode,
    attach,
    decode_fits,
    handover_fits,
    memory_fits,
    prefill_fits,
    remove_decode,
    set_destination,
    stays_fit,
)
from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import (
    DECODE_COLUMNS,
    DECODE_SHARE,
    DECODE_STEP_S,
    FITS,
    JOB_KV_TOKENS,
    JOB_LIMIT_S,
    JOB_TIER,
    JOB_WORK_S,
    PLACED_PREFILLER,
    SETTING_PROMISED_JOBS,
    SETTING_WORK_LIMIT,
)
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.schedule import end_of

DECODE_HORIZON_S: Final = 1.0
"""Seconds of prefill that a decode is worth which takes all of a worker's time, when pairs of workers are compared.
Chosen: about the time until the deadlines of a round."""
_LEAST_LIMIT_S: Final = 1e-9
"""Limit that stands for one of no time, to divide by."""


@compiled
def place_all(state: PlanState, ranking: Integers, first_option: int, options: int) -> int:
    """Place candidates in the order of `ranking` (C,) as far as they fit; those placed already are left alone.

    Args:
        first_option, options: the window of `state.prefillers` and `state.decoders` to try.

    Returns:
        Number of candidates placed.
    """
    decode_costs = np.empty((state.decoders.shape[1], DECODE_COLUMNS))
    taken = 0
    for candidate in ranking:
        if state.placed[candidate, PLACED_PREFILLER] >= 0 or state.spent[0] > state.settings[SETTING_WORK_LIMIT]:
            continue
        prefiller, decoder = _cheapest_pair(state, candidate, first_option, options, decode_costs)
        if prefiller >= 0:
            attach(state, candidate, prefiller, decoder)
            taken += 1
    return taken


@compiled
def _cheapest_pair(
    state: PlanState, candidate: int, first_option: int, options: int, decode_costs: Floats
) -> tuple[int, int]:
    """Return the prefiller and the decoder of the window where the candidate costs least; -1 twice if it fits nowhere.

    Args:
        decode_costs: (D, DECODE_COLUMNS), scratch.
    """
    job = int(state.settings[SETTING_PROMISED_JOBS]) + candidate
    prefillers, decoders = state.prefillers, state.decoders
    first_decoder = _window(decoders[candidate], first_option)
    last_decoder = min(first_decoder + options, decoders.shape[1])
    first_prefiller = _window(prefillers[candidate], first_option)
    for other in range(first_decoder, last_decoder):
        decoder = decoders[candidate, other]
        fits = decoder >= 0 and decode_fits(state, job, decoder)
        decode_costs[other, DECODE_SHARE] = state.decode_cost[DECODE_SHARE] if fits else np.inf
        decode_costs[other, DECODE_STEP_S] = state.decode_cost[DECODE_STEP_S]
    best, best_prefiller, best_decoder = np.inf, -1, -1
    for option in range(first_prefiller, min(first_prefiller + options, prefillers.shape[1])):
        prefiller = prefillers[candidate, option]
        if prefiller < 0:
            continue
        local_cost = _local_cost(state, candidate, prefiller)
        if local_cost < best:
            best, best_prefiller, best_decoder = local_cost, prefiller, prefiller
        other = _cheapest_decoder(state, candidate, job, option, first_decoder, last_decoder, decode_costs)
        if other < 0:
            continue
        set_destination(state, candidate, prefiller, decoders[candidate, other])
        if prefill_fits(state, job, prefiller) == FITS:
            cost = _prefill_cost(state, job) + _remote_cost(state, candidate, option, other, decode_costs)
            if cost < best:
                best, best_prefiller, best_decoder = cost, prefiller, decoders[candidate, other]
    return best_prefiller, best_decoder


@compiled
def _window(options: Integers, first: int) -> int:
    """Return `first` if the candidate has an option there, 0 otherwise: who has no more is offered the first again."""
    return first if first < options.size and options[first] >= 0 else 0


@compiled
def _local_cost(state: PlanState, candidate: int, prefiller: int) -> float:
    """Return the cost, in seconds, of prefilling and decoding on one worker; infinite if it cannot."""
    worker, tpot_s = state.workers[prefiller], state.tpot_s
    job = set_destination(state, candidate, prefiller, prefiller)
    if not stays_fit(state, job, prefiller) or not memory_fits(state, job, prefiller, prefiller):
        return np.inf
    if prefill_fits(state, job, prefiller) != FITS:
        return np.inf
    cost = _prefill_cost(state, job)
    tier = int(state.jobs[job, JOB_TIER])
    if tier >= 0 and state.prefillers.shape[1] > 1:
        table, context_tokens = state.step_tables[prefiller], state.jobs[job, JOB_KV_TOKENS]
        add_decode(worker, table, tpot_s, tier, context_tokens, state.chosen_step, state.decode_cost)
        remove_decode(worker, tpot_s.size, tier, context_tokens)
        cost += DECODE_HORIZON_S * state.decode_cost[DECODE_SHARE]
    return cost


@compiled
def _cheapest_decoder(
    state: PlanState, candidate: int, job: int, option: int, first: int, last: int, decode_costs: Floats
) -> int:
    """Return the option from `first` up to `last` that decodes cheapest what is prefilled at `option`; -1 if none can.

    Args:
        decode_costs: (D, DECODE_COLUMNS), what the decode costs at each option.
    """
    prefiller = state.prefillers[candidate, option]
    best, found = np.inf, -1
    for other in range(first, last):
        decoder = state.decoders[candidate, other]
        cost = _remote_cost(state, candidate, option, other, decode_costs)
        if (
            cost < best
            and decoder != prefiller
            and memory_fits(state, job, prefiller, decoder)
            and handover_fits(state, candidate, job, prefiller, decoder, decode_costs[other, DECODE_STEP_S])
        ):
            best, found = cost, other
    return found


@compiled
def _remote_cost(state: PlanState, candidate: int, option: int, other: int, decode_costs: Floats) -> float:
    """Return the cost, in seconds, of decoding at option `other` what was prefilled at `option`, the move included."""
    decode_s = DECODE_HORIZON_S * decode_costs[other, DECODE_SHARE]
    return float(decode_s + state.handover_s[candidate, option, other])


@compiled
def _prefill_cost(state: PlanState, job: int) -> float:
    """Return the cost of a prefill in seconds: higher the more of the job's own deadline its worker is booked for.

    The schedule with the prefill is in `state.schedule`.
    """
    booked = end_of(state.schedule) / max(state.jobs[job, JOB_LIMIT_S], _LEAST_LIMIT_S)
    return float(state.jobs[job, JOB_WORK_S] * (1 + booked))
