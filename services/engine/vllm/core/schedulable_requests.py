"""The step composer's view of vLLM's requests."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.engine.vllm.shared.carried_output import carried_tokens
from services.engine.vllm.shared.contracts import (
    CONTRACT_KEY,
    EngineContract,
    MalformedContractError,
    contract_from_wire,
)
from services.slo.composer import SchedulableRequest, TokenDeadlines
from services.slo.due_times import next_due_s
from services.slo.kv_blocks import blocks_for

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WaitingStates:
    """The values of vLLM's `RequestStatus` of those waiting requests that the composer may admit.

    vLLM passes over requests in any other state, whatever the composer says. The values are handed in, so that this
    module can be loaded without vLLM.
    """

    fresh: object
    """State of a request that has yet to begin."""
    preempted: object
    """State of a request that has given up its blocks."""
    pulling: object
    """State of a request whose KV cache is on its way from another engine, or has landed and not run yet."""


@dataclass(slots=True)
class _Entry:
    """One live request, in the composer's terms and in vLLM's."""

    deadlines: TokenDeadlines
    application: str
    schedulable: SchedulableRequest
    request: Request
    cached_tokens: int | None = None
    """Number of tokens that a waiting request would find in the prefix cache; None until it has been looked for."""


class SchedulableRequests:
    """Keeps one `SchedulableRequest` for each live request, and brings it up to date between steps."""

    def __init__(self, block_tokens: int, states: WaitingStates, counts: Counter[str]) -> None:
        """
        Args:
            counts: counts `contracts_missing` and `contracts_malformed`, requests treated as best effort for that.
        """
        self._block_tokens = block_tokens
        self._pulling = states.pulling
        self._ready = (states.fresh, states.preempted, states.pulling)
        self._counts = counts
        self._entries: dict[str, _Entry] = {}

    def begin(self, request: Request, now_s: float) -> None:
        """Take in a request that has come to the engine, with the contract that came along."""
        contract = self._contract(request, now_s)
        deadlines = contract.deadlines
        # The rate of a request that ends with its first token is kept elsewhere.
        tpot_s = math.inf if request.max_tokens == 1 else deadlines.tpot_s
        schedulable = SchedulableRequest(
            request_id=request.request_id,
            computed_tokens=0,
            pending_tokens=max(1, request.num_tokens),
            decoding=False,
            running=False,
            held_blocks=0,
            due_s=deadlines.due_s,
            tpot_s=tpot_s,
            best_effort=contract.best_effort,
            waiting_since_s=now_s,
        )
        self._entries[request.request_id] = _Entry(deadlines, contract.application, schedulable, request)

    def end(self, request_id: str) -> None:
        """Forget a request. Unknown ones are ignored."""
        self._entries.pop(request_id, None)

    def note_tokens(self, request_id: str, count: int, now_s: float) -> None:
        """Move a request's due time on for tokens that came, unless the request has ended since."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.deadlines.note_tokens(count, now_s)
            entry.schedulable.due_s, entry.schedulable.wanted_s = entry.deadlines.due_s, entry.deadlines.wanted_s

    def tpot_s(self, request_id: str) -> float:
        """Return the TPOT that a request was promised; infinite without a promise, or once the request has ended."""
        entry = self._entries.get(request_id)
        return math.inf if entry is None else entry.schedulable.tpot_s

    def due_s(self, request_id: str) -> float:
        """Return when a request's next token is due; infinite without a promise, or once the request has ended."""
        entry = self._entries.get(request_id)
        return math.inf if entry is None else entry.schedulable.due_s

    def application(self, request_id: str) -> str:
        """Return which application a live request says that it belongs to."""
        return self._entries[request_id].application

    def best_effort(self, request_id: str) -> bool:
        """Return whether a live request must make no promised one late."""
        return self._entries[request_id].schedulable.best_effort

    def pending_tokens(self, request_id: str) -> int:
        """Return how many tokens of a live request are to be computed before its next one can be drawn."""
        return self._entries[request_id].schedulable.pending_tokens

    def brought_up_to_date(self, scheduler: Scheduler) -> Sequence[SchedulableRequest]:
        """Return all that could be part of the scheduler's next step, or holds blocks that somebody else could use."""
        entries, ready = self._entries, self._ready
        found = []
        for request in scheduler.running:
            entry = entries[request.request_id]
            self._update_running(entry)
            found.append(entry.schedulable)
        for request in scheduler.kv_holding_waiting:
            if request.status in ready:
                entry = entries[request.request_id]
                self._update_landing(entry, scheduler)
                found.append(entry.schedulable)
        for request in scheduler.waiting:
            if request.status in ready:
                entry = entries[request.request_id]
                self._update_waiting(entry, scheduler)
                found.append(entry.schedulable)
        return found

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

    def _update_running(self, entry: _Entry) -> None:
        request, schedulable = entry.request, entry.schedulable
        computed = request.num_computed_tokens
        ahead = request.num_output_placeholders
        schedulable.computed_tokens = computed
        schedulable.held_blocks = blocks_for(computed, self._block_tokens)
        schedulable.running = True
        schedulable.pulls_kv = schedulable.pinned = False
        schedulable.draft_tokens = len(request.spec_token_ids)
        schedulable.decoding = not request.is_prefill_chunk
        schedulable.pending_tokens = max(1, request.num_tokens + ahead - computed)
        if ahead:
            # Tokens of the step under way are counted as if they had come.
            schedulable.due_s = next_due_s(entry.deadlines.due_s, ahead, entry.deadlines.tpot_s)
        entry.cached_tokens = None

    def _update_landing(self, entry: _Entry, scheduler: Scheduler) -> None:
        """Update a request whose KV cache is on its way, or has landed and not run yet."""
        request, schedulable = entry.request, entry.schedulable
        computed = min(request.num_computed_tokens, request.num_tokens - 1)
        schedulable.computed_tokens = computed
        schedulable.pending_tokens = request.num_tokens - computed
        schedulable.held_blocks = blocks_for(request.num_computed_tokens, self._block_tokens)
        schedulable.running = True
        schedulable.decoding = False
        schedulable.draft_tokens = 0
        landed = request.request_id in scheduler.finished_recving_kv_req_ids
        schedulable.pulls_kv = request.status == self._pulling and not landed
        # vLLM takes blocks from the running only.
        schedulable.pinned = True

    def _update_waiting(self, entry: _Entry, scheduler: Scheduler) -> None:
        request, schedulable = entry.request, entry.schedulable
        if entry.cached_tokens is None:
            entry.cached_tokens = scheduler.kv_cache_manager.get_computed_blocks(request)[1]
        params = request.kv_transfer_params
        schedulable.pulls_kv = bool(params and params.get("do_remote_prefill"))
        remote = params.get("remote_num_tokens", 0) if schedulable.pulls_kv and params else 0
        computed = min(max(entry.cached_tokens, remote), request.num_tokens - 1)
        schedulable.computed_tokens = computed
        schedulable.pending_tokens = request.num_tokens - computed
        schedulable.held_blocks = 0
        schedulable.running = schedulable.decoding = schedulable.pinned = False
        schedulable.draft_tokens = 0
