"""Small loops on arrays. numpy's own expressions do the same, at tenths of a second of compile time each."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.compiled import Floats, Integers, compiled


@compiled
def copy_floats(source: Floats, target: Floats) -> None:
    for at in range(source.size):
        target[at] = source[at]


@compiled
def copy_pairs(source: Integers, target: Integers) -> None:
    for at in range(source.shape[0]):
        target[at, 0] = source[at, 0]
        target[at, 1] = source[at, 1]


@compiled
def falling(values: Floats, size: int) -> Integers:
    """Indexes of the first `size` values, largest first; equal ones stay in order."""
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
