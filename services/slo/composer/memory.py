"""KV blocks and places among the running, as one step hands them out."""

from __future__ import annotations

from collections.abc import Container, Sequence

from services.slo.composer.request_queues import RequestQueues
from services.slo.composer.step import Limits, SchedulableRequest


class Memory:
    """What is free, who takes it, and who gives up KV for it.

    A prefill is let in only if there are blocks for all of it; those that it does not hold yet are reserved. Promised
    work may take what best effort holds: the last come give way first. A promised stream without a block may also take
    that of promises due later, because otherwise all might wait for each other.
    """

    def __init__(self, queues: RequestQueues, free_blocks: int, limits: Limits) -> None:
        self.preempted: list[SchedulableRequest] = []
        self._unheld_blocks = free_blocks
        self._free_blocks = free_blocks - queues.reserved_blocks
        self._free_slots = limits.max_running_requests - queues.running
        self._block_tokens = limits.block_tokens
        self._best_effort = queues.best_effort
        self._taken: dict[str, int] = {}
        self._victims: list[SchedulableRequest] | None = None
        self._evictable: int | None = None
        """Blocks of all victims; None if unknown."""

    def take(self, work: SchedulableRequest, tokens: int, victims: Sequence[SchedulableRequest] = ()) -> bool:
        """Blocks for the next tokens of a running stream; nothing is taken, and nobody preempted, if there are too few.

        Args:
            victims: give up their KV if need be, the last one first. `work` must not be among them.
        """
        blocks = self._missing_blocks(work, tokens)
        if blocks > 0:
            if self._free_blocks + sum(map(self._freed_by, victims)) < blocks:
                return False
            for victim in reversed(victims):
                if blocks <= self._free_blocks:
                    break
                self._preempt(victim)
            self._free_blocks -= blocks
            self._note_taken(work, blocks)
        return True

    def take_all(self, works: Sequence[SchedulableRequest]) -> bool:
        """A block for the next token of each of these streams, which lack one; False, and nothing taken, if there are
        not enough.
        """
        if sum([self._missing_blocks(w, 1) for w in works]) > self._free_blocks:
            return False
        return all(self.take(w, 1) for w in works)

    def has_blocks(self, works: Sequence[SchedulableRequest]) -> bool:
        """Whether each of these streams has a block for its next token already."""
        block_tokens = self._block_tokens
        return not any(w.computed_tokens >= w.held_blocks * block_tokens for w in works)

    def fits(self, streams: Sequence[SchedulableRequest], waiting: Sequence[SchedulableRequest]) -> bool:
        """Whether there are blocks for the next tokens of these streams, and for all of what waits, free of anyone."""
        needed = sum([self._missing_blocks(w, 1) for w in streams])
        if waiting:
            needed += sum([self._missing_blocks(w, w.pending_tokens) for w in waiting])
        return needed <= self._free_blocks and len(waiting) <= self._free_slots

    def take_drafts(self, works: Sequence[SchedulableRequest]) -> bool:
        """Blocks for the drafts of all of these; False, and nothing taken, if there are not enough."""
        size = self._block_tokens
        lacking = [w for w in works if (w.computed_tokens + w.draft_tokens) // size >= w.held_blocks]
        if sum([self._missing_blocks(w, 1 + w.draft_tokens) for w in lacking]) > self._free_blocks:
            return False
        return all(self.take(w, 1 + w.draft_tokens) for w in lacking)

    def use_reserved(self, work: SchedulableRequest, tokens: int) -> int:
        """Blocks that are reserved for a running prefill; returns for how many of these tokens there are some."""
        blocks = self._missing_blocks(work, tokens)
        if blocks > self._unheld_blocks:
            tokens = (work.held_blocks + max(0, self._unheld_blocks)) * self._block_tokens - work.computed_tokens
            blocks = self._missing_blocks(work, tokens)
        self._note_taken(work, blocks)
        return max(0, tokens)

    def admit(self, work: SchedulableRequest) -> bool:
        """A place and blocks for all its pending tokens, if they are free."""
        blocks = self._missing_blocks(work, work.pending_tokens)
        if self._free_slots < 1 or blocks > self._free_blocks:
            return False
        self._free_slots -= 1
        self._free_blocks -= blocks
        self._note_taken(work, blocks)
        return True

    def admit_promised(self, work: SchedulableRequest) -> bool:
        """The same, from best effort if need be; nobody is preempted for an admission that fails."""
        if self.admit(work):
            return True
        if not self.can_admit_promised(work):
            return False
        while not self.admit(work):
            self._preempt(self.best_effort()[-1])
        return True

    def can_admit_promised(self, work: SchedulableRequest) -> bool:
        """Whether `admit_promised` would succeed."""
        if self._free_slots >= 1 and self._free_blocks >= self._missing_blocks(work, work.pending_tokens):
            return True
        victims = self.best_effort()
        if self._evictable is None:
            self._evictable = sum(map(self._freed_by, victims))
        blocks = self._free_blocks + self._evictable
        return self._free_slots + len(victims) >= 1 and blocks >= self._missing_blocks(work, work.pending_tokens)

    def best_effort(self) -> list[SchedulableRequest]:
        """Best effort that can give up its KV: the first to do so is last."""
        if self._victims is None:
            gone = set(map(id, self.preempted))
            self._victims = sorted(
                (w for w in self._best_effort if _is_preemptible(w) and id(w) not in gone), key=_seniority
            )
        return self._victims

    def later_best_effort(self, work: SchedulableRequest, served: Container[str]) -> list[SchedulableRequest]:
        """Of the best effort that can give up its KV, what came after `work` and is not in the step."""
        own = _seniority(work)
        return [other for other in self.best_effort() if _seniority(other) > own and other.request_id not in served]

    def _missing_blocks(self, work: SchedulableRequest, tokens: int) -> int:
        """Blocks that it needs for its next tokens besides those it has."""
        needed = -(-(work.computed_tokens + tokens) // self._block_tokens) - work.held_blocks
        if needed > 0 and self._taken:
            needed -= self._taken.get(work.request_id, 0)
        return max(0, needed)

    def _note_taken(self, work: SchedulableRequest, blocks: int) -> None:
        if blocks:
            self._unheld_blocks -= blocks
            self._evictable = None
            self._taken[work.request_id] = self._taken.get(work.request_id, 0) + blocks

    def _preempt(self, victim: SchedulableRequest) -> None:
        self._free_blocks += self._freed_by(victim)
        self._unheld_blocks += victim.held_blocks + self._taken.pop(victim.request_id, 0)
        self._free_slots += 1
        self.preempted.append(victim)
        self._evictable = None
        if self._victims is not None:
            self._victims = [w for w in self._victims if w is not victim]

    def _freed_by(self, victim: SchedulableRequest) -> int:
        """Blocks that it has or that are reserved for it."""
        blocks = victim.held_blocks + self._taken.get(victim.request_id, 0)
        return blocks if victim.pending_tokens == 1 else blocks + self._missing_blocks(victim, victim.pending_tokens)


def _is_preemptible(work: SchedulableRequest) -> bool:
    return work.running and not work.pinned


def _seniority(work: SchedulableRequest) -> tuple[float, int, str]:
    """The last come is preempted first; of those that came together, the one with least to lose."""
    return (work.waiting_since_s, -work.computed_tokens, work.request_id)
