"""Steps of an engine that holds promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from services.slo.composer import ComposerPolicy, Composition, TightestTpot, compose
from services.slo.performance import PerformanceModel, StepShape
from simulator.engine import Engine
from simulator.policies.batch import Batch
from simulator.policies.fcfs import DEFAULT_BUDGET, Fcfs, within
from simulator.request import SimRequest

Bound = Callable[[], PerformanceModel]
"""Returns the step times that steps are composed by: a bound, as the engine knows it now."""
Stepped = Callable[[Engine, StepShape, float], None]
"""Told of a step that has ended, with its shape and its duration in seconds."""


class FixedSteps:
    """Steps without a look at due times: decodes first, prompts first come first served up to the tightest TPOT."""

    def __init__(self, bound: Bound, tightest_tpot_s: float, stepped: Stepped) -> None:
        self._bound = bound
        self._tightest_tpot_s = tightest_tpot_s
        self._stepped = stepped

    def compose(self, engine: Engine, now_s: float) -> Batch:
        """Return the next step."""
        budget = within(self._bound(), self._tightest_tpot_s, DEFAULT_BUDGET)
        return Fcfs(budget).compose(engine, now_s)

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        """Report a step."""
        self._stepped(engine, shape, seconds)


class ComposedSteps:
    """Steps of `services.slo.composer` on one engine, as the emulated and the real engine have them."""

    def __init__(self, bound: Bound, policy: ComposerPolicy, stepped: Stepped) -> None:
        self._bound = bound
        self._policy = policy
        self._stepped = stepped
        self._tightest = TightestTpot()
        self.drafts_of: Callable[[SimRequest], int] | None = None
        """Draft tokens of a stream in the next step; None: nothing is drafted."""

    def note(self, tpot_s: float, now_s: float) -> None:
        """Note that a promised stream of this TPOT is here: the next newcomer may be as tight."""
        self._tightest.note(tpot_s, now_s)

    def compose(self, engine: Engine, now_s: float) -> Composition:
        """Return the next step."""
        if self.drafts_of is not None:
            self._propose(engine, self.drafts_of)
        cap_s = self._tightest.tpot_s(now_s)
        if cap_s != self._policy.step_cap_s:
            self._policy = replace(self._policy, step_cap_s=cap_s)
        return compose(engine.works, engine.free_blocks, self._bound(), engine.machine.limits, now_s, self._policy)

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        """Report a step."""
        self._stepped(engine, shape, seconds)

    def _propose(self, engine: Engine, drafts_of: Callable[[SimRequest], int]) -> None:
        for request in engine.requests.values():
            if request.work.decoding:
                left = request.output_tokens - request.generated - 1
                request.work.draft_tokens = max(0, min(drafts_of(request), left))
