"""One request's time as bars of text: its phases, and the moments at which tokens were due and came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BAR, EMPTY, DUE, CAME, BEYOND = "█", " ", "┊", "▼", "▸"
FAR = 1.5
"""Multiple of the time that a request took beyond which what was due is not drawn to scale, lest all else shrink."""
LEAST_WIDTH = 20
"""Columns that bars take at least, however narrow the terminal."""


@dataclass(frozen=True, slots=True)
class Stay:
    """A stay in a phase. Times count from the arrival of the request, in seconds."""

    phase: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment that is marked: when something was due, or came."""

    name: str
    at_s: float
    due: bool
    """True if it is when something was due; then a line through the bars marks it."""


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.0f} ms" if abs(seconds) >= 0.01 or seconds == 0 else f"{seconds * 1e3:.1f} ms"


def timeline(stays: Sequence[Stay], moments: Sequence[Moment], columns: int) -> list[str]:
    """Return one line for each phase, in the order in which they were entered first, and one for each moment.

    All share one axis from the arrival to whatever was last; what was due long after that is only pointed to. Every
    phase has a bar of one column at least.

    Args:
        columns: width of the lines.
    """
    last_s = max([stay.to_s for stay in stays] + [moment.at_s for moment in moments if not moment.due], default=0.0)
    if last_s <= 0:
        return []
    end_s = max([last_s, *(moment.at_s for moment in moments if moment.at_s <= FAR * last_s)])
    phases = list(dict.fromkeys(stay.phase for stay in stays))
    names = max(len(name) for name in (*phases, *(moment.name for moment in moments)))
    figures = 10
    width = max(LEAST_WIDTH, columns - names - figures - 4)
    due = {_column(moment.at_s, end_s, width) for moment in moments if moment.due and moment.at_s <= end_s}
    lines = []
    for phase in phases:
        own = [stay for stay in stays if stay.phase == phase]
        cells = [DUE if column in due else EMPTY for column in range(width)]
        for stay in own:
            first = _column(stay.from_s, end_s, width)
            last = max(first + 1, round(stay.to_s / end_s * width))
            cells[first:last] = BAR * (min(last, width) - first)
        spent = duration(sum(stay.to_s - stay.from_s for stay in own))
        lines.append(f"{phase:<{names}}  {''.join(cells)}  {spent:>{figures}}".rstrip())
    for moment in sorted(moments, key=lambda one: one.at_s):
        column = _column(moment.at_s, end_s, width)
        cells = [DUE if other in due else EMPTY for other in range(width)]
        cells[column] = BEYOND if moment.at_s > end_s else DUE if moment.due else CAME
        lines.append(f"{moment.name:<{names}}  {''.join(cells)}  {duration(moment.at_s):>{figures}}")
    return lines


def _column(at_s: float, end_s: float, width: int) -> int:
    # The quotient is infinite if all that is drawn took next to no time.
    return min(width - 1, int(min(1.0, max(0.0, at_s / end_s)) * width))
