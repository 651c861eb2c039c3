"""The step lengths worth trying on a worker, and what each tier of decodes costs in a step of that length.

With draft length s a tier gets Acc(s) = (1 - alpha^(s+1)) / (1 - alpha) tokens from a step that serves it, on average;
a step may last up to tpot times the part of them that is counted on. For a given step length the fewest drafts that
suffice are cheapest, and only lengths at which some tier needs one more draft can be best: tiers * (drafts + 1) of
them, and the longest step allowed.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.compiled import Floats, compiled, entry
from services.slo.planner.kernels.layout import (
    BASE,
    CONTEXT_COST,
    COST,
    DRAFT,
    FLOOR,
    MAX_TOKENS,
    MEMORY,
    MEMORY_COST,
    MEMORY_PER_CONTEXT,
    MEMORY_PER_WORK,
    OVERHEAD,
    PER_CONTEXT,
    PER_DRAFT,
    PER_REQUEST,
    PER_TIER,
    PER_TOKEN,
    ROOM,
    ROW,
    ROWS,
    SHARE,
    TOKENS,
)

_TOLERANCE = 1e-9
_NEIGHBOURS = 1


@entry
def accepted_tokens(alpha: float, drafts: int) -> float:
    """Tokens expected from a step with this many drafts, the one that the model itself adds included."""
    expected = 1.0
    power = 1.0
    for _ in range(drafts):
        power *= alpha
        expected += power
    return expected


COUNTED: Final = 0.75
"""Of the tokens that drafts bring on average, what is counted on. The composer keeps every token's due time: a stream
that had no luck, or has just come, makes the steps of all shorter."""


@entry
def counted_tokens(alpha: float, drafts: int) -> float:
    """Times its TPOT that a tier's steps may last on average."""
    return 1.0 + COUNTED * (accepted_tokens(alpha, drafts) - 1.0)


@entry
def build_step_table(terms: Floats, tpots: Floats, alphas: Floats, max_draft: int, max_step_s: float) -> Floats:
    """One row for every step length worth trying, ascending.

    Args:
        terms: of `StepBound`.
    """
    tiers = tpots.size
    lengths = np.empty(tiers * (max_draft + 1) + 1)
    lengths[-1] = max_step_s
    for tier in range(tiers):
        for drafts in range(max_draft + 1):
            length = tpots[tier] * counted_tokens(alphas[tier], drafts)
            lengths[tier * (max_draft + 1) + drafts] = min(max_step_s, length)
    lengths.sort()
    table = np.zeros((lengths.size, 1 + PER_TIER * tiers))
    rows = 0
    for index in range(lengths.size):
        length = lengths[index]
        if rows and length <= table[rows - 1, 0] * (1 + _TOLERANCE):
            continue
        table[rows, 0] = length
        for tier in range(tiers):
            _fill_tier(
                table[rows, 1 + PER_TIER * tier : 1 + PER_TIER * (tier + 1)],
                length,
                terms,
                tpots[tier],
                alphas[tier],
                max_draft,
            )
        rows += 1
    return table[:rows]


@compiled
def _fill_tier(cells: Floats, length: float, terms: Floats, tpot_s: float, alpha: float, max_draft: int) -> None:
    cells[DRAFT] = -1.0
    for drafts in range(max_draft + 1):
        reach_s = tpot_s * counted_tokens(alpha, drafts)
        if reach_s * (1 + _TOLERANCE) >= length:
            share = min(1.0, length / reach_s)
            cells[DRAFT] = drafts
            cells[SHARE] = share
            cells[TOKENS] = share * (1 + drafts)
            cells[COST] = share * ((1 + drafts) * terms[PER_TOKEN - OVERHEAD] + terms[PER_REQUEST - OVERHEAD])
            cells[CONTEXT_COST] = share * terms[PER_CONTEXT - OVERHEAD]
            cells[MEMORY_COST] = share * terms[MEMORY_PER_CONTEXT - OVERHEAD]
            return


