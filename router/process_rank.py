"""The rank of a router process among those that share its port."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessRank:
    """The number of a router process; by default it is alone."""

    process: int = 1
    """The number of this process, from 1; a process that is started again keeps its number."""
    processes: int = 1
    """Number of processes that share the port."""

    @property
    def shares_port(self) -> bool:
        return self.processes > 1


ALONE = ProcessRank()
