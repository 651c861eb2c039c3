"""The board of a round: every array that the compiled parts share, in one tuple."""

from __future__ import annotations

from typing import NamedTuple

from services.slo.planner.kernels.compiled import Floats, Integers


class PlanState(NamedTuple):
    """Columns are named in `layout`. Rows of `jobs` are the promised prefills, then the candidates."""

    workers: Floats
    tables: Floats
    """Step table of each worker."""
    tpots: Floats
    jobs: Floats
    order: Integers
    """Jobs of each worker's lane by due time; the first `queued` of each row are in use."""
    queued: Integers
    lanes: Integers
    """Workers that may prefill each candidate, best guess first; -1 for none."""
    cached: Floats
    """Prompt tokens of the candidate that each of those has in its cache."""
    decoders: Integers
    """Workers that may decode each candidate, likewise."""
    handover_s: Floats
    """Transfer time of each candidate from each of its lanes to each of its decoders."""
    placed: Integers
    """Lane and decoder of each candidate; -1 while it has none."""
    settings: Floats
    """Number of promised prefills, limit of work, newcomers for which room is held."""
    spent: Floats
    """Work done so far, in prefills scheduled."""
    marks: Floats
    """Each lane's schedule before its first prefill, its second, and so on."""
    marked: Integers
    """How many prefills of each lane the marks cover; negative: not even its start."""
    state: Floats
    """Scratch: a lane's schedule."""
    scratch: Floats
    cost: Floats
    """Scratch: what a decode costs."""


COMMITTED = 0
WORK_LIMIT = 1
NEWCOMERS = 2
SETTINGS = 3
