"""The most jobs that can be done in time, as a linear program that knows every interval (OR-tools' GLOP).

To be called in a process of its own, as `tests/unit/conftest.py` does: OR-tools and vLLM's libraries crash in one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.bound_counts import Jobs


def most_by_program(given: Jobs) -> float:
    """No interval has more work than time, of the work that can only be done within it."""
    from ortools.linear_solver import pywraplp  # type: ignore[import-untyped]

    solver = pywraplp.Solver.CreateSolver("GLOP")
    shares = [solver.NumVar(0.0, 1.0, "") for _ in given.work_s]
    rows = list(zip(given.release_s, given.due_s, given.work_s, shares, strict=True))
    for begin in sorted(set(given.release_s)):
        for end in sorted({due for due in given.due_s if due >= begin}):
            time = solver.Constraint(0.0, float(end - begin))
            for release, due, work, share in rows:
                if release >= begin and due <= end:
                    time.SetCoefficient(share, float(work))
    solver.Maximize(solver.Sum(shares))
    assert solver.Solve() == pywraplp.Solver.OPTIMAL
    return float(solver.Objective().Value())
