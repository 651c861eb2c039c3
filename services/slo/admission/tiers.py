"""The TPOTs that a planning round tells apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.slo.planner import Tiers
from services.slo.planner.worker_profile import MAX_TIERS

NO_PROMISE_S = 1e3
"""The TPOT of the only tier when nobody asks for one: longer than any step."""


def tiers_of(tpots_s: Iterable[float], draft_tokens: int = 0, draft_acceptance: float = 0.0) -> Tiers:
    """Return at most `MAX_TIERS` tiers for these TPOTs; with more, neighbours share the tighter one's."""
    distinct = sorted(set(tpots_s)) or [NO_PROMISE_S]
    stride = -(-len(distinct) // MAX_TIERS)
    tpots = tuple(distinct[::stride])
    return Tiers(tpots, (draft_acceptance,) * len(tpots) if draft_tokens else (), draft_tokens)


def tier_of(tpot_s: float | None, tiers: Tiers) -> int:
    """Return the loosest tier that keeps a TPOT; -1 without a TPOT.

    Raises:
        ValueError: every tier is looser.
    """
    if tpot_s is None:
        return -1
    return max(index for index, tier_s in enumerate(tiers.tpot_s) if tier_s <= tpot_s)


@dataclass(slots=True)
class TierBook:
    """Keeps the tiers of one round for the next as long as they serve, because step tables are made for them."""

    draft_tokens: int = 0
    draft_acceptance: float = 0.0
    _tiers: Tiers | None = None
    _told_apart: set[float] = field(default_factory=set)
    """The TPOTs that the tiers were made for."""

    @property
    def tiers(self) -> Tiers:
        """The tiers made last."""
        if self._tiers is None:
            self._tiers = tiers_of((), self.draft_tokens, self.draft_acceptance)
        return self._tiers

    def cover(self, tpots_s: Iterable[float]) -> bool:
        """Return whether the tiers tell all these TPOTs apart, as far as `MAX_TIERS` allow."""
        return self._told_apart.issuperset(tpots_s)

    def covering(self, tpots_s: Iterable[float]) -> Tiers:
        """Return tiers that tell all these TPOTs apart, as far as `MAX_TIERS` allow."""
        wanted = set(tpots_s)
        if not self.cover(wanted):
            both = wanted | self._told_apart
            self._told_apart = both if len(both) <= MAX_TIERS else wanted
            self._tiers = tiers_of(self._told_apart, self.draft_tokens, self.draft_acceptance)
        return self.tiers
