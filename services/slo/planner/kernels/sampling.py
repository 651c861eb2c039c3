"""Which workers are looked at for each candidate: a few, drawn evenly and by seed, however many there are."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.compiled import Floats, Integers, compiled, entry

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
"""Constants of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
_SEED_STRIDE: Final = 1_000_003
"""Distance between the seeds of two candidates. Chosen: a prime far above the number of candidates in a round."""


@compiled
def _mixed(number: np.uint64) -> np.uint64:
    """Return SplitMix64's output for a state of its generator."""
    number = (number ^ (number >> np.uint64(30))) * _MIX_1
    number = (number ^ (number >> np.uint64(27))) * _MIX_2
    return np.uint64(number ^ (number >> np.uint64(31)))


@compiled
def draw(population: int, wanted: int, seed: int, row: Integers, fixed: int) -> None:
    """Fill `row` (n,) with up to `wanted` different indexes below `population`; the first `fixed` entries stay.

    Entries that are not filled become -1. All indexes are taken, from a drawn one on, if the row has a place for each.
    """
    for at in range(fixed, row.size):
        row[at] = -1
    size = fixed
    generator = np.uint64(seed) * _GOLDEN + _GOLDEN
    if population <= row.size:
        start = int(np.int64(_mixed(generator) % np.uint64(max(1, population))))
        for step in range(population):
            index = (start + step) % population
            if size < row.size and not _contains(row, fixed, index):
                row[size] = index
                size += 1
        return
    while size < min(row.size, fixed + wanted):
        generator += _GOLDEN
        drawn = int(np.int64(_mixed(generator) % np.uint64(population)))
        if not _contains(row, size, drawn):
            row[size] = drawn
            size += 1


@compiled
def _contains(row: Integers, size: int, index: int) -> bool:
    """Return whether the first `size` entries of `row` (n,) hold the index."""
    found = False
    for at in range(size):
        found = found or row[at] == index
    return found


@entry
def draw_all(population: int, wanted: int, seed: int, rows: Integers, fixed: Integers) -> None:
    """Call `draw` for every candidate's row of `rows` (C, n), each with a seed of its own.

    Args:
        fixed: (C,), number of entries of each row that are set already and stay.
    """
    for candidate in range(rows.shape[0]):
        draw(population, wanted, seed * _SEED_STRIDE + candidate, rows[candidate], fixed[candidate])


@entry
def transfer_times(tokens: Floats, latency_s: float, s_per_token: float, into: Floats) -> None:
    """Fill `into` (C, P, D) with the seconds that each candidate's KV cache takes between any two workers.

    Args:
        tokens: (C,), prompt tokens of each candidate.
    """
    for candidate in range(into.shape[0]):
        seconds = latency_s + tokens[candidate] * s_per_token
        for option in range(into.shape[1]):
            for other in range(into.shape[2]):
                into[candidate, option, other] = seconds
