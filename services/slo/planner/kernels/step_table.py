"""The step lengths worth trying on a worker, and what each tier of decodes costs in a step of that length.

With s draft tokens a tier gets Acc(s) = (1 - alpha^(s+1)) / (1 - alpha) tokens on average from a step that serves it; a
step may last up to its TPOT times the part of them that is counted on. For a given step length the fewest draft tokens
that suffice are cheapest, and only lengths at which some tier needs one more can be best: tiers * (drafts + 1) of them,
and the longest step allowed.

Arrays: `worker` is a row of `PlanState.workers`, `table` one worker's step table, and `load` (2 * tiers,) the running
decodes of each tier followed by the context tokens of each tier.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.arrays import sort
from services.slo.planner.kernels.compiled import Floats, compiled, entry
from services.slo.planner.kernels.layout import (
    CELL_COLUMNS,
    CELL_CONTEXT_COST_S,
    CELL_COST_S,
    CELL_DRAFT_TOKENS,
    CELL_MEMORY_COST_S,
    CELL_SHARE,
    CELL_TOKENS,
    SCHEDULE_BASE_S,
    SCHEDULE_CAPACITY_S,
    SCHEDULE_FLOOR_S,
    SCHEDULE_STEP_ROW,
    STEP_CELLS,
    STEP_LENGTH_S,
    WORKER_MAX_STEP_TOKENS,
    WORKER_MEMORY_PER_CONTEXT_TOKEN_S,
    WORKER_MEMORY_PER_WORK,
    WORKER_MEMORY_S,
    WORKER_OVERHEAD_S,
    WORKER_PER_CONTEXT_TOKEN_S,
    WORKER_PER_DRAFT_STEP_S,
    WORKER_PER_REQUEST_S,
    WORKER_PER_TOKEN_S,
    WORKER_STEP_ROWS,
)

COUNTED: Final = 0.75
"""Part of the tokens that drafts bring on average that a plan counts on. Chosen: the composer keeps every token's due
time, and a stream that had no luck, or has just come, makes the steps of all shorter. docs/reports/capacity.md says
what that changed."""
_TOLERANCE: Final = 1e-9
"""Relative difference below which two step lengths are the same: rounding."""
_NEIGHBOURS: Final = 1
"""Rows of the step table that a few more decodes can move the best row by. Chosen: `choose_near` falls back to all."""


@compiled
def accepted_tokens(alpha: float, drafts: int) -> float:
    """Return the tokens expected from a step with this many draft tokens, the one that the model itself adds included.

    Args:
        alpha: probability that a draft token is accepted if those before it were.
    """
    expected = 1.0
    power = 1.0
    for _ in range(drafts):
        power *= alpha
        expected += power
    return expected


@compiled
def counted_tokens(alpha: float, drafts: int) -> float:
    """Return how many times its TPOT a tier's steps may last on average; arguments as of `accepted_tokens`."""
    return 1.0 + COUNTED * (accepted_tokens(alpha, drafts) - 1.0)


@entry
def build_step_table(terms: Floats, tpot_s: Floats, alphas: Floats, max_draft: int, max_step_s: float) -> Floats:
    """Return one row (STEP_CELLS + CELL_COLUMNS * tiers,) for every step length worth trying, ascending by length.

    Args:
        terms: (9,), `StepBound.terms`: the worker columns from WORKER_OVERHEAD_S on.
        tpot_s, alphas: (tiers,), the TPOT of each tier in seconds and the probability that a draft token is accepted.
        max_draft: most draft tokens in a step.
    """
    tiers = tpot_s.size
    lengths_s = np.empty(tiers * (max_draft + 1) + 1)
    lengths_s[-1] = max_step_s
    for tier in range(tiers):
        for drafts in range(max_draft + 1):
            reach_s = tpot_s[tier] * counted_tokens(alphas[tier], drafts)
            lengths_s[tier * (max_draft + 1) + drafts] = min(max_step_s, reach_s)
    sort(lengths_s)
    table = np.zeros((lengths_s.size, STEP_CELLS + CELL_COLUMNS * tiers))
    rows = 0
    for index in range(lengths_s.size):
        step_s = lengths_s[index]
        if rows and step_s <= table[rows - 1, STEP_LENGTH_S] * (1 + _TOLERANCE):
            continue
        table[rows, STEP_LENGTH_S] = step_s
        for tier in range(tiers):
            first = STEP_CELLS + CELL_COLUMNS * tier
            _fill_cell(table[rows, first : first + CELL_COLUMNS], step_s, terms, tpot_s[tier], alphas[tier], max_draft)
        rows += 1
    return table[:rows]


