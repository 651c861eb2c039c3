"""vLLM's requests as the step composer sees them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.request import RequestStatus

from services.engine.kv.blocks import blocks_for
from services.engine.vllm.shared.carried_output import carried_tokens
from services.engine.vllm.shared.contracts import (
    CONTRACT_KEY,
    EngineContract,
    MalformedContractError,
    contract_from_wire,
)
from services.slo.composer import SchedulableRequest, TokenDeadlines
from services.slo.due_times import next_due_s

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    promise: TokenDeadlines
    application: str
    work: SchedulableRequest
    request: Request
    cached_tokens: int | None = None
    """Of a waiting request: tokens found in the prefix cache when it was last looked for."""


class SchedulableRequests:
    """One `SchedulableRequest` for each live request, brought up to date between steps."""

    def __init__(self, block_tokens: int, counts: Counter[str]) -> None:
        """
        Args:
            counts: gets `contracts_missing` and `contracts_malformed`, requests treated as best effort for that.
        """
        self._block_tokens = block_tokens
        self._counts = counts
        self._entries: dict[str, _Entry] = {}

    def begin(self, request: Request, now_s: float) -> None:
        contract = self._contract(request, now_s)
        promise = contract.promise
        # The rate of a request that ends with its first token is kept elsewhere.
        tpot_s = math.inf if request.max_tokens == 1 else promise.tpot_s
        work = SchedulableRequest(
            request_id=request.request_id,
            computed_tokens=0,
            pending_tokens=max(1, request.num_tokens),
            decoding=False,
            running=False,
            held_blocks=0,
            due_s=promise.due_s,
            tpot_s=tpot_s,
            best_effort=contract.best_effort,
            waiting_since_s=now_s,
        )
        self._entries[request.request_id] = _Entry(promise, contract.application, work, request)

    def _contract(self, request: Request, now_s: float) -> EngineContract:
        params = request.sampling_params
        wire = None if params is None else (params.extra_args or {}).get(CONTRACT_KEY)
        if wire is None:
            self._counts["contracts_missing"] += 1
            return EngineContract()
        try:
            return contract_from_wire(wire, carried_tokens(params), now_s)
        except MalformedContractError as error:
            self._counts["contracts_malformed"] += 1
            log.warning("request %s is treated as best effort: %s", request.request_id, error)
            return EngineContract()

    def end(self, request_id: str) -> None:
        self._entries.pop(request_id, None)

    def note_tokens(self, request_id: str, count: int, now_s: float) -> None:
        """Tokens came, unless the request has ended since."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.promise.note_tokens(count, now_s)
            entry.work.due_s, entry.work.wanted_s = entry.promise.due_s, entry.promise.wanted_s

    def tpot_s(self, request_id: str) -> float:
        entry = self._entries.get(request_id)
        return math.inf if entry is None else entry.work.tpot_s

    def due_s(self, request_id: str) -> float:
        entry = self._entries.get(request_id)
        return math.inf if entry is None else entry.work.due_s

    def application(self, request_id: str) -> str:
        return self._entries[request_id].application

    def best_effort(self, request_id: str) -> bool:
        return self._entries[request_id].work.best_effort

    def pending_tokens(self, request_id: str) -> int:
        return self._entries[request_id].work.pending_tokens

    def brought_up_to_date(self, scheduler: Scheduler) -> Sequence[SchedulableRequest]:
        """All that could be part of the scheduler's next step, or holds blocks that somebody else could use."""
        entries = self._entries
        works = []
        for request in scheduler.running:
            entry = entries[request.request_id]
            self._running(entry)
            works.append(entry.work)
        for request in scheduler.kv_holding_waiting:
            if _may_become_ready(request):
                entry = entries[request.request_id]
                self._landing(entry, scheduler)
                works.append(entry.work)
        for request in scheduler.waiting:
            if _may_become_ready(request):
                entry = entries[request.request_id]
                self._waiting(entry, scheduler)
                works.append(entry.work)
        return works

    def _running(self, entry: _Entry) -> None:
        request, work = entry.request, entry.work
        computed = request.num_computed_tokens
        ahead = request.num_output_placeholders
        work.computed_tokens = computed
        work.held_blocks = blocks_for(computed, self._block_tokens)
        work.running = True
        work.pulls_kv = False
        work.pinned = False
        drafts = len(request.spec_token_ids)
        work.draft_tokens = drafts
        work.decoding = not request.is_prefill_chunk
        work.pending_tokens = max(1, request.num_tokens + ahead - computed)
        if ahead:
            # Tokens of the step under way are counted as if they had come.
            work.due_s = next_due_s(entry.promise.due_s, ahead, entry.promise.tpot_s)
        entry.cached_tokens = None

    def _landing(self, entry: _Entry, scheduler: Scheduler) -> None:
        """Its KV is on its way, or has landed and not run yet."""
        request, work = entry.request, entry.work
        pulling = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        computed = min(request.num_computed_tokens, request.num_tokens - 1)
        work.computed_tokens = computed
        work.pending_tokens = request.num_tokens - computed
        work.held_blocks = blocks_for(request.num_computed_tokens, self._block_tokens)
        work.running = True
        work.decoding = False
        work.draft_tokens = 0
        work.pulls_kv = pulling and request.request_id not in scheduler.finished_recving_kv_req_ids
        # vLLM takes blocks from the running only.
        work.pinned = True

    def _waiting(self, entry: _Entry, scheduler: Scheduler) -> None:
        request, work = entry.request, entry.work
        if entry.cached_tokens is None:
            entry.cached_tokens = scheduler.kv_cache_manager.get_computed_blocks(request)[1]
        params = request.kv_transfer_params
        work.pulls_kv = bool(params and params.get("do_remote_prefill"))
        remote = params.get("remote_num_tokens", 0) if work.pulls_kv and params else 0
        computed = min(max(entry.cached_tokens, remote), request.num_tokens - 1)
        work.computed_tokens = computed
        work.pending_tokens = request.num_tokens - computed
        work.held_blocks = 0
        work.running = work.decoding = work.pinned = False
        work.draft_tokens = 0


def _may_become_ready(request: Request) -> bool:
    """Blocked otherwise than by its KV, vLLM passes it over whatever we say."""
    return request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED, RequestStatus.WAITING_FOR_REMOTE_KVS)
