"""Counts how many jobs one machine can finish in time at most, if it may interrupt jobs and parts of jobs count.

The sets of work that such a machine finishes in time form a polymatroid, on which the greedy choice, cheapest job
first, keeps most. Two ways to count: exactly, which takes time in proportion to the square of the jobs, and so is done
in parts; and on a grid of times, which is looser at short times and takes all jobs together.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numba  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TOGETHER = 1000
"""Number of jobs that are counted exactly together: the time for it grows with their square."""
SLOTS = 400
"""Number of times of the grid; the time for it grows with their square."""
_HALVINGS = 12
"""Bisections of the share of a job that still fits: shares are exact to 1 / 4096, rounded up."""
_ROUNDING_S = 1e-9
"""Seconds by which a job may be late in floating point."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """Jobs as three arrays of shape [jobs], in order of release: release times, due times and work, all in seconds."""

    release_s: Floats
    due_s: Floats
    work_s: Floats

    def part(self, at: int) -> Jobs:
        """Return `TOGETHER` jobs from index `at` on."""
        these = slice(at, at + TOGETHER)
        return Jobs(self.release_s[these], self.due_s[these], self.work_s[these])


def most_in_bursts(*counts: Jobs) -> float:
    """Return how many jobs can be done, counted exactly for each `TOGETHER` that come one after the other.

    Each part is looked at as if it had the machine to itself, which makes none of its jobs harder to do.

    Args:
        counts: the same jobs with different due times or work; the smallest count of each part is taken.
    """
    jobs = len(counts[0].release_s)
    return sum(min(_exactly(count.part(at)) for count in counts) for at in range(0, jobs, TOGETHER))


def most_on_grid(jobs: Jobs) -> float:
    """Return how many jobs can be done together on a grid of `SLOTS` times: releases are rounded down, due times up."""
    begin_s = float(jobs.release_s[0])
    finite = jobs.due_s[np.isfinite(jobs.due_s)]
    if not len(finite):
        return float(len(jobs.due_s))
    slot_s = max((float(finite.max()) - begin_s) / SLOTS, _ROUNDING_S)
    first = np.minimum((jobs.release_s - begin_s) / slot_s, SLOTS).astype(np.int64)
    last = np.ceil(np.minimum((jobs.due_s - begin_s) / slot_s, SLOTS + 1.0)).astype(np.int64)
    return float(_on_grid(first, last, jobs.work_s, np.argsort(jobs.work_s, kind="stable"), slot_s))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _on_grid(first: Ints, last: Ints, work_s: Floats, by_work: Ints, slot_s: float) -> float:
    """Return the count of `most_on_grid`: a job may take what every interval around it leaves.

    The machine is in time if no interval has more work than time.

    Args:
        first, last: slots of release and due time, shape [jobs].
        work_s: shape [jobs].
        by_work: indices of the jobs, the cheapest first, shape [jobs].
    """
    left_s = np.empty((SLOTS + 1, SLOTS + 1))
    for begin in range(SLOTS + 1):
        for end in range(SLOTS + 1):
            left_s[begin, end] = (end - begin) * slot_s
    total = 0.0
    for job in by_work:
        if last[job] > SLOTS:
            total += 1.0
            continue
        least_s = work_s[job]
        for begin in range(first[job] + 1):
            for end in range(last[job], SLOTS + 1):
                least_s = min(least_s, left_s[begin, end])
        if least_s <= 0.0:
            continue
        total += least_s / work_s[job]
        for begin in range(first[job] + 1):
            for end in range(last[job], SLOTS + 1):
                left_s[begin, end] -= least_s
    return total


def _exactly(jobs: Jobs) -> float:
    by_work = np.argsort(jobs.work_s, kind="stable")
    by_release = np.argsort(jobs.release_s, kind="stable")
    return float(_greedy(jobs.release_s, jobs.due_s, jobs.work_s, by_work, by_release))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _greedy(
    release_s: Floats,
    due_s: Floats,
    work_s: Floats,
    by_work: Ints,
    by_release: Ints,
) -> float:
    """Return the greedy count: the cheapest job first, each as far as all taken before stay in time.

    Args:
        release_s, due_s, work_s: shape [jobs].
        by_work, by_release: indices of the jobs in these orders, shape [jobs].
    """
    taken_s = np.zeros_like(work_s)
    total = 0.0
    for job in by_work:
        taken_s[job] = work_s[job]
        if _feasible(release_s, due_s, taken_s, by_release):
            total += 1.0
            continue
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            share = (low + high) / 2
            taken_s[job] = share * work_s[job]
            if _feasible(release_s, due_s, taken_s, by_release):
                low = share
            else:
                high = share
        taken_s[job] = low * work_s[job]
        total += high
    return total


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _feasible(release_s: Floats, due_s: Floats, work_s: Floats, by_release: Ints) -> bool:
    """Return whether earliest deadline first does all this work in time, which it does if anything can."""
    heap = [(np.inf, -1)]
    left_s = work_s.copy()
    now_s = 0.0
    count = len(by_release)
    following = 0
    while True:
        while following < count and (release_s[by_release[following]] <= now_s or len(heap) == 1):
            job = by_release[following]
            if left_s[job] > 0.0:
                if len(heap) == 1:
                    now_s = max(now_s, release_s[job])
                heapq.heappush(heap, (due_s[job], job))
            following += 1
        if len(heap) == 1:
            return True
        due, job = heap[0]
        until_s = now_s + left_s[job]
        if following < count and release_s[by_release[following]] < until_s:
            at_s = release_s[by_release[following]]
            left_s[job] -= at_s - now_s
            now_s = at_s
            if now_s > due + _ROUNDING_S:
                return False
            continue
        now_s = until_s
        if now_s > due + _ROUNDING_S:
            return False
        heapq.heappop(heap)