@compiled
def _fill_cell(cell: Floats, step_s: float, terms: Floats, tpot_s: float, alpha: float, max_draft: int) -> None:
    """Fill `cell` (CELL_COLUMNS,) with what one request of a tier costs in steps of this length, in seconds.

    The fewest draft tokens that keep the tier's TPOT are taken; CELL_DRAFT_TOKENS is -1 if none do.
    """
    cell[CELL_DRAFT_TOKENS] = -1.0
    for drafts in range(max_draft + 1):
        reach_s = tpot_s * counted_tokens(alpha, drafts)
        if reach_s * (1 + _TOLERANCE) >= step_s:
            share = min(1.0, step_s / reach_s)
            per_token_s = terms[WORKER_PER_TOKEN_S - WORKER_OVERHEAD_S]
            cell[CELL_DRAFT_TOKENS] = drafts
            cell[CELL_SHARE] = share
            cell[CELL_TOKENS] = share * (1 + drafts)
            cell[CELL_COST_S] = share * ((1 + drafts) * per_token_s + terms[WORKER_PER_REQUEST_S - WORKER_OVERHEAD_S])
            cell[CELL_CONTEXT_COST_S] = share * terms[WORKER_PER_CONTEXT_TOKEN_S - WORKER_OVERHEAD_S]
            cell[CELL_MEMORY_COST_S] = share * terms[WORKER_MEMORY_PER_CONTEXT_TOKEN_S - WORKER_OVERHEAD_S]
            return


@compiled
def step_of(worker: Floats, table: Floats, tiers: int, load: Floats, row: int) -> tuple[float, float, float]:
    """Return what a step of the length in `row` costs, takes and lasts while it serves the decodes in `load`.

    Returns:
        Seconds that it costs before any prefill, seconds of prefill work that fit into it, and the least seconds that
        it can last. The second is negative if the decodes do not fit.
    """
    length_s = table[row, STEP_LENGTH_S]
    serving_s = 0.0
    reading_s = 0.0
    tokens = 0.0
    drafts = 0.0
    for tier in range(tiers):
        requests = load[tier]
        if requests > 0:
            cell = STEP_CELLS + CELL_COLUMNS * tier
            if table[row, cell + CELL_DRAFT_TOKENS] < 0:
                return 0.0, -1.0, 0.0
            context = load[tiers + tier]
            serving_s += requests * table[row, cell + CELL_COST_S] + context * table[row, cell + CELL_CONTEXT_COST_S]
            reading_s += context * table[row, cell + CELL_MEMORY_COST_S]
            tokens += requests * table[row, cell + CELL_TOKENS]
            drafts = max(drafts, table[row, cell + CELL_DRAFT_TOKENS])
    fixed_s = worker[WORKER_OVERHEAD_S] + drafts * worker[WORKER_PER_DRAFT_STEP_S]
    per_token_s, per_request_s = worker[WORKER_PER_TOKEN_S], worker[WORKER_PER_REQUEST_S]
    # A step takes whole tokens: up to one token's time of what fits stays empty.
    base_s = fixed_s + per_request_s + serving_s
    capacity_s = length_s - base_s - per_token_s
    most_tokens = worker[WORKER_MAX_STEP_TOKENS] - 1
    if capacity_s > per_token_s * (most_tokens - tokens):
        # Full before it is as long as the decodes allow. Each of them then needs to be in fewer of the shorter steps.
        full_s = fixed_s + per_request_s + per_token_s * most_tokens
        shortened = min(1.0, full_s / (length_s - serving_s + per_token_s * tokens))
        base_s = fixed_s + per_request_s + serving_s * shortened
        reading_s *= shortened
        capacity_s = per_token_s * (most_tokens - tokens * shortened)
        serving_s *= shortened
    per_work = worker[WORKER_MEMORY_PER_WORK]
    floor_s = fixed_s + worker[WORKER_MEMORY_S] + reading_s + per_work * (per_request_s + serving_s)
    if per_work > 0:
        # The floor of a full step stands for that of any.
        capacity_s = min(capacity_s, (length_s - floor_s) / per_work)
        floor_s += per_work * max(0.0, capacity_s)
    if floor_s > length_s * (1 + _TOLERANCE):
        capacity_s = -1.0
    return base_s, capacity_s, floor_s


