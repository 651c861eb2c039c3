"""The prompts that wait in the router, and when each is given to its worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.cluster import commands
from router.cluster.links import WorkerLink
from router.dispatch.lifecycle import Lifecycle
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from services.slo.admission import AdmissionCore
from services.slo.latency_forecast import Placement
from services.state.journal_entry import RequestState


class PromptQueue:
    """Gives queued prompts to workers when the admission core says so. Owned by the router's event loop."""

    def __init__(
        self,
        core: AdmissionCore,
        requests: LiveRequests,
        links: Mapping[str, WorkerLink],
        life: Lifecycle,
        clock: Callable[[], float],
    ) -> None:
        self._core = core
        self._requests = requests
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
        """Give queued prompts to one worker, as far as there is room for them."""
        now_s = self._clock()
        for submission in self._core.to_submit(worker_id, now_s):
            request = self._requests.get(submission.request.facts.request_id)
            if request is not None:
                self._submit(worker_id, request, submission.believed_cached_tokens, now_s)

    def _submit(self, worker_id: str, request: LiveRequest, cached_tokens: int, now_s: float) -> None:
        """Give one prompt to a worker; the worker exports its KV cache if another worker is to decode."""
        request.submit_prompt(worker_id, cached_tokens, now_s)
        ends_here = request.parsed.sampling.max_tokens - len(request.generated) <= 1
        export_kv = not (ends_here or request.placement.local)
        command = commands.submit(request, now_s, self._core.promised_kv_tokens(request), export_kv=export_kv)
        self._links[worker_id].send(command)
        self._life.enter(request, RequestState.PREFILLING)
