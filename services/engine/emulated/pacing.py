"""The composition of one engine's steps, and what it learns from each of how long they take."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import replace

from services.engine.emulated.config import EmulatedEngineConfig
from services.engine.emulated.core import Composer
from services.engine.emulated.stock import compose_stock
from services.engine.protocol import Scheduling
from services.engine.step_recording import StepRecorder
from services.slo.composer import ComposerPolicy, Composition, Limits, SchedulableRequest, compose
from services.slo.composer.recorded_step import ComposedStep
from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepCost, StepShape


class StepComposer:
    """Composes steps by the configured policy, and knows step times from past steps, not from those to come."""

    def __init__(self, config: EmulatedEngineConfig, limits: Limits, coefficients: PerformanceCoefficients) -> None:
        self._config = config
        self._limits = limits
        guess = coefficients.compute.scaled(config.first_guess)
        self._fit = StepTimeFit(coefficients.with_costs(guess, StepCost()))
        self._policy = ComposerPolicy(reserve_s=config.reserve_s)
        self._recorder: StepRecorder | None = None
        self._compose_s = 0.0
        self._preempted = self._held = 0

    def start(self, worker_id: str) -> None:
        """Begin to record steps, if the configuration says so.

        Raises:
            OSError: the recording cannot be written.
        """
        if self._config.record_steps_in is not None:
            self._recorder = StepRecorder(self._config.record_steps_in / f"{worker_id}.jsonl")

    def stop(self) -> None:
        """Close the recording. Idempotent."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def at(self, now_s: float, tightest_tpot_s: float) -> Composer:
        """Return the function that composes the step that begins now."""
        return functools.partial(self._compose, now_s, tightest_tpot_s)

    def learn(self, shape: StepShape, took_s: float) -> Scheduling:
        """Learn from the step composed last, which has ended, and return what had been expected of it."""
        predicted_s, bound_s = self._fit.model().step_s(shape), self._model().step_s(shape)
        self._fit.observe(shape, took_s)
        if self._recorder is not None:
            self._recorder.end(took_s)
        return Scheduling(predicted_s, bound_s, self._compose_s, self._preempted, self._held)

    def _compose(
        self, now_s: float, tightest_tpot_s: float, requests: Sequence[SchedulableRequest], free_blocks: int
    ) -> Composition:
        began_s = time.perf_counter()
        composition = self._composed(now_s, tightest_tpot_s, requests, free_blocks)
        self._compose_s = time.perf_counter() - began_s
        self._preempted += len(composition.preempted)
        self._held += len(composition.held)
        return composition

    def _composed(
        self, now_s: float, tightest_tpot_s: float, requests: Sequence[SchedulableRequest], free_blocks: int
    ) -> Composition:
        model = self._model()
        if self._config.policy == "stock":
            return compose_stock(requests, free_blocks, model, self._limits)
        policy = self._policy_for(tightest_tpot_s)
        composition = compose(requests, free_blocks, model, self._limits, now_s, policy)
        if self._recorder is not None:
            self._recorder.begin(ComposedStep(requests, free_blocks, model, self._limits, policy, now_s, composition))
        return composition

    def _model(self) -> PerformanceModel:
        return self._fit.bound(self._config.bound_coverage)

    def _policy_for(self, tightest_tpot_s: float) -> ComposerPolicy:
        cap_s = self._config.step_cap_s if self._config.step_cap_s is not None else tightest_tpot_s
        if cap_s != self._policy.step_cap_s:
            self._policy = replace(self._policy, step_cap_s=cap_s if cap_s > 0 else math.inf)
        return self._policy
