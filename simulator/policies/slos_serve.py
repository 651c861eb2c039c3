"""SLOs-Serve as its paper has it: every replica plans by itself and declines what it cannot keep.

A declined request goes to the next replica of the ring, and becomes best effort where the ring ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.slo.composer import SchedulableRequest
from services.slo.kv_blocks import blocks_for
from services.slo.performance import StepShape
from simulator.cluster import MakePolicy, PolicyContext
from simulator.engine import Engine
from simulator.machine import Machine
from simulator.policies.base import BasePolicy
from simulator.policies.batch import Batch, decoding
from simulator.policies.fcfs import within
from simulator.policies.tiers_plan import ALONE_S, MARGIN_S, Item, TierBudget, accept
from simulator.request import SimRequest

PLANNED_AFTER_S = 0.01
"""Seconds from the first request that came until a replica plans. The paper's waits for up to 0.1 s."""
MOST_NEW = 10
"""Greatest number of new requests in one plan, as in the paper: its time grows with nearly their fifth power."""
MOST_CHUNK = 4096
"""Greatest number of tokens of a step."""


class Batches:
    """A composer that serves decodes by due time, accepted prompts by deadline, and best effort with what is left."""

    def __init__(self, machine: Machine, tpots_s: Sequence[float], margin: float) -> None:
        self._machine = machine
        self._tpots_s = tpots_s
        self._margin = margin

    def compose(self, engine: Engine, now_s: float) -> Batch:
        """Return the next step."""
        batch = Batch.of(engine)
        requests = engine.requests
        works = engine.works
        decodes = [work for work in works if decoding(work) and not work.best_effort]
        prompts = [work for work in works if not decoding(work) and not work.best_effort]
        slack_s = min((requests[work.request_id].due_s - now_s for work in decodes), default=math.inf)
        step_s = min(max(slack_s, self._tpots_s[0]) if slack_s < 0 else slack_s, ALONE_S)
        step_s = step_s * (1 - self._margin) - MARGIN_S
        lengths, budget = self._lengths(engine, decodes, now_s)
        served = decodes
        if prompts:
            served = [
                w for w in decodes if requests[w.request_id].due_s - now_s <= step_s + requests[w.request_id].tpot_s
            ]
        most = self._most_drafts(served, step_s) if lengths else 0
        for work in served:
            request = requests[work.request_id]
            drafts = min(most, lengths[budget.tier(request.due_s - now_s)] - 1) if lengths else 0
            batch.decode(work, min(drafts, request.output_tokens - request.generated - 1))
        limit_s = max(step_s, self._machine.truth.step_s(batch.shape)) if decodes else ALONE_S
        room = within(self._machine.truth, limit_s, MOST_CHUNK)(batch, decodes or prompts)
        for work in sorted(prompts, key=lambda work: requests[work.request_id].due_s):
            if room < 1:
                break
            if not work.running and not self._admit(batch, work):
                break
            tokens = min(work.pending_tokens, room)
            batch.prefill(work, tokens)
            room -= tokens
        self._best_effort(batch, [work for work in works if work.best_effort], room)
        return batch

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        """Do nothing: this scheduler does not learn."""

    def _most_drafts(self, decodes: Sequence[SchedulableRequest], step_s: float) -> int:
        """Return how many drafted tokens a step may verify so that the decodes alone are in time.

        The paper scores every twentieth token; here every token is scored.
        """
        count, contexts = len(decodes), sum([work.computed_tokens for work in decodes])
        drafts = self._machine.max_draft_tokens
        while drafts and (
            self._machine.truth.step_s(StepShape(0, 0, 0.0, count, count * (1 + drafts), contexts, drafts)) > step_s
        ):
            drafts -= 1
        return drafts

    def _lengths(
        self, engine: Engine, decodes: Sequence[SchedulableRequest], now_s: float
    ) -> tuple[tuple[int, ...], TierBudget]:
        budget = TierBudget.of(self._machine, self._tpots_s, sum([work.computed_tokens for work in decodes]))
        if not self._machine.max_draft_tokens or not decodes:
            return (), budget
        counts = [0] * len(budget.tpots_s)
        for work in decodes:
            counts[budget.tier(engine.requests[work.request_id].due_s - now_s)] += 1
        budget.rate(tuple(counts))
        return budget.lengths[tuple(counts)], budget

    def _admit(self, batch: Batch, work: SchedulableRequest) -> bool:
        """Let an accepted request in, if need be by preempting best effort, the last come first.

        Returns whether it was let in.
        """
        if batch.admit(work):
            return True
        gone = set(batch.preempted)
        victims = [
            other
            for other in batch.engine.works
            if other.best_effort and other.running and other.request_id not in gone
        ]
        for victim in sorted(victims, key=lambda other: -other.waiting_since_s):
            batch.preempted = (*batch.preempted, victim.request_id)
            batch.free_blocks += victim.held_blocks
            batch.places += 1
            if batch.admit(work):
                return True
        return False

    def _best_effort(self, batch: Batch, works: Sequence[SchedulableRequest], room: int) -> None:
        """Serve best effort with what is left of a step: one token for each decode, and prompts that fit whole."""
        gone = set(batch.preempted)
        for work in works:
            if decoding(work) and work.request_id not in gone and room > 0:
                batch.decode(work)
                room -= 1
        alone = not batch.grants
        for work in works:
            whole = work.pending_tokens
            if decoding(work) or work.request_id in gone or (room < whole and not alone):
                continue
            if not (work.running or batch.admit(work)):
                break
            batch.prefill(work, min(whole, max(room, 1)))
            room -= min(whole, room)
            alone = False


