"""The `Engine` port on vLLM, as the worker uses it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.engine.kv.backend import ClaimRefusedError
from services.engine.kv.hand_over import KvEndpoint, KvHandOver
from services.engine.kv.handle import KvHandle
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
)
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend import processes
from services.engine.vllm.frontend.core_request import core_request
from services.engine.vllm.frontend.nixl_backend import NixlBackend, NixlOffer
from services.engine.vllm.frontend.outputs import LiveRequest, aborted, translate
from services.engine.vllm.frontend.sampling import UnservableRequestError
from services.engine.vllm.frontend.warm_up import warm_up
from services.engine.vllm.shared.control_channel import CORE_CALL, PREPARE_FOR_DRAFTS
from services.engine.vllm.shared.core_report import STATS_KEY, CoreReport
from services.slo.performance import StepShape

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Iterator, Mapping, Sequence

    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest

    from services.engine.kv.handle import LeaseOutcome
    from services.engine.kv.leases import Lease
    from services.engine.vllm.frontend.launched_engine import LaunchedEngine
    from services.engine.vllm.shared.nixl_terms import NixlTerms

log = logging.getLogger(__name__)


class VllmEngine:
    """One vLLM engine. It makes the ids of requests inside EngineCore, so that callers may use any, and again.

    Args:
        model_dir: model in Hugging Face format.
        worker_id: stands in the KV handles this engine gives out.
    """

    def __init__(self, model_dir: Path, config: VllmEngineConfig, worker_id: str) -> None:
        self._model_dir = model_dir
        self._config = config
        self._worker_id = worker_id
        self._epoch = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._launcher = ThreadPoolExecutor(1, "vllm-launcher")
        self._launched: LaunchedEngine | None = None
        self._facts: EngineFacts | None = None
        self._kv: KvHandOver[NixlOffer, NixlTerms] | None = None
        self._live: dict[str, LiveRequest] = {}
        self._core_ids: dict[str, str] = {}
        self._load = EngineLoad(0, 0, 0, 0, 0)
        self._step = 0
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dead: str | None = None
        self._closed = False

    async def start(self) -> EngineFacts:
        from services.engine.vllm.frontend.launch import launch

        loop = asyncio.get_running_loop()
        try:
            launching = loop.run_in_executor(self._launcher, launch, self._model_dir, self._config, self._epoch)
            self._launched = await asyncio.wait_for(asyncio.shield(launching), self._config.start_timeout_s)
            if self._config.draft_tokens:
                await self._launched.client.collective_rpc_async(PREPARE_FOR_DRAFTS)
            kv = await self._launched.client.call_utility_async(CORE_CALL, "kv_facts", [])
            self._facts = self._describe(self._launched, kv)
            self._kv = self._make_hand_over(self._facts)
            await self._kv.start(self._config.side_channel_host)
            self._load = EngineLoad(0, 0, self._facts.kv_blocks_total, 0, 0)
            self._spawn(self._pump(self._launched))
            if self._config.warm_up:
                self._facts = await warm_up(self, self._facts)
        except TimeoutError as error:
            await self.shutdown()
            raise EngineStartError(f"vLLM did not start within {self._config.start_timeout_s} s") from error
        except asyncio.CancelledError:
            await self.shutdown()
            raise
        except Exception as error:
            await self.shutdown()
            raise EngineStartError(f"vLLM cannot serve {self._model_dir}: {error}") from error
        return self._facts

    def _describe(self, launched: LaunchedEngine, kv: dict[str, int]) -> EngineFacts:
        from services.engine.vllm.frontend.facts import engine_facts

        if kv["groups"] != 1:
            raise ValueError(f"its KV cache has {kv['groups']} block lists per request; only one can be handed over")
        return engine_facts(self._model_dir, self._config, launched.vllm_config, kv, self._epoch)

    def _make_hand_over(self, facts: EngineFacts) -> KvHandOver[NixlOffer, NixlTerms]:
        backend = NixlBackend(facts.compatibility.block_tokens)
        endpoint = KvEndpoint(
            self._worker_id,
            self._epoch,
            facts.compatibility,
            facts.kv_bytes_per_token,
            self._config.lease_margin_s,
        )
        # EngineCore frees a lease's blocks when its time is over, and reports it.
        return KvHandOver(endpoint, backend, backend, self._free_in_core, expires_leases=False)

    def load(self) -> EngineLoad:
        return self._load

    async def scheduling_figures(self) -> dict[str, float]:
        """Return how scheduling in EngineCore has gone so far; see `SchedulingFigures`.

        Raises:
            EngineDeadError: the engine is not running.
        """
        self._require_alive()
        client = self._require_launched().client
        figures: dict[str, float] = await client.call_utility_async(CORE_CALL, "scheduling_figures", [])
        return figures

    async def submit(self, request: EngineRequest) -> None:
        facts, kv = self._require_alive()
        if request.request_id in self._live:
            self._events.put_nowait(RequestRejected(request.request_id, True, "request_id is in use"))
            return
        core_id = f"{self._epoch}-{next(self._numbers)}"
        try:
            work = core_request(request, core_id, facts, self._require_launched().inputs)
        except UnservableRequestError as error:
            self._events.put_nowait(RequestRejected(request.request_id, True, str(error)))
            return
        live = LiveRequest(request, core_id, time.monotonic())
        self._live[request.request_id] = live
        self._core_ids[core_id] = request.request_id
        if request.kv_source is None:
            await self._add(live, work)
        else:
            self._spawn(self._claim_and_add(live, work, request.kv_source, kv))

    async def _add(self, live: LiveRequest, work: EngineCoreRequest) -> None:
        client = self._require_launched().client
        await self._in_core(client.add_request_async(work))
        live.in_core = True
        if live.aborted:
            await self._in_core(client.abort_requests_async([live.core_id]))

    async def _in_core(self, order: Awaitable[object]) -> None:
        """Give EngineCore an order. If it is dead, `events` says so."""
        from vllm.v1.engine.exceptions import EngineDeadError as CoreDeadError

        try:
            await order
        except CoreDeadError as error:
            self._die(str(error))

    async def _claim_and_add(
        self,
        live: LiveRequest,
        work: EngineCoreRequest,
        source: KvHandle,
        kv: KvHandOver[NixlOffer, NixlTerms],
    ) -> None:
        try:
            claim = await kv.claim(source, live.request.token_ids, live.submitted_at_s)
            live.claim = claim
            work.sampling_params.extra_args["kv_transfer_params"] = claim.terms.to_vllm(claim.deadline_s)
        except ClaimRefusedError as error:
            live.recompute(str(error))
        if live.aborted:
            self._forget(live)
            self._events.put_nowait(self._extra_step((aborted(live),)))
        else:
            await self._add(live, work)

    async def abort(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is None or live.aborted:
            return
        live.aborted = True
        if live.in_core and self._dead is None:
            await self._in_core(self._require_launched().client.abort_requests_async([live.core_id]))

    async def release_kv(self, lease_id: str) -> None:
        if self._kv is not None:
            self._kv.release(lease_id)

    def _free_in_core(self, lease: Lease[NixlOffer], outcome: LeaseOutcome) -> None:
        if self._dead is None and not self._closed:
            self._spawn(self._call_core("release_lease", lease.lease_id))

    async def _call_core(self, method: str, *arguments: object) -> None:
        await self._require_launched().client.call_utility_async(CORE_CALL, method, list(arguments))

    async def events(self) -> AsyncIterator[EngineEvent]:
        while True:
            event = await self._events.get()
            if event is None:
                # Left in place for whoever asks again.
                self._events.put_nowait(None)
                if self._dead is not None:
                    raise EngineDeadError(self._dead)
                return
            yield event

    async def shutdown(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._kv is not None:
            await self._kv.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for live in self._live.values():
            live.end_claim()
        await processes.stop(self._launched, self._launcher, self._config.shutdown_s)
        self._events.put_nowait(None)

    async def _pump(self, launched: LaunchedEngine) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError as CoreDeadError

        try:
            while True:
                self._take(await launched.client.get_output_async())
        except CoreDeadError as error:
            self._die(str(error) or "EngineCore ended")

    def _take(self, core: EngineCoreOutputs) -> None:
        """Turn one message of EngineCore into events."""
        stats = core.scheduler_stats
        wire = None if stats is None else (stats.kv_connector_stats or {}).get(STATS_KEY)
        report = None if wire is None else CoreReport.from_wire(wire)
        if report is not None:
            self._load = report.load
            self._note_transfers(report)
        outputs = tuple(self._outputs(core.outputs, core.timestamp))
        if report is None or not report.shape.tokens:
            if outputs:
                self._events.put_nowait(self._extra_step(outputs))
        else:
            self._step += 1
            outputs += tuple(self._progress(report))
            self._events.put_nowait(
                EngineStep(self._step, report.duration_s, report.shape, outputs, report.load, report.scheduling)
            )
        for lease_id, outcome in {} if report is None else report.closed_leases.items():
            self._require_kv().closed(lease_id, outcome)
            self._events.put_nowait(LeaseClosed(lease_id, outcome))

    def _extra_step(self, outputs: tuple[RequestOutput, ...]) -> EngineStep:
        """Return a step for outputs that came without any computation."""
        self._step += 1
        return EngineStep(self._step, 0.0, StepShape(), outputs, self._load)

    def _progress(self, report: CoreReport) -> Iterator[RequestOutput]:
        """Yield an output for each prompt of which the step computed a part."""
        for core_id, tokens in report.prefilled.items():
            request_id = self._core_ids.get(core_id, "")
            if request_id in self._live:
                yield RequestOutput(request_id, (), prefilled_tokens=tokens)

    def _note_transfers(self, report: CoreReport) -> None:
        for core_id, pull in report.pulls.items():
            live = self._live.get(self._core_ids.get(core_id, ""))
            if live is not None:
                live.pull = pull
                live.end_claim()
        for core_id, reason in report.recomputes.items():
            live = self._live.get(self._core_ids.get(core_id, ""))
            if live is not None:
                live.recompute(reason)

    def _outputs(self, outputs: Sequence[EngineCoreOutput], step_at_s: float) -> Iterator[RequestOutput]:
        for output in outputs:
            live = self._live.get(self._core_ids.get(output.request_id, ""))
            if live is None:
                continue
            if output.new_token_ids:
                live.end_claim()
            if output.finish_reason is not None:
                self._forget(live)
            params = output.kv_transfer_params
            exported = params is not None and params.get("do_remote_prefill")
            kv = self._export(live.core_id, params) if exported else None
            yield translate(live, output, step_at_s, kv)

    def _export(self, lease_id: str, params: Mapping[str, Any]) -> KvHandle:
        offer = NixlOffer.from_vllm(params)
        return self._require_kv().export(lease_id, offer, offer.tokens, offer.until_s)

    def _forget(self, live: LiveRequest) -> None:
        live.end_claim()
        self._live.pop(live.request.request_id, None)
        self._core_ids.pop(live.core_id, None)

    def _die(self, detail: str) -> None:
        if self._dead is None and not self._closed:
            self._dead = detail
            self._events.put_nowait(None)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the vLLM adapter failed", exc_info=error)
            self._die(f"the adapter failed: {error}")

    def _require_launched(self) -> LaunchedEngine:
        if self._launched is None:
            raise EngineDeadError("the engine was not started")
        return self._launched

    def _require_kv(self) -> KvHandOver[NixlOffer, NixlTerms]:
        if self._kv is None:
            raise EngineDeadError("the engine was not started")
        return self._kv

    def _require_alive(self) -> tuple[EngineFacts, KvHandOver[NixlOffer, NixlTerms]]:
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        if self._facts is None or self._closed:
            raise EngineDeadError("the engine was not started, or was shut down")
        return self._facts, self._require_kv()
