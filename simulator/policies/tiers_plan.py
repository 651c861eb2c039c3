"""The planner of the SLOs-Serve paper: what a batch can hold beside decodes of several tiers, and whom to accept.

Written from descriptions of paper and code (arXiv 2504.08784): tiers from slack, dynamic programming over deadlines,
one acceptance rate. Kinder to it than the original: the mean step time is known exactly, contexts count, budgets are
not rounded to batches, and the two faults of its dominance test are absent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.machine import Machine

MARGIN_S = 1e-3
"""Seconds taken off every TPOT, as the original does."""
EXTRA_TIER_S = 0.1
"""Seconds by which one more tier is slower than the slowest, for requests that are far ahead."""
MOST_TOKENS = 16_384
"""Greatest number of tokens of a batch."""
ALONE_S = 0.2
"""Seconds that a batch without decodes may take."""


@dataclass(frozen=True, slots=True)
class Item:
    """A prefill to plan, of a new request or of one accepted before."""

    due_s: float
    """Seconds from now until its first token is due."""
    tokens: int
    blocks: int
    tier: int
    new: bool
    index: int = -1
    """Index among the new requests; -1 for one accepted before."""


@dataclass(slots=True)
class TierBudget:
    """The prompt tokens per second that fit beside decodes, by how many decodes there are of each tier."""

    machine: Machine
    tpots_s: tuple[float, ...]
    context_tokens: int = 0
    """Context of all decodes together."""
    _rates: dict[tuple[int, ...], float] = field(default_factory=dict)
    lengths: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    """Tokens of each tier that a step verifies, by the number of decodes of each tier."""

    @classmethod
    def of(cls, machine: Machine, tpots_s: Sequence[float], context_tokens: int) -> TierBudget:
        """Return the budget of a machine for a scenario's TPOT targets, in seconds, ascending."""
        tiers = [tpot_s - MARGIN_S for tpot_s in tpots_s]
        return cls(machine, (*tiers, tiers[-1] + EXTRA_TIER_S), context_tokens)

    def rate(self, counts: tuple[int, ...]) -> float:
        """Return the prompt tokens per second beside these decodes; negative if not even the decodes are in time.

        Args:
            counts: number of decodes of each tier.
        """
        known = self._rates.get(counts)
        if known is None:
            known = self._rates[counts] = self._best(counts)
        return known

    def tier(self, slack_s: float) -> int:
        """Return the slowest tier that the slack allows, the fastest if it allows none."""
        return max((tier for tier, tpot_s in enumerate(self.tpots_s) if tpot_s <= slack_s), default=0)

    def _tokens_in(self, seconds: float, drafts: int, requests: int) -> float:
        c = self.machine.truth.vector
        compute = (seconds - c[0] - c[2] * requests - c[3] * self.context_tokens - c[5] * drafts) / c[1]
        memory_s = seconds - c[6] - c[8] * requests - c[9] * self.context_tokens - c[11] * drafts
        memory = memory_s / c[7] if c[7] > 0 else (math.inf if memory_s >= 0 else -1.0)
        return min(compute, memory, MOST_TOKENS)

    def _best(self, counts: tuple[int, ...]) -> float:
        present = [tier for tier, count in enumerate(counts) if count]
        requests = sum(counts)
        if not present:
            return self._tokens_in(ALONE_S, 0, 1) / ALONE_S
        step_s = self.tpots_s[present[0]]
        decodes = sum(counts[tier] * step_s / self.tpots_s[tier] for tier in present)
        best = (self._tokens_in(step_s, 0, requests) - decodes) / step_s
        lengths = tuple(1 for _ in counts)
        if self.machine.max_draft_tokens:
            for binding, length in itertools.product(present, range(2, self.machine.max_draft_tokens + 2)):
                found = self._speculative(counts, present, binding, length)
                if found is not None and found[0] > best:
                    best, lengths = found
        self.lengths[counts] = lengths
        return best

    def _speculative(
        self, counts: tuple[int, ...], present: Sequence[int], binding: int, length: int
    ) -> tuple[float, tuple[int, ...]] | None:
        """Return budget and verification lengths if one tier verifies `length` tokens and sets the length of the step.

        The others verify as few as are in time then; None if a tier cannot be.
        """
        step_s = self.tpots_s[binding] * math.floor(self._accepted(length))
        lengths = [1] * len(counts)
        for tier in present:
            while lengths[tier] <= self.machine.max_draft_tokens and (
                self.tpots_s[tier] * self._accepted(lengths[tier]) < step_s - 1e-12
            ):
                lengths[tier] += 1
            if lengths[tier] > self.machine.max_draft_tokens:
                return None
        verified = sum(counts[tier] * lengths[tier] for tier in present)
        room = self._tokens_in(step_s, max(lengths) - 1, sum(counts)) - verified
        return room / step_s, tuple(lengths)

    def _accepted(self, length: int) -> float:
        alpha = self.machine.acceptance
        return (1 - alpha**length) / (1 - alpha)


@dataclass(frozen=True, slots=True)
class _State:
    value: int
    left: float
    """Prompt tokens that the budget allows and nobody uses."""
    blocks: int
    taken: tuple[int, ...]


def accept(
    items: Sequence[Item], running: Sequence[int], free_blocks: int, budget: TierBudget
) -> tuple[int, ...] | None:
    """Choose as many new requests as can be kept beside those accepted before.

    Args:
        running: number of decodes of each tier.

    Returns:
        The indices of the new requests to accept; None if not even those accepted before can be kept.
    """
    states: dict[tuple[int, ...], list[_State]] = {tuple(running): [_State(0, 0.0, 0, ())]}
    now_s = 0.0
    for item in sorted(items, key=lambda item: item.due_s):
        elapsed_s, now_s = max(0.0, item.due_s - now_s), max(now_s, item.due_s)
        following: dict[tuple[int, ...], list[_State]] = {}
        for counts, cell in states.items():
            gained = max(0.0, budget.rate(counts)) * elapsed_s
            more = tuple(count + (tier == item.tier) for tier, count in enumerate(counts))
            sustained = not item.new or budget.rate(more) >= 0
            for state in cell:
                left = state.left + gained
                if item.new:
                    _keep(following.setdefault(counts, []), _State(state.value, left, state.blocks, state.taken))
                blocks = state.blocks + item.blocks * item.new
                if sustained and left >= item.tokens and blocks <= free_blocks:
                    taken = (*state.taken, item.index) if item.new else state.taken
                    _keep(
                        following.setdefault(more, []),
                        _State(state.value + item.new, left - item.tokens, blocks, taken),
                    )
        states = following
        if not states:
            return None
    return max((state for cell in states.values() for state in cell), key=lambda state: state.value).taken


def _keep(cell: list[_State], state: _State) -> None:
    """Add a state to a cell unless another dominates it, and drop those that it dominates."""
    for other in cell:
        if other.value >= state.value and other.left >= state.left and other.blocks <= state.blocks:
            return
    cell[:] = [
        other
        for other in cell
        if not (state.value >= other.value and state.left >= other.left and state.blocks <= other.blocks)
    ]
    cell.append(state)
