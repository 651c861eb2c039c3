"""Which workers are looked at for each candidate: a few, drawn evenly and by seed, however many there are."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.compiled import Floats, Integers, compiled, entry

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@compiled
def _mixed(number: np.uint64) -> np.uint64:
    number = (number ^ (number >> np.uint64(30))) * _MIX_1
    number = (number ^ (number >> np.uint64(27))) * _MIX_2
    return np.uint64(number ^ (number >> np.uint64(31)))


@compiled
def draw(population: int, wanted: int, seed: int, row: Integers, fixed: int) -> None:
    """Fill `row` with up to `wanted` different indexes below `population`; the first `fixed` entries stay."""
    for at in range(fixed, row.size):
        row[at] = -1
    size = fixed
    state = np.uint64(seed) * _GOLDEN + _GOLDEN
    if population <= row.size:
        start = int(np.int64(_mixed(state) % np.uint64(max(1, population))))
        for step in range(population):
            index = (start + step) % population
            if size < row.size and not _contains(row, fixed, index):
                row[size] = index
                size += 1
        return
    while size < min(row.size, fixed + wanted):
        state += _GOLDEN
        drawn = int(np.int64(_mixed(state) % np.uint64(population)))
        if not _contains(row, size, drawn):
            row[size] = drawn
            size += 1


@compiled
def _contains(row: Integers, size: int, index: int) -> bool:
    found = False
    for at in range(size):
        found = found or row[at] == index
    return found


@entry
def draw_all(population: int, wanted: int, seed: int, rows: Integers, fixed: Integers) -> None:
    """`draw` for every candidate; `fixed[i]` entries of its row are set already."""
    for candidate in range(rows.shape[0]):
        draw(population, wanted, seed * 1_000_003 + candidate, rows[candidate], fixed[candidate])


@entry
def transfer_times(tokens: Floats, latency_s: float, s_per_token: float, into: Floats) -> None:
    for candidate in range(into.shape[0]):
        seconds = latency_s + tokens[candidate] * s_per_token
        for lane in range(into.shape[1]):
            for decoder in range(into.shape[2]):
                into[candidate, lane, decoder] = seconds
