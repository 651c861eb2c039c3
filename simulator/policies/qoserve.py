"""QoServe (Niyama, ASPLOS '26), written from its paper.

Prompts take the slack that decodes leave, in an order between earliest deadline and shortest, and requests that cannot
be in time any more go after the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.slo.composer import SchedulableRequest
from services.slo.performance import PerformanceModel, StepShape
from simulator.cluster import MakePolicy, PolicyContext
from simulator.engine import Engine
from simulator.policies.batch import Batch, decoding
from simulator.policies.fcfs import DEFAULT_BUDGET, Replicas, within

BLEND = 2.0
"""Weight of a second of prefill against a second of deadline in the order of prompts (chosen)."""


@dataclass(slots=True)
class SlackChunks:
    """A composer that fills steps up to the earliest due time of a decode."""

    model: PerformanceModel
    """The true mean step times, which favours this policy."""
    margin: float = 0.0
    """Share of the slack that steps are predicted to leave free."""

    def compose(self, engine: Engine, now_s: float) -> Batch:
        """Return the next step."""
        batch = Batch.of(engine)
        decodes = [work for work in engine.works if decoding(work)]
        slack_s = math.inf
        for work in decodes:
            batch.decode(work)
            request = engine.requests[work.request_id]
            if not request.missed:
                slack_s = min(slack_s, request.due_s - now_s)
        budget = DEFAULT_BUDGET
        if slack_s < math.inf:
            budget = within(self.model, slack_s * (1 - self.margin), DEFAULT_BUDGET)(batch, decodes)
        prompts = [work for work in engine.works if not work.running or work.pending_tokens > 1]
        for _, _, work in sorted((*self._rank(engine, work, now_s), work) for work in prompts):
            if budget < 1 or not (work.running or batch.admit(work)):
                break
            tokens = min(work.pending_tokens, budget)
            batch.prefill(work, tokens)
            budget -= tokens
        return batch

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        """Do nothing: this scheduler does not learn."""

    def _rank(self, engine: Engine, work: SchedulableRequest, now_s: float) -> tuple[float, str]:
        request = engine.requests[work.request_id]
        took_s = self.model.prefill_s(work.pending_tokens, engine.machine.limits.max_step_tokens)
        relegated = request.missed or now_s + took_s > request.due_s
        return ((1e9 + took_s) if relegated else request.due_s + BLEND * took_s, work.request_id)


def qoserve(margin: float) -> MakePolicy:
    """Return a maker of QoServe.

    Args:
        margin: share of the slack that steps are predicted to leave free.
    """

    def make(context: PolicyContext) -> Replicas:
        return Replicas(context, SlackChunks(context.machine.truth, margin))

    return make
