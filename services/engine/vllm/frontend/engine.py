"""The `Engine` port on vLLM, as the worker uses it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from services.engine.kv.backend import ClaimRefusedError
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.hand_over import KvEndpoint
from services.engine.kv.handle import KvHandle
from services.engine.protocol import (
    EngineDeadError,
    EngineEvent,
    EngineFacts,
    EngineLoad,
    EngineRequest,
    EngineStartError,
    RequestRejected,
)
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend import processes
from services.engine.vllm.frontend.core_client import CoreClient, CoreDeadError
from services.engine.vllm.frontend.core_messages import CoreMessages
from services.engine.vllm.frontend.kv_backend import VllmHandOver, VllmLease, make_hand_over
from services.engine.vllm.frontend.live_requests import LiveRequest, LiveRequests
from services.engine.vllm.frontend.outputs import aborted
from services.engine.vllm.frontend.sampling import UnservableRequestError
from services.engine.vllm.frontend.warm_up import warm_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from vllm.v1.engine import EngineCoreRequest

    from services.engine.kv.handle import LeaseOutcome
    from services.engine.vllm.frontend.launched_engine import LaunchedEngine

log = logging.getLogger(__name__)


class VllmEngine:
    """One vLLM engine. It makes the ids of requests inside EngineCore, so that callers may use any, and again.

    Args:
        model_dir: model in Hugging Face format.
        worker_id: stands in the KV handles this engine gives out.
        tls: encrypts claims of KV caches; None: they are in the clear.
    """

    def __init__(self, model_dir: Path, config: VllmEngineConfig, worker_id: str, tls: DeskTls | None = None) -> None:
        self._model_dir = model_dir
        self._config = config
        self._worker_id = worker_id
        self._tls = tls
        self._epoch = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._launcher = ThreadPoolExecutor(1, "vllm-launcher")
        self._launched: LaunchedEngine | None = None
        self._core: CoreClient | None = None
        self._facts: EngineFacts | None = None
        self._kv: VllmHandOver | None = None
        self._messages: CoreMessages | None = None
        self._live = LiveRequests()
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
            core = CoreClient(self._launched)
            if self._config.draft_tokens:
                await core.prepare_for_drafts()
            facts = self._describe(self._launched, await core.call("kv_facts"))
            facts = await self._begin(core, facts)
            if self._config.warm_up:
                self._facts = facts = await warm_up(self, facts)
        except TimeoutError as error:
            await self.shutdown()
            raise EngineStartError(f"vLLM did not start within {self._config.start_timeout_s} s") from error
        except asyncio.CancelledError:
            await self.shutdown()
            raise
        except Exception as error:
            await self.shutdown()
            raise EngineStartError(f"vLLM cannot serve {self._model_dir}: {error}") from error
        return facts

    async def _begin(self, core: CoreClient, facts: EngineFacts) -> EngineFacts:
        """Answer claims and read the messages of a started EngineCore. Returns its facts, with where it is claimed."""
        endpoint = KvEndpoint(
            self._worker_id,
            facts.engine_epoch,
            facts.compatibility,
            facts.kv_bytes_per_token,
            self._config.lease_margin_s,
        )
        kv = make_hand_over(endpoint, self._free_in_core, self._tls)
        await kv.start(self._config.kv_host)
        self._core, self._kv = core, kv
        self._facts = replace(facts, kv_address_json=kv.address_json)
        self._messages = CoreMessages(self._live, kv, facts.kv_blocks_total)
        self._spawn(self._pump(core, self._messages))
        return self._facts

    def _describe(self, launched: LaunchedEngine, kv: dict[str, int]) -> EngineFacts:
        from services.engine.vllm.frontend.facts import engine_facts

        if kv["groups"] != 1:
            raise ValueError(f"its KV cache has {kv['groups']} block lists per request; only one can be handed over")
        return engine_facts(self._model_dir, self._config, launched.vllm_config, kv, self._epoch)

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0, 0, 0, 0) if self._messages is None else self._messages.load

    async def scheduling_figures(self) -> dict[str, float]:
        """Return how scheduling in EngineCore has gone so far; see `SchedulingFigures`.

        Raises:
            EngineDeadError: the engine is not running.
        """
        core, _, _ = self._require_alive()
        try:
            figures: dict[str, float] = await core.call("scheduling_figures")
        except CoreDeadError as error:
            raise EngineDeadError(str(error)) from error
        return figures

    async def submit(self, request: EngineRequest) -> None:
        core, kv, facts = self._require_alive()
        if request.request_id in self._live:
            self._events.put_nowait(RequestRejected(request.request_id, True, "request_id is in use"))
            return
        core_id = f"{self._epoch}-{next(self._numbers)}"
        try:
            work = core.request(request, core_id, facts)
        except UnservableRequestError as error:
            self._events.put_nowait(RequestRejected(request.request_id, True, str(error)))
            return
        live = LiveRequest(request, core_id, _now_s())
        self._live.add(live)
        if request.kv_source is None:
            await self._add(core, live, work)
        else:
            self._spawn(self._claim_and_add(core, kv, live, work, request.kv_source))

    async def _add(self, core: CoreClient, live: LiveRequest, work: EngineCoreRequest) -> None:
        await self._order(core.add(work))
        live.in_core = True
        if live.aborted:
            await self._order(core.abort(live.core_id))

    async def _order(self, order: Awaitable[object]) -> None:
        """Give EngineCore an order. If it is dead, `events` says so."""
        try:
            await order
        except CoreDeadError as error:
            self._die(str(error))

    async def _claim_and_add(
        self,
        core: CoreClient,
        kv: VllmHandOver,
        live: LiveRequest,
        work: EngineCoreRequest,
        source: KvHandle,
    ) -> None:
        try:
            claim = await kv.claim(source, live.request.token_ids, live.submitted_at_s)
            live.claim = claim
            work.sampling_params.extra_args["kv_transfer_params"] = claim.terms.to_vllm(claim.deadline_s)
        except ClaimRefusedError as error:
            live.recompute(str(error))
        if live.aborted:
            self._live.forget(live)
            if self._messages is not None:
                self._events.put_nowait(self._messages.without_computation((aborted(live, _now_s()),)))
        else:
            await self._add(core, live, work)

    async def abort(self, request_id: str) -> None:
        live = self._live.find(request_id)
        if live is None or live.aborted:
            return
        live.aborted = True
        if live.in_core and self._core is not None and self._dead is None:
            await self._order(self._core.abort(live.core_id))

    async def release_kv(self, lease_id: str) -> None:
        if self._kv is not None:
            self._kv.release(lease_id)

    def _free_in_core(self, lease: VllmLease, outcome: LeaseOutcome) -> None:
        if self._core is not None and self._dead is None and not self._closed:
            self._spawn(self._release_in_core(self._core, lease.lease_id))

    async def _release_in_core(self, core: CoreClient, lease_id: str) -> None:
        await self._order(core.call("release_lease", lease_id))

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
        for live in self._live:
            live.end_claim()
        await processes.stop(self._launched, self._launcher, self._config.shutdown_s)
        self._events.put_nowait(None)

    async def _pump(self, core: CoreClient, messages: CoreMessages) -> None:
        try:
            while True:
                for event in messages.events(await core.next_message()):
                    self._events.put_nowait(event)
        except CoreDeadError as error:
            self._die(str(error))

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

    def _require_alive(self) -> tuple[CoreClient, VllmHandOver, EngineFacts]:
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        if self._core is None or self._kv is None or self._facts is None or self._closed:
            raise EngineDeadError("the engine was not started, or was shut down")
        return self._core, self._kv, self._facts


def _now_s() -> float:
    return asyncio.get_running_loop().time()