@compiled
def choose_step(worker: Floats, table: Floats, tiers: int, load: Floats, schedule: Floats) -> bool:
    """Find the step length that leaves the largest share of time to prefill.

    `schedule` gets SCHEDULE_STEP_ROW, SCHEDULE_BASE_S, SCHEDULE_CAPACITY_S and SCHEDULE_FLOOR_S; it stays as it was,
    and the result is False, if no length serves the decodes.
    """
    return _choose_among(worker, table, tiers, load, int(np.int64(0)), int(worker[WORKER_STEP_ROWS]), schedule)


@compiled
def choose_near(worker: Floats, table: Floats, tiers: int, load: Floats, row: int, schedule: Floats) -> bool:
    """Do what `choose_step` does among the neighbours of `row`, which was best a few decodes ago.

    All rows are looked at if none of the neighbours serves the decodes.
    """
    low, high = max(0, row - _NEIGHBOURS), min(int(worker[WORKER_STEP_ROWS]), row + _NEIGHBOURS + 1)
    if _choose_among(worker, table, tiers, load, low, high, schedule):
        return True
    return choose_step(worker, table, tiers, load, schedule)


@compiled
def _choose_among(
    worker: Floats, table: Floats, tiers: int, load: Floats, low: int, high: int, schedule: Floats
) -> bool:
    """Do what `choose_step` does among the rows from `low` up to `high`."""
    best = -1.0
    for row in range(low, high):
        base_s, capacity_s, floor_s = step_of(worker, table, tiers, load, row)
        if capacity_s < 0:
            continue
        share = capacity_s / max(base_s + capacity_s, floor_s)
        if share > best:
            best = share
            schedule[SCHEDULE_STEP_ROW] = row
            schedule[SCHEDULE_BASE_S] = base_s
            schedule[SCHEDULE_CAPACITY_S] = capacity_s
            schedule[SCHEDULE_FLOOR_S] = floor_s
    return best >= 0


@compiled
def catch_up(worker: Floats, table: Floats, tiers: int, load: Floats, row: int, step_s: float) -> float:
    """Return seconds that decodes may need beyond their average share when a schedule of steps this long begins.

    Requests that are served in only some of the steps may all be due in the same ones.
    """
    seconds = worker[WORKER_PER_TOKEN_S]
    shortened = min(1.0, (step_s + worker[WORKER_PER_TOKEN_S]) / table[row, STEP_LENGTH_S])
    for tier in range(tiers):
        requests = load[tier]
        if requests > 0:
            cell = STEP_CELLS + CELL_COLUMNS * tier
            share = table[row, cell + CELL_SHARE]
            per_context_s = table[row, cell + CELL_CONTEXT_COST_S] + table[row, cell + CELL_MEMORY_COST_S]
            once_s = (requests * table[row, cell + CELL_COST_S] + load[tiers + tier] * per_context_s) / share
            seconds += once_s * (1 - share * shortened)
    return float(seconds)


@compiled
def idle_share(worker: Floats, table: Floats, tiers: int, load: Floats) -> float:
    """Return the share of time that decodes leave if a step may hold any number of tokens; 0 if they do not fit."""
    most = 0.0
    for row in range(int(worker[WORKER_STEP_ROWS])):
        base_s, capacity_s, floor_s = step_of(worker, table, tiers, load, row)
        length_s = table[row, STEP_LENGTH_S]
        if capacity_s >= 0 and length_s < np.inf:
            most = max(most, 1 - max(base_s, floor_s) / length_s)
    return most


@compiled
def shortest_step(worker: Floats, table: Floats, tiers: int, load: Floats) -> float:
    """Return the longest that a step without prefill lasts, in seconds, where steps are as short as decodes allow."""
    shortest_s = np.inf
    for row in range(int(worker[WORKER_STEP_ROWS])):
        base_s, capacity_s, floor_s = step_of(worker, table, tiers, load, row)
        if capacity_s >= 0:
            step_s = max(base_s + capacity_s, floor_s)
            lasts_s = max(base_s, floor_s) + catch_up(worker, table, tiers, load, row, step_s)
            shortest_s = min(shortest_s, lasts_s, table[row, STEP_LENGTH_S])
    return float(shortest_s)
