"""The prompts that wait in the router, and when each is given to its worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.admission.committed_loads import CommittedLoads
from router.cluster import commands
from router.cluster.cluster_view import SUBMISSION_S, ClusterView, WorkerView
from router.cluster.links import WorkerLink
from router.cluster.memory import MemoryPromises
from router.cluster.prefixes import PrefixIndex
from router.dispatch import capacity
from router.dispatch.lifecycle import Lifecycle
from router.requests.live_request import LiveRequest
from router.requests.request_index import Requests
from services.slo.latency_forecast import Placement
from services.state.journal_entry import RequestState


class PromptQueue:
    """Gives queued prompts to workers as far as these have room. Owned by the router's event loop."""

    def __init__(
        self,
        cluster: ClusterView,
        requests: Requests,
        memory: MemoryPromises,
        loads: CommittedLoads,
        prefixes: PrefixIndex,
        links: Mapping[str, WorkerLink],
        life: Lifecycle,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._requests = requests
        self._memory = memory
        self._loads = loads
        self._prefixes = prefixes
        self._links = links
        self._life = life
        self._clock = clock

    def accept(self, request: LiveRequest) -> None:
        """Queue an admitted request."""
        self._life.enter(request, RequestState.QUEUED)
        self.fill(request.placement.prefill_worker_id)

    def give_room(self, request: LiveRequest, placement: Placement) -> None:
        """Give a best-effort request room in the plan, if it is still queued."""
        if request.state is RequestState.QUEUED:
            self._life.give_room(request, placement)
            self.fill(placement.prefill_worker_id)

    def fill_all(self) -> None:
        """Give queued prompts to every connected worker."""
        for worker_id in list(self._links):
            self.fill(worker_id)

    def fill(self, worker_id: str) -> None:
        """Give queued prompts to one worker, in order of due time; those without room in the plan come last."""
        worker = self._cluster.workers.get(worker_id)
        if worker is None or not self._cluster.usable(worker_id):
            return
        full: set[str] = set()
        now_s = self._clock()
        for request in sorted(self._requests.awaiting(worker_id), key=lambda request: not request.planned):
            there = self._cluster.workers.get(request.decode_worker_id)
            if there is None or there.worker_id in full or not self._prefill_room(worker, request, now_s):
                continue
            if self._decode_room(there, request):
                self._submit(worker, request, now_s)
            else:
                full.add(there.worker_id)

    def _prefill_room(self, worker: WorkerView, request: LiveRequest, now_s: float) -> bool:
        return capacity.prefill_room(worker, self._requests, request, now_s)

    def _decode_room(self, worker: WorkerView, request: LiveRequest) -> bool:
        return capacity.decode_room(worker, self._requests, self._loads, request)

    def _submit(self, worker: WorkerView, request: LiveRequest, now_s: float) -> None:
        """Give one prompt to a worker; the worker exports its KV cache if another worker is to decode."""
        if worker.load.running_requests == 0 and not self._requests.prefilling_count(worker.worker_id):
            worker.step_began_s = now_s + SUBMISSION_S
        holders = dict(self._prefixes.holders(request.parsed.prompt, worker.facts.compatibility.block_tokens))
        request.submit_prompt(worker.worker_id, holders.get(worker.worker_id, 0), now_s)
        ends_here = request.parsed.sampling.max_tokens - len(request.generated) <= 1
        export_kv = not (ends_here or request.placement.local)
        command = commands.submit(request, now_s, self._memory.of(request), export_kv=export_kv)
        self._links[worker.worker_id].send(command)
        self._life.enter(request, RequestState.PREFILLING)
