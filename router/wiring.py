"""The parts of a router that decide about requests and move them, built in the order in which they need each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router.admission.admission_loop import AdmissionLoop
from router.admission.assessment import Admission
from router.admission.committed_loads import CommittedLoads
from router.admission.planning_view import PlanningView
from router.cluster.cluster_view import ClusterView
from router.cluster.links import WorkerLink
from router.cluster.memory import MemoryPromises
from router.cluster.prefixes import PrefixIndex
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.journal_writer import JournalWriter
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.outputs import Outputs
from router.dispatch.prompt_queue import PromptQueue
from router.observability.counters import Counters
from router.observability.history import History
from router.requests.events import RequestEvents, RequestObserver
from router.requests.request_index import Requests
from services.config.settings import RouterSettings
from services.slo.transfer import SHARED_MEMORY_LINK, Handovers
from services.state.journal import RequestJournal


@dataclass(frozen=True, slots=True)
class RouterParts:
    """The parts that a router process connects to its server and its links. Nothing inside the parts refers to this."""

    cluster: ClusterView
    requests: Requests
    counters: Counters
    history: History
    events: RequestEvents
    admission: Admission
    life: Lifecycle
    queue: PromptQueue
    rounds: AdmissionLoop
    dispatcher: Dispatcher


def build_parts(
    options: RouterSettings,
    model_name: str,
    journal: RequestJournal,
    clock: Callable[[], float],
    *observers: RequestObserver,
) -> RouterParts:
    """Return the parts of one router.

    Args:
        clock: seconds on a clock that never runs backwards.
        observers: told of events after the counters and the history.
    """
    cluster, requests, memory = ClusterView(model_name, options.local_prefill), Requests(), MemoryPromises()
    handovers, prefixes = Handovers(SHARED_MEMORY_LINK), PrefixIndex()
    loads = CommittedLoads(requests, memory)
    links: dict[str, WorkerLink] = {}
    counters, history = Counters(), History()
    events = RequestEvents(counters, history, *observers, JournalWriter(journal, cluster))
    view = PlanningView(
        requests,
        memory,
        loads,
        handovers,
        prefixes,
        options.local_prefill,
        options.room_for_newcomers,
        options.admission_price,
    )
    admission = Admission(cluster, view, options.best_effort_patience_s)
    life = Lifecycle(cluster, requests, memory, links, options.max_restarts, clock, events)
    queue = PromptQueue(cluster, requests, memory, loads, prefixes, links, life, clock)
    rounds = AdmissionLoop(admission, queue.give_room, clock, options.max_hold_s, events)
    outputs = Outputs(cluster, requests, memory, handovers, prefixes, links, life, rounds, events)
    dispatcher = Dispatcher(
        cluster, requests, links, life, queue, outputs, rounds, events, options.no_worker_patience_s, clock
    )
    return RouterParts(cluster, requests, counters, history, events, admission, life, queue, rounds, dispatcher)
