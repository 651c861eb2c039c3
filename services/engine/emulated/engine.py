"""The emulated `Engine`: orders come in, one event goes out for each step, and the event loop's clock sets the pace."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import math
import random
import uuid
from collections.abc import AsyncIterator

from services.engine.emulated.active_request import ActiveRequest, Export, Progress
from services.engine.emulated.config import EmulatedEngineConfig
from services.engine.emulated.core import Core
from services.engine.emulated.kv_backend import EmulatedKvBackend, Granted
from services.engine.emulated.link import Link
from services.engine.emulated.pacing import StepComposer
from services.engine.emulated.tokens import Vocabulary
from services.engine.kv.backend import ClaimRefusedError
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.hand_over import KvEndpoint, KvHandOver
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.kv.leases import Lease
from services.engine.protocol import (
    EngineDeadError,
    EngineEvent,
    EngineFacts,
    EngineLoad,
    EngineRequest,
    EngineStartError,
    EngineStep,
    LeaseClosed,
    RequestOutput,
    RequestRejected,
    Scheduling,
)
from services.slo.composer import Composition, Limits
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepShape

ENGINE_VERSION = "emulated/1"
TIMER_LATENESS_S = 0.002
"""Seconds that a timer may fire late on an idle machine. The next step makes up for them, so that the pace holds; what
is later means that the machine is too busy, and is told as the step's duration."""
NOISE_LIMIT = 3.0
"""Number of standard deviations that a step's time departs from the model's, at most."""
SHORTEST_STEP = 0.1
"""Share of the model's time that a step takes at least, however large the noise."""

NOTHING_FORESEEN = Scheduling()

logger = logging.getLogger(__name__)