class Ring(BasePolicy):
    """A policy whose replicas accept or decline a request, one after the other in a ring."""

    def __init__(self, context: PolicyContext, tpots_s: Sequence[float], margin: float) -> None:
        super().__init__(context)
        self._tpots_s = tuple(tpots_s)
        self.engines = [
            self.engine(index, Batches(context.machine, tpots_s, margin)) for index in range(context.workers)
        ]
        self._asked: list[list[tuple[SimRequest, int]]] = [[] for _ in self.engines]
        self._next = -1

    def arrive(self, request: SimRequest) -> None:
        """Ask the next replica in turn first."""
        self._next = (self._next + 1) % len(self.engines)
        self._ask(self._next, request, hops=1)

    def _ask(self, index: int, request: SimRequest, hops: int) -> None:
        asked = self._asked[index]
        asked.append((request, hops))
        if len(asked) == 1:
            self.events.at(self.events.now_s + PLANNED_AFTER_S, lambda: self._plan(index))

    def _plan(self, index: int) -> None:
        engine, asked = self.engines[index], self._asked[index]
        now, self._asked[index] = asked[:MOST_NEW], asked[MOST_NEW:]
        if self._asked[index]:
            self.events.at(self.events.now_s + PLANNED_AFTER_S, lambda: self._plan(index))
        taken = () if engine.failed else self._accepted(engine, [request for request, _ in now])
        for position, (request, hops) in enumerate(now):
            if position in taken:
                request.guaranteed = True
                request.work.best_effort = False
                engine.submit(request)
            elif hops < len(self.engines):
                self._ask((index + 1) % len(self.engines), request, hops + 1)
            else:
                request.work.best_effort = True
                engine.submit(request)

    def _accepted(self, engine: Engine, new: Sequence[SimRequest]) -> Sequence[int]:
        now_s = self.events.now_s
        decodes = [
            request for request in engine.requests.values() if not request.work.best_effort and decoding(request.work)
        ]
        prompts = [
            request
            for request in engine.requests.values()
            if not request.work.best_effort and not decoding(request.work)
        ]
        budget = TierBudget.of(self.machine, self._tpots_s, sum([request.context_tokens for request in decodes]))
        counts = [0] * len(budget.tpots_s)
        for request in decodes:
            counts[budget.tier(request.due_s - now_s)] += 1
        items = [self._item(request, budget, -1) for request in prompts]
        items += [self._item(request, budget, index) for index, request in enumerate(new)]
        size = self.machine.limits.block_tokens
        promised = sum([blocks_for(_whole(request), size) for request in prompts if not request.work.running])
        reclaimable = sum(
            [request.work.held_blocks for request in engine.requests.values() if request.work.best_effort]
        )
        free_blocks = engine.free_blocks + reclaimable - promised
        return accept(items, counts, free_blocks, budget) or ()

    def _item(self, request: SimRequest, budget: TierBudget, index: int) -> Item:
        now_s = self.events.now_s
        blocks = blocks_for(_whole(request), self.machine.limits.block_tokens)
        tier = budget.tier(request.tightest_tpot_s - MARGIN_S)
        due_s = max(0.0, request.due_s - now_s)
        tokens = request.work.pending_tokens if due_s > 0 or index >= 0 else 0
        return Item(due_s, tokens, blocks, tier, index >= 0, index)

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        """Treat requests of a failed engine as if they had just come."""
        for request in requests:
            self.arrive(request)


def _whole(request: SimRequest) -> int:
    return request.offered.prompt_tokens + request.output_tokens


def slos_serve(tpots_s: Sequence[float], margin: float) -> MakePolicy:
    """Return a maker of SLOs-Serve for a scenario's TPOT targets, in seconds, ascending.

    Args:
        margin: share of a batch's time left free, besides the millisecond that the original leaves.
    """

    def make(context: PolicyContext) -> Ring:
        return Ring(context, tpots_s, margin)

    return make
