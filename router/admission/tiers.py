"""The rates that the planner tells apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.slo.planner import Tiers
from services.slo.planner.worker_profile import MAX_TIERS

NO_PROMISE_S = 1e3
"""The only tier when nobody asks for a rate."""


def tiers_of(tpots_s: Iterable[float]) -> Tiers:
    """At most `MAX_TIERS` tiers for these TPOTs; with more, neighbours share the tighter one's."""
    distinct = sorted(set(tpots_s)) or [NO_PROMISE_S]
    stride = -(-len(distinct) // MAX_TIERS)
    return Tiers(tuple(distinct[::stride]))


def tier_of(tpot_s: float | None, tiers: Tiers) -> int:
    """The loosest tier that keeps a TPOT; -1 without one.

    Raises:
        ValueError: every tier is looser.
    """
    if tpot_s is None:
        return -1
    return max(index for index, tier_s in enumerate(tiers.tpot_s) if tier_s <= tpot_s)


@dataclass(slots=True)
class TierBook:
    """Keeps the tiers of one round for the next while they serve, because step tables are made for them."""

    _tiers: Tiers = field(default_factory=lambda: tiers_of(()))
    _told_apart: set[float] = field(default_factory=set)
    """What the tiers were made for."""

    @property
    def tiers(self) -> Tiers:
        return self._tiers

    def cover(self, tpots_s: Iterable[float]) -> bool:
        """Whether the tiers tell all these TPOTs apart, as far as `MAX_TIERS` allow."""
        return self._told_apart.issuperset(tpots_s)

    def covering(self, tpots_s: Iterable[float]) -> Tiers:
        """Tiers that tell all these TPOTs apart, as far as `MAX_TIERS` allow."""
        wanted = set(tpots_s)
        if not self.cover(wanted):
            both = wanted | self._told_apart
            self._told_apart = both if len(both) <= MAX_TIERS else wanted
            self._tiers = tiers_of(self._told_apart)
        return self._tiers
