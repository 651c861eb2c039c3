"""The count of what was promised, kept and in time among requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cli.demo.streams import Served


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of requests."""

    total: int
    complete: int
    """Requests whose stream came to its natural end."""
    promised: int
    kept: int
    """Promised requests whose every token came in time."""
    in_time: int
    """Requests within their targets, promised or not."""

    @property
    def missed(self) -> int:
        """Return the number of promises that were not kept."""
        return self.promised - self.kept


def tally(served: Sequence[Served]) -> Tally:
    """Count requests."""
    promised = [request for request in served if request.promised]
    return Tally(
        total=len(served),
        complete=sum(request.achieved is not None for request in served),
        promised=len(promised),
        kept=sum(request.in_time for request in promised),
        in_time=sum(request.in_time for request in served),
    )