@compiled
def step_of(worker: Floats, table: Floats, tiers: int, held: Floats, row: int) -> tuple[float, float, float]:
    """A step of the length in `row` that serves the decodes counted in `held`: of each tier, then their context tokens.

    Returns:
        What it costs before any prefill, its room for prefill work, and the least it can last, in seconds. The room is
        negative if the decodes do not fit.
    """
    length = table[row, 0]
    serving = 0.0
    reading = 0.0
    tokens = 0.0
    drafts = 0.0
    for tier in range(tiers):
        requests = held[tier]
        if requests > 0:
            cell = 1 + PER_TIER * tier
            if table[row, cell + DRAFT] < 0:
                return 0.0, -1.0, 0.0
            context = held[tiers + tier]
            serving += requests * table[row, cell + COST] + context * table[row, cell + CONTEXT_COST]
            reading += context * table[row, cell + MEMORY_COST]
            tokens += requests * table[row, cell + TOKENS]
            drafts = max(drafts, table[row, cell + DRAFT])
    fixed = worker[OVERHEAD] + drafts * worker[PER_DRAFT]
    per_token = worker[PER_TOKEN]
    # A step takes whole tokens: up to one token's time of its room stays empty.
    base = fixed + worker[PER_REQUEST] + serving
    room = length - base - per_token
    most_tokens = worker[MAX_TOKENS] - 1
    if room > per_token * (most_tokens - tokens):
        # Full before it is as long as the decodes allow. Each of them then needs to be in fewer of the shorter steps.
        shortened = (fixed + worker[PER_REQUEST] + per_token * most_tokens) / (length - serving + per_token * tokens)
        shortened = min(1.0, shortened)
        base = fixed + worker[PER_REQUEST] + serving * shortened
        reading *= shortened
        room = per_token * (most_tokens - tokens * shortened)
        serving *= shortened
    per_work = worker[MEMORY_PER_WORK]
    floor = fixed + worker[MEMORY] + reading + per_work * (worker[PER_REQUEST] + serving)
    if per_work > 0:
        # The floor of a full step stands for that of any.
        room = min(room, (length - floor) / per_work)
        floor += per_work * max(0.0, room)
    if floor > length * (1 + _TOLERANCE):
        room = -1.0
    return base, room, floor


@compiled
def choose_step(worker: Floats, table: Floats, tiers: int, held: Floats, found: Floats) -> bool:
    """Find the step length that leaves the largest share of time to prefill.

    `found` gets ROW, BASE, ROOM and FLOOR; it stays as it was, and the result is False, if no length serves the
    decodes.
    """
    return _choose_among(worker, table, tiers, held, int(np.int64(0)), int(worker[ROWS]), found)


@compiled
def choose_near(worker: Floats, table: Floats, tiers: int, held: Floats, row: int, found: Floats) -> bool:
    """`choose_step` among the neighbours of a length that was best a few decodes ago, or among all if none will do."""
    low, high = max(0, row - _NEIGHBOURS), min(int(worker[ROWS]), row + _NEIGHBOURS + 1)
    if _choose_among(worker, table, tiers, held, low, high, found):
        return True
    return choose_step(worker, table, tiers, held, found)


@compiled
def _choose_among(worker: Floats, table: Floats, tiers: int, held: Floats, low: int, high: int, found: Floats) -> bool:
    best = -1.0
    for row in range(low, high):
        base, room, floor = step_of(worker, table, tiers, held, row)
        if room < 0:
            continue
        share = room / max(base + room, floor)
        if share > best:
            best = share
            found[ROW] = row
            found[BASE] = base
            found[ROOM] = room
            found[FLOOR] = floor
    return best >= 0


@compiled
def catch_up(worker: Floats, table: Floats, tiers: int, held: Floats, row: int, length: float) -> float:
    """Seconds that decodes may need beyond their average share when a schedule of steps this long begins.

    Requests that are served in only some of the steps may all be due in the same ones.
    """
    seconds = worker[PER_TOKEN]
    shortened = min(1.0, (length + worker[PER_TOKEN]) / table[row, 0])
    for tier in range(tiers):
        requests = held[tier]
        if requests > 0:
            cell = 1 + PER_TIER * tier
            share = table[row, cell + SHARE]
            reading = table[row, cell + CONTEXT_COST] + table[row, cell + MEMORY_COST]
            once = (requests * table[row, cell + COST] + held[tiers + tier] * reading) / share
            seconds += once * (1 - share * shortened)
    return float(seconds)


@compiled
def headroom(worker: Floats, table: Floats, tiers: int, held: Floats) -> float:
    """Share of time that decodes leave, were it not for the tokens that fit into a step; 0 if they do not fit."""
    most = 0.0
    for row in range(int(worker[ROWS])):
        base, room, floor = step_of(worker, table, tiers, held, row)
        if room >= 0 and table[row, 0] < np.inf:
            most = max(most, 1 - max(base, floor) / table[row, 0])
    return most


@compiled
def shortest_step(worker: Floats, table: Floats, tiers: int, held: Floats) -> float:
    """Longest a step without prefill has to last where steps are kept as short as the decodes allow."""
    shortest = np.inf
    for row in range(int(worker[ROWS])):
        base, room, floor = step_of(worker, table, tiers, held, row)
        if room >= 0:
            length = max(base + room, floor)
            lasts = max(base, floor) + catch_up(worker, table, tiers, held, row, length)
            shortest = min(shortest, lasts, table[row, 0])
    return float(shortest)
