"""The state of a planning round: every array that the kernels share, in one tuple."""

from __future__ import annotations

from typing import NamedTuple

from services.slo.planner.kernels.compiled import Floats, Integers


class PlanState(NamedTuple):
    """The arrays of one round. `layout` names the columns; `../README.md` says who writes and reads each array.

    A *prefiller* is a worker that may prefill, a *decoder* one that may decode; both are indexes of `workers`, and one
    worker may be both. Shapes are in W workers, T tiers, J jobs, C candidates, P prefillers and D decoders that a
    candidate may choose from, Q places in a queue.
    """

    workers: Floats
    """(W, WORKER_LOAD + 2 T): the workers, with everything that is placed so far counted in."""
    step_tables: Floats
    """(W, rows, STEP_CELLS + CELL_COLUMNS T): the step table of each worker."""
    tpot_s: Floats
    """(T,): TPOT of each tier in seconds, ascending."""
    jobs: Floats
    """(J, JOB_COLUMNS): the promised prefills, then the candidates, then the typical arrival."""
    queue: Integers
    """(W, Q): jobs of each worker by due time; the first `queued` of each row are in use."""
    queued: Integers
    """(W,): number of jobs in each worker's queue."""
    prefillers: Integers
    """(C, P): workers that may prefill each candidate, best guess first; -1 for none."""
    cached: Floats
    """(C, P): prompt tokens of the candidate that each of those has in its cache."""
    decoders: Integers
    """(C, D): workers that may decode each candidate, best guess first; -1 for none."""
    handover_s: Floats
    """(C, P, D): seconds that each candidate's KV cache takes from each of its prefillers to each of its decoders."""
    placed: Integers
    """(C, PLACED_COLUMNS): where each candidate runs."""
    settings: Floats
    """(SETTING_COLUMNS,): figures of the round."""
    spent: Floats
    """(1,): work done so far, in prefills scheduled."""
    checkpoints: Floats
    """(W, Q, SCHEDULE_LOAD + 2 T): each worker's schedule before its first prefill, its second, and so on."""
    checkpointed: Integers
    """(W,): number of prefills that each worker's checkpoints cover; negative: not even its start."""
    schedule: Floats
    """(SCHEDULE_LOAD + 2 T,): scratch, a schedule."""
    chosen_step: Floats
    """(SCHEDULE_LOAD + 2 T,): scratch, what `choose_step` found."""
    decode_cost: Floats
    """(DECODE_COLUMNS,): scratch, what one more decode costs."""
