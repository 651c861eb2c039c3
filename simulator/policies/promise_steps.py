"""Steps of an engine that holds promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.slo.composer import ComposerPolicy, Composition, compose
from services.slo.performance import StepShape
from simulator.belief import Belief
from simulator.engine import Engine
from simulator.policies.batch import Batch
from simulator.policies.fcfs import DEFAULT_BUDGET, Fcfs, within
from simulator.policies.promised import Spot, place_of


class FixedSteps:
    """Steps without a look at due times: decodes first, prompts first come first served up to the tightest TPOT."""

    def __init__(self, belief: Belief, tightest_tpot_s: float) -> None:
        self._belief = belief
        self._tightest_tpot_s = tightest_tpot_s

    def compose(self, engine: Engine, now_s: float) -> Batch:
        return Fcfs(within(self._belief.composing, self._tightest_tpot_s, DEFAULT_BUDGET)).compose(engine, now_s)

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        self._belief.observe(shape, seconds, engine.step_began_s + seconds)


class PromiseComposer:
    """`services.slo.composer` on one engine, as the emulated and the real engine use it."""

    def __init__(self, belief: Belief, cap_s: float, policy: ComposerPolicy) -> None:
        self._belief = belief
        self._policy = replace(policy, step_cap_s=cap_s)
        self.spot: Spot | None = None

    def compose(self, engine: Engine, now_s: float) -> Composition:
        if engine.machine.max_draft_tokens and self.spot is not None and any(self.spot.drafts):
            self._propose(engine, self.spot.drafts)
        return compose(
            engine.works, engine.free_blocks, self._belief.composing, engine.machine.limits, now_s, self._policy
        )

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        self._belief.observe(shape, seconds, engine.step_began_s + seconds)

    def _propose(self, engine: Engine, drafts: Sequence[int]) -> None:
        for request in engine.requests.values():
            tier = place_of(request).tier if not request.missed or place_of(request).planned else -1
            if request.work.decoding:
                left = request.output_tokens - request.generated - 1
                request.work.draft_tokens = min(drafts[tier], left) if tier >= 0 else 0
