"""The admission core: it is told what happens in a cluster, and answers who is guaranteed and where everything runs.

Router and simulator call the same core. It does no I/O and reads no clock: every call that depends on time takes it as
an argument, and equal calls in the same order give equal answers, which is what a recording is replayed by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random

from services.slo.admission.assessment import Assessment, Held, Unservable
from services.slo.admission.assessor import Assessor
from services.slo.admission.committed_loads import CommittedLoads
from services.slo.admission.fair_shares import FairShares
from services.slo.admission.handover_learning import learn_handover
from services.slo.admission.idle_cluster import IdleCluster
from services.slo.admission.index import RequestIndex
from services.slo.admission.kv_forecasts import KvForecasts, LengthForecasts
from services.slo.admission.other_work import NO_OTHERS, OtherWork
from services.slo.admission.patience import RoomGiven, aged, room_for
from services.slo.admission.pending import (
    AdmissionRound,
    RequestVerdict,
    could_be_promised,
    note_arrival,
    note_cost,
    outcome_of,
)
from services.slo.admission.planner_view import PlannerView
from services.slo.admission.prefixes import PrefixIndex
from services.slo.admission.promise_wanted import PromiseWanted
from services.slo.admission.requests import Arrival, Progress, TrackedRequest
from services.slo.admission.share_keeping import ShareKeeper
from services.slo.admission.step_under_way import under_way
from services.slo.admission.submission import Submission, prompts_to_submit
from services.slo.admission.workers import IDLE, Cluster, StepTimes, WorkerFacts, WorkerLoad
from services.slo.admission_options import DEFAULT_OPTIONS, AdmissionOptions
from services.slo.latency_forecast import Placement
from services.slo.lengths import OutputLengths
from services.slo.performance import StepShape
from services.slo.planner import ArrivalSample, CostThreshold
from services.slo.transfer import SHARED_MEMORY_LINK, Handovers, TransferModel


class AdmissionCore:
    """Decides about requests, given what it was told of workers and requests. Owned by one event loop.

    A request that finds no room now, but would within `max_hold_s` and in time for its contract, is planned again until
    then. Best effort that has waited for its patience is planned like a promise, without being called one: it cannot
    starve.
    """

    def __init__(
        self,
        options: AdmissionOptions = DEFAULT_OPTIONS,
        *,
        link: TransferModel = SHARED_MEMORY_LINK,
        lengths: LengthForecasts | None = None,
        seed: int = 0,
    ) -> None:
        """Make a core that knows no worker and no request.

        Args:
            link: how KV caches are expected to move until some have.
            lengths: forecasts of output lengths; by default they are learnt from outputs that ended.
            seed: of what is sampled.
        """
        self.options = options
        self.cluster = Cluster(local_prefill=options.local_prefill, coverage=options.step_coverage)
        self.requests = RequestIndex()
        self.memory = KvForecasts(lengths or OutputLengths())
        self.handovers = Handovers(link)
        self.prefixes = PrefixIndex()
        self._loads = CommittedLoads(self.requests, self.memory)
        self._view = PlannerView(options, self.requests, self.memory, self._loads, self.handovers)
        self._arrivals: ArrivalSample[PromiseWanted] = ArrivalSample(_cost)
        self._threshold = CostThreshold()
        self.shares = FairShares(dict(options.tenant_weights))
        self._assessor = Assessor(
            self.cluster,
            self._view,
            self.prefixes,
            self._arrivals,
            self._threshold,
            Random(seed),
            IdleCluster(self.cluster),
            self.shares,
        )
        self._keeper = ShareKeeper(self.shares, self.cluster, self.memory, self.prefixes)
        self._pending: dict[str, Arrival] = {}
        self._noted: set[str] = set()
        """Pending requests that the sample of arrivals has."""
        self._next_round_s = -math.inf
        self._rounds = 0

    @classmethod
    def restored(cls, state: Mapping[str, object]) -> AdmissionCore:
        """Return a core in a state that another core was in.

        Args:
            state: attributes of the other core.
        """
        core = cls.__new__(cls)
        vars(core).update(state)
        return core

    # Told about workers.

    def joined(self, facts: WorkerFacts, load: WorkerLoad = IDLE, times: StepTimes | None = None) -> None:
        """Take note of a worker that is connected; one of the same id is replaced, and forgotten."""
        self._forget(facts.worker_id)
        self.cluster.join(facts, load, times)

    def left(self, worker_id: str) -> None:
        """Take note that a worker is gone, and forget what is known of it."""
        self.cluster.leave(worker_id)
        self._forget(worker_id)

    def _forget(self, worker_id: str) -> None:
        self._view.forget(worker_id)
        self.prefixes.forget(worker_id)

    def drains(self, worker_id: str) -> None:
        """Take note that a worker takes nothing new."""
        self.cluster.drain(worker_id)

    def stepped(
        self,
        worker_id: str,
        shape: StepShape,
        duration_s: float,
        load: WorkerLoad,
        now_s: float,
        others: OtherWork = NO_OTHERS,
    ) -> None:
        """Take note of an engine step that has ended."""
        worker = self.cluster.workers[worker_id]
        worker.stepped(shape, duration_s, now_s)
        worker.told(load, others, now_s)

    def loaded(self, worker_id: str, load: WorkerLoad, now_s: float, others: OtherWork = NO_OTHERS) -> None:
        """Take note of what a worker tells between steps."""
        self.cluster.workers[worker_id].told(load, others, now_s)

    # Told about requests.

    def arrived(self, arrival: Arrival) -> None:
        """Take note of a request that wants a verdict: the next round decides about it."""
        self._pending[arrival.request_id] = arrival

    def withdrawn(self, request_id: str) -> bool:
        """Forget a request that waits for its verdict. Returns whether one of this id did."""
        self._noted.discard(request_id)
        return self._pending.pop(request_id, None) is not None

    def filed(self, request: TrackedRequest) -> None:
        """Take note that an admitted request is new, or that its progress, its place or its rank has changed."""
        self.requests.file(request)

    def grew(self, worker_id: str, tokens: int) -> None:
        """Take note that streams on a worker have produced so many tokens more.

        Only requests that were last filed as decoding count.
        """
        self.requests.grew(worker_id, tokens)

    def removed(self, request: TrackedRequest, *, complete: bool) -> None:
        """Take note that a request has ended.

        Args:
            complete: it ended by itself; false if a limit, a cancellation or a failure cut it off.
        """
        self.memory.ended(request, complete=complete)
        self.requests.remove(request.facts.request_id)

    def stopping(self, request: TrackedRequest, now_s: float) -> None:
        """Take note that the worker of a request is told to let go of it: the step under way goes on all the same."""
        worker = self.cluster.workers.get(request.prompt_worker_id)
        if worker is not None and request.progress is Progress.PREFILLING:
            given = self.requests.prefilling(worker.worker_id)
            left_s, _ = under_way(worker, given, self.requests, self.options.submission_s, now_s)
            worker.stopped_step_ends_s = now_s + left_s

    def prompt_computed(self, request: TrackedRequest, believed_tokens: int, cached_tokens: int) -> None:
        """Take note that a worker has computed a prompt.

        Args:
            believed_tokens: tokens of it that the worker was thought to have cached.
            cached_tokens: tokens that it did have.
        """
        worker = self.cluster.workers[request.prompt_worker_id]
        facts = worker.facts
        self.prefixes.computed(
            facts.worker_id,
            request.facts.blocks,
            facts.limits.block_tokens,
            facts.kv_blocks,
            believed_tokens,
            cached_tokens,
        )

    def handed_over(
        self, request: TrackedRequest, kv_bytes: int, transfer_s: float, wait_s: float, now_s: float
    ) -> None:
        """Take note that a request goes on where its KV cache was pulled to.

        Args:
            transfer_s: seconds that the pull took.
            wait_s: seconds from the hand-over to the first step there, the transfer included.
        """
        worker = self.cluster.workers[request.decode_worker_id]
        learn_handover(self.handovers, worker, self.requests, request, kv_bytes, transfer_s, wait_s, now_s)

    # Asked.

    @property
    def pending(self) -> int:
        """Number of requests without a verdict."""
        return len(self._pending)

    @property
    def next_round_s(self) -> float:
        """When the next round may be at the earliest."""
        return self._next_round_s

    def wants_round(self, now_s: float) -> bool:
        """Return whether a round could change anything."""
        return bool(self._pending) or bool(aged(self.requests, self._assessor, now_s))

    def decide(self, now_s: float) -> AdmissionRound:
        """Decide about every request without a verdict. All but the held ones are forgotten here.

        What is guaranteed counts from the moment at which the caller files it, which is before the next call.
        """
        self._rounds += 1
        arrivals = list(self._pending.values())
        answers = self._assessor.assess(arrivals, now_s, self.options.max_hold_s)
        verdicts = []
        replan_at_s = math.inf
        for arrival, answer in zip(arrivals, answers, strict=True):
            self._settle(arrival, answer, now_s)
            verdicts.append(RequestVerdict(arrival.request_id, outcome_of(answer), answer))
            if isinstance(answer, Held) and answer.replan_s is not None:
                replan_at_s = min(replan_at_s, now_s + max(answer.replan_s, self.options.coalesce_s))
        self._next_round_s = now_s + self.options.coalesce_s
        return AdmissionRound(self._rounds, now_s, tuple(verdicts), replan_at_s)

    def planning_took(self, began_s: float, planning_s: float) -> None:
        """Take note of what a round took: after a long one arrivals are gathered for longer."""
        self._next_round_s = began_s + max(self.options.coalesce_s, planning_s / self.options.planning_share)

    def assess(self, arrival: Arrival, now_s: float) -> Assessment | Unservable:
        """Return what would become of a request that is not to be taken."""
        (answer,) = self._assessor.assess([arrival], now_s)
        assert not isinstance(answer, Held)
        return answer

    def give_room(self, now_s: float) -> list[RoomGiven]:
        """Return the requests without a promise that have outwaited their patience and that room was found for."""
        waiting = aged(self.requests, self._assessor, now_s)
        return room_for(waiting, self._assessor, now_s) if waiting else []

    def place_again(self, request: TrackedRequest, now_s: float) -> Placement | Unservable:
        """Return where a request goes on whose worker is gone, or that is to be moved: its verdict stands."""
        return self._assessor.place_again(request, now_s)

    def to_submit(self, worker_id: str, now_s: float) -> Sequence[Submission]:
        """Return the prompts that wait for a worker and go there now, in order. The caller submits all of them."""
        worker = self.cluster.workers.get(worker_id)
        if worker is None or not self.requests.awaiting_count(worker_id) or not self.cluster.usable(worker_id):
            return ()
        chosen = prompts_to_submit(worker, self.cluster.workers, self.requests, self._loads, self.prefixes, now_s)
        if chosen and worker.load.running_requests == 0 and not self.requests.prefilling_count(worker_id):
            worker.step_began_s = now_s + self.options.submission_s
        return chosen

    def promised_kv_tokens(self, request: TrackedRequest) -> int:
        """Return the context tokens that a request is promised memory for now."""
        return self.memory.of(request)

    def planned_drafts(self, request: TrackedRequest) -> int:
        """Return how many tokens a stream drafts in each step, as its worker was last planned with."""
        return self._assessor.drafts_of(request.decode_worker_id, request.tightest_tpot_s)

    def _settle(self, arrival: Arrival, answer: Assessment | Held | Unservable, now_s: float) -> None:
        request_id = arrival.request_id
        if could_be_promised(answer) and request_id not in self._noted:
            self._noted.add(request_id)
            if self.options.fair_shares:
                self.shares.came(arrival.facts.tenant, arrival.contract.value, arrival.arrival_s)
            note_arrival(self._arrivals, arrival, answer, self._keeper.learn(arrival, answer, now_s))
        if isinstance(answer, Held):
            return
        if isinstance(answer, Assessment):
            note_cost(self._threshold, answer, now_s)
            if answer.guaranteed:
                self._keeper.promised(arrival, answer, now_s)
        self._noted.discard(request_id)
        del self._pending[request_id]


def _cost(wanted: PromiseWanted) -> float:
    return wanted.cost
