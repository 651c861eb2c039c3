"""Where a router process stands among those that share its port."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessRank:
    """One of several; by default a router that is alone."""

    process: int = 1
    """From 1; one that is started again keeps its number."""
    processes: int = 1

    @property
    def shares_port(self) -> bool:
        return self.processes > 1


ALONE = ProcessRank()
