"""Small loops on arrays. numpy's own expressions do the same, at tenths of a second of compile time each."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import PLACED_DECODER, PLACED_PREFILLER


@compiled
def copy_floats(source: Floats, target: Floats) -> None:
    """Copy `source` (n,) over `target`, which is at least as long."""
    for at in range(source.size):
        target[at] = source[at]


@compiled
def copy_placed(source: Integers, target: Integers) -> None:
    """Copy where every candidate runs, (C, PLACED_COLUMNS), from `source` over `target`."""
    for candidate in range(source.shape[0]):
        target[candidate, PLACED_PREFILLER] = source[candidate, PLACED_PREFILLER]
        target[candidate, PLACED_DECODER] = source[candidate, PLACED_DECODER]


@compiled
def sort(values: Floats) -> None:
    """Put the few values (n,) into ascending order, in place. numpy's own sort takes a second to compile."""
    for end in range(1, values.size):
        value = values[end]
        at = end
        while at > 0 and values[at - 1] > value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value


@compiled
def falling(values: Floats, size: int) -> Integers:
    """Return the indexes (size,) of the first `size` values, largest value first; equal ones stay in order."""
    order = np.empty(size, dtype=np.int64)
    other = np.empty(size, dtype=np.int64)
    for at in range(size):
        order[at] = at
    width = 1
    while width < size:
        for low in range(0, size, 2 * width):
            left, middle = low, min(low + width, size)
            right, high = middle, min(low + 2 * width, size)
            for at in range(low, high):
                if right >= high or (left < middle and values[order[left]] >= values[order[right]]):
                    other[at] = order[left]
                    left += 1
                else:
                    other[at] = order[right]
                    right += 1
        order, other = other, order
        width *= 2
    return order
