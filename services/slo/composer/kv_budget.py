"""The KV blocks and slots for running requests that one step can hand out."""

from __future__ import annotations

from collections.abc import Container, Sequence

from services.slo.composer.request_queues import RequestQueues
from services.slo.composer.step import Limits, SchedulableRequest
from services.slo.kv_blocks import blocks_for


class KvBudget:
    """Keeps account of free KV blocks and slots while a step is composed, and decides who is preempted for them.

    A prefill is admitted only if there are blocks for all of it; those that it does not hold yet are reserved. Promised
    work may take what best effort holds, from the latest arrivals first. A promised stream without a block may also
    take that of promises due later, because otherwise all might wait for each other.
    """

    def __init__(self, queues: RequestQueues, free_blocks: int, limits: Limits) -> None:
        """
        Args:
            free_blocks: blocks that no request holds.
        """
        self.preempted: list[SchedulableRequest] = []
        """Requests that give up their KV in this step, in this order."""
        self._unheld_blocks = free_blocks
        self._free_blocks = free_blocks - queues.reserved_blocks
        """Blocks that are neither held nor reserved; negative if more is reserved than there is."""
        self._free_slots = limits.max_running_requests - queues.running
        self._block_tokens = limits.block_tokens
        self._best_effort = queues.best_effort
        self._taken: dict[str, int] = {}
        """Blocks that each request got in this step."""
        self._victims: list[SchedulableRequest] | None = None
        self._evictable: int | None = None
        """Blocks that preempting all best effort would free; None until asked for."""

    def take(self, work: SchedulableRequest, tokens: int, victims: Sequence[SchedulableRequest] = ()) -> bool:
        """Take blocks for the next tokens of a running stream.

        Args:
            victims: requests to preempt if need be, the last one first. `work` must not be among them.

        Returns:
            False if there are too few blocks; then none is taken, and nobody preempted.
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
        """Take a block for the next token of each of these streams; return False, and take none, if they lack one."""
        if sum([self._missing_blocks(w, 1) for w in works]) > self._free_blocks:
            return False
        return all(self.take(w, 1) for w in works)

    def has_blocks(self, works: Sequence[SchedulableRequest]) -> bool:
        """Return whether each of these streams holds a block for its next token already."""
        block_tokens = self._block_tokens
        return not any(w.computed_tokens >= w.held_blocks * block_tokens for w in works)

    def fits(self, streams: Sequence[SchedulableRequest], waiting: Sequence[SchedulableRequest]) -> bool:
        """Return whether free blocks suffice for the streams' next tokens and for all of what waits, and slots for
        these.
        """
        needed = sum([self._missing_blocks(w, 1) for w in streams])
        if waiting:
            needed += sum([self._missing_blocks(w, w.pending_tokens) for w in waiting])
        return needed <= self._free_blocks and len(waiting) <= self._free_slots

    def take_drafts(self, works: Sequence[SchedulableRequest]) -> bool:
        """Take blocks for all drafts of these decodes; return False, and take none, if they are too few."""
        size = self._block_tokens
        lacking = [w for w in works if (w.computed_tokens + w.draft_tokens) // size >= w.held_blocks]
        if sum([self._missing_blocks(w, 1 + w.draft_tokens) for w in lacking]) > self._free_blocks:
            return False
        return all(self.take(w, 1 + w.draft_tokens) for w in lacking)

    def use_reserved(self, work: SchedulableRequest, tokens: int) -> int:
        """Take blocks that are reserved for a running prefill; return for how many of these tokens there are any."""
        blocks = self._missing_blocks(work, tokens)
        if blocks > self._unheld_blocks:
            tokens = (work.held_blocks + max(0, self._unheld_blocks)) * self._block_tokens - work.computed_tokens
            blocks = self._missing_blocks(work, tokens)
        self._note_taken(work, blocks)
        return max(0, tokens)

    def admit(self, work: SchedulableRequest) -> bool:
        """Take a slot, and blocks for all pending tokens of a waiting request; return False if they are not free."""
        blocks = self._missing_blocks(work, work.pending_tokens)
        if self._free_slots < 1 or blocks > self._free_blocks:
            return False
        self._free_slots -= 1
        self._free_blocks -= blocks
        self._note_taken(work, blocks)
        return True

    def admit_promised(self, work: SchedulableRequest) -> bool:
        """Admit a promised request, if need be by preempting best effort.

        Returns:
            False if even that is not enough; then nobody is preempted.
        """
        if self.admit(work):
            return True
        if not self.can_admit_promised(work):
            return False
        while not self.admit(work):
            self._preempt(self.best_effort()[-1])
        return True

    def can_admit_promised(self, work: SchedulableRequest) -> bool:
        """Return whether `admit_promised` would succeed."""
        if self._free_slots >= 1 and self._free_blocks >= self._missing_blocks(work, work.pending_tokens):
            return True
        victims = self.best_effort()
        if self._evictable is None:
            self._evictable = sum(map(self._freed_by, victims))
        blocks = self._free_blocks + self._evictable
        return self._free_slots + len(victims) >= 1 and blocks >= self._missing_blocks(work, work.pending_tokens)

    def best_effort(self) -> list[SchedulableRequest]:
        """Return the best effort that can be preempted; the last is preempted first."""
        if self._victims is None:
            gone = set(map(id, self.preempted))
            self._victims = sorted(
                (w for w in self._best_effort if _is_preemptible(w) and id(w) not in gone), key=_seniority
            )
        return self._victims

    def later_best_effort(self, work: SchedulableRequest, served: Container[str]) -> list[SchedulableRequest]:
        """Return the best effort that can be preempted, came after `work`, and is not in the step."""
        own = _seniority(work)
        return [other for other in self.best_effort() if _seniority(other) > own and other.request_id not in served]

    def _missing_blocks(self, work: SchedulableRequest, tokens: int) -> int:
        """Return how many blocks a request needs for its next tokens besides those it has."""
        needed = blocks_for(work.computed_tokens + tokens, self._block_tokens) - work.held_blocks
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
        """Return how many blocks preempting a request frees: those it holds, and those reserved for it."""
        blocks = victim.held_blocks + self._taken.get(victim.request_id, 0)
        return blocks if victim.pending_tokens == 1 else blocks + self._missing_blocks(victim, victim.pending_tokens)


def _is_preemptible(work: SchedulableRequest) -> bool:
    return work.running and not work.pinned


def _seniority(work: SchedulableRequest) -> tuple[float, int, str]:
    """Return a sort key that puts last who is preempted first: the latest arrival and, among equals, the shortest."""
    return (work.waiting_since_s, -work.computed_tokens, work.request_id)