class EmulatedEngine:
    """An engine whose time is the performance model's and whose tokens are made up."""

    def __init__(
        self,
        config: EmulatedEngineConfig,
        *,
        model: str,
        model_fingerprint: str,
        worker_id: str,
        tls: DeskTls | None = None,
    ) -> None:
        """Make an engine; engines hand KV caches to each other only if `model_fingerprint` is the same.

        Args:
            tls: encrypts claims of KV caches; None: they are in the clear.
        """
        self._config = config
        self._worker_id = worker_id
        self._epoch = uuid.uuid4().hex
        scale = config.time_scale
        coefficients = PerformanceCoefficients(
            overhead_s=config.overhead_s * scale,
            per_token_s=config.per_token_s * scale,
            per_context_token_s=config.per_context_token_s * scale,
            per_attention_pair_s=config.per_attention_pair_s * scale,
            origin="placeholder",
        )
        self._performance = PerformanceModel(coefficients)
        limits = Limits(config.max_step_tokens, config.max_running_requests, config.block_tokens)
        self._composer = StepComposer(config, limits, coefficients)
        self._noise = random.Random(f"{config.seed} {worker_id}")
        self._core = Core(
            limits,
            config.kv_blocks,
            config.max_context_tokens,
            Vocabulary(config.vocabulary_size, config.eos_token_id, config.special_tokens, config.mean_output_tokens),
        )
        self._facts = EngineFacts(
            engine_epoch=self._epoch,
            compatibility=Compatibility(
                model_fingerprint=model_fingerprint,
                dtype="emulated",
                kv_cache_dtype="emulated",
                block_tokens=config.block_tokens,
                tensor_parallel=1,
                kv_layout=f"{config.kv_bytes_per_token} bytes a token",
                engine=ENGINE_VERSION,
            ),
            model=model,
            max_context_tokens=self._core.max_context_tokens,
            vocabulary_size=config.vocabulary_size,
            eos_token_ids=(config.eos_token_id,),
            kv_blocks_total=config.kv_blocks,
            kv_bytes_per_token=config.kv_bytes_per_token,
            max_step_tokens=config.max_step_tokens,
            max_running_requests=config.max_running_requests,
            kv_lease_s=config.kv_lease_s,
            performance=_announced(coefficients, config.announced_error),
            emulated=True,
            max_step_s=config.step_cap_s or math.inf,
        )
        link = Link(config.link_latency_s * scale, config.link_bytes_per_s / scale)
        self._backend = EmulatedKvBackend(link, config.block_tokens * config.kv_bytes_per_token)
        endpoint = KvEndpoint(
            worker_id, self._epoch, self._facts.compatibility, config.kv_bytes_per_token, config.lease_margin_s
        )
        self._kv: KvHandOver[Export, Granted] = KvHandOver(
            endpoint, self._backend, self._backend, self._lease_ended, expires_leases=True, tls=tls
        )
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._steps = 0
        self._stepping: asyncio.Task[None] | None = None
        self._death: BaseException | None = None
        self._stopped = False

    async def start(self) -> EngineFacts:
        """Offer KV caches and begin to step. See `Engine.start`."""
        try:
            await self._kv.start(self._config.kv_host or "127.0.0.1")
        except OSError as error:
            raise EngineStartError(f"kv_host {self._config.kv_host!r} cannot be listened on: {error}") from error
        try:
            self._composer.start(self._worker_id)
        except OSError as error:
            await self._kv.stop()
            raise EngineStartError(f"record_steps_in cannot be written to: {error}") from error
        self._facts = dataclasses.replace(self._facts, kv_address_json=self._kv.address_json)
        self._stepping = asyncio.create_task(self._step_forever(), name="emulated engine")
        self._stepping.add_done_callback(self._task_ended)
        return self._facts

    async def submit(self, request: EngineRequest) -> None:
        """See `Engine.submit`.

        Raises:
            EngineDeadError: the engine died or was shut down.
        """
        self._check_alive()
        refusal = self._core.refusal(request)
        if refusal is not None:
            self._emit(RequestRejected(request.request_id, invalid=True, detail=refusal))
            return
        self._core.submit(request, self._now_s())
        self._wake.set()

    async def abort(self, request_id: str) -> None:
        """See `Engine.abort`. A request that a step is computing ends with that step."""
        progress = self._core.abort(request_id, self._now_s())
        pull = self._pulls.pop(request_id, None)
        if pull is not None:
            pull.cancel()
        if progress is not None:
            self._emit_step(0.0, StepShape(), (progress,))
            self._wake.set()

    async def release_kv(self, lease_id: str) -> None:
        """See `Engine.release_kv`. A pull of it that is under way fails."""
        self._kv.release(lease_id)

    def load(self) -> EngineLoad:
        """Return what the engine holds at this moment."""
        return self._core.load()

    async def events(self) -> AsyncIterator[EngineEvent]:
        """See `Engine.events`. Ends after `shutdown`."""
        while (event := await self._events.get()) is not None:
            yield event
        if self._death is not None:
            raise EngineDeadError(f"the emulated engine failed: {self._death!r}") from self._death

    async def shutdown(self) -> None:
        """Stop the engine; requests and leases end without an event. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        tasks = [*self._pulls.values(), *([self._stepping] if self._stepping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._kv.stop()
        self._composer.stop()
        self._events.put_nowait(None)

    async def _step_forever(self) -> None:
        ready_s = self._now_s()
        while True:
            self._wake.clear()
            composition, pulls = self._compose()
            for active in pulls:
                self._start_pull(active)
            if composition.grants:
                ready_s = await self._step(composition, ready_s)
            elif not composition.preempted:
                await self._wake.wait()
                ready_s = self._now_s()

    def _compose(self) -> tuple[Composition, tuple[ActiveRequest, ...]]:
        now_s = self._now_s()
        compose = self._composer.at(now_s, self._core.tightest_tpot.tpot_s(now_s))
        return self._core.begin_step(now_s, compose)

    async def _step(self, composition: Composition, start_s: float) -> float:
        """Take the time of a step, report it, and return when the engine is ready for the next one."""
        due_s = start_s + self._duration_s(composition.shape)
        await asyncio.sleep(due_s - self._now_s())
        end_s = self._now_s()
        if end_s - due_s < TIMER_LATENESS_S:
            end_s = due_s
        took_s = end_s - start_s
        learnt = self._composer.learn(composition.shape, took_s)
        scheduling = dataclasses.replace(learnt, contracts_malformed=self._core.contracts_malformed)
        self._emit_step(took_s, composition.shape, self._core.complete_step(composition, end_s), scheduling)
        return end_s

    def _duration_s(self, shape: StepShape) -> float:
        noise = min(NOISE_LIMIT, max(-NOISE_LIMIT, self._noise.gauss(0.0, 1.0)))
        return self._performance.step_s(shape) * max(SHORTEST_STEP, 1.0 + self._config.step_time_noise * noise)

    def _start_pull(self, active: ActiveRequest) -> None:
        handle = active.kv_source
        assert handle is not None
        request_id = active.request.request_id
        task = asyncio.create_task(self._pull(active, handle), name=f"KV pull for {request_id}")
        self._pulls[request_id] = task
        task.add_done_callback(functools.partial(self._pull_ended, request_id))

    async def _pull(self, active: ActiveRequest, handle: KvHandle) -> None:
        try:
            claim = await self._kv.claim(handle, active.request.token_ids, active.submitted_s)
            pull = await self._backend.receive(claim)
        except ClaimRefusedError as error:
            logger.info("request %s: KV cache is computed again: %s", active.request.request_id, error)
            self._core.recompute(active, str(error))
        else:
            self._core.land(active, claim.terms.tokens, pull)
        self._wake.set()

    def _pull_ended(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._pulls.get(request_id) is task:
            del self._pulls[request_id]
        self._task_ended(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Kill the engine, visibly, if one of its tasks failed: that is a defect."""
        error = None if task.cancelled() else task.exception()
        if error is not None and self._death is None:
            logger.error("the emulated engine failed", exc_info=error)
            self._death = error
            if self._stepping is not None:
                self._stepping.cancel()
            self._events.put_nowait(None)

    def _lease_ended(self, lease: Lease[Export], outcome: LeaseOutcome) -> None:
        self._core.blocks.end_lease(lease.offer.blocks)
        self._emit(LeaseClosed(lease.lease_id, outcome))
        self._wake.set()

    def _emit_step(
        self,
        duration_s: float,
        shape: StepShape,
        progress: tuple[Progress, ...],
        scheduling: Scheduling = NOTHING_FORESEEN,
    ) -> None:
        self._steps += 1
        outputs = tuple(self._output(part) for part in progress)
        self._emit(EngineStep(self._steps, duration_s, shape, outputs, self._core.load(), scheduling))

    def _output(self, progress: Progress) -> RequestOutput:
        if progress.export is None:
            return progress.output
        export = progress.export
        handle = self._kv.export(uuid.uuid4().hex, export, export.tokens, self._now_s() + self._config.kv_lease_s)
        return dataclasses.replace(progress.output, kv=handle)

    def _emit(self, event: EngineEvent) -> None:
        if self._death is None and not self._stopped:
            self._events.put_nowait(event)

    def _check_alive(self) -> None:
        if self._death is not None or self._stopped or self._stepping is None:
            raise EngineDeadError("the emulated engine is not running")

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _announced(truth: PerformanceCoefficients, error: float) -> PerformanceCoefficients:
    return truth.with_costs(truth.compute.scaled(error), truth.memory.scaled(error))
