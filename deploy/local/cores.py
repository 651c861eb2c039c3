"""Assignment of CPU cores to engines."""

from __future__ import annotations

from collections.abc import Sequence


def assign_cores(workers: int, cores: Sequence[int]) -> list[tuple[int, ...]]:
    """Split the cores among the workers. With fewer cores than workers, several workers share a core.

    Two engines on the same cores slow each other down by more than half, so each gets its own as far as they go.
    """
    if workers >= len(cores):
        return [(cores[index % len(cores)],) for index in range(workers)]
    share, extra = divmod(len(cores), workers)
    assigned, start = [], 0
    for index in range(workers):
        end = start + share + (index < extra)
        assigned.append(tuple(cores[start:end]))
        start = end
    return assigned
