"""The parts of a router that decide about requests and move them, built in the order in which they need each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from router.admission.admission_loop import AdmissionLoop
from router.admission.quota_accounts import QuotaCharges, TenantAccounts
from router.admission.quota_desk import QuotaDesk
from router.admission.record_files import RecordFiles
from router.cluster.cluster_view import ClusterView
from router.cluster.links import WorkerLink
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.journal_writer import JournalWriter
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.outputs import Outputs
from router.dispatch.prompt_queue import PromptQueue
from router.observability.counters import Counters
from router.observability.history import History
from router.requests.events import RequestEvents, RequestObserver
from router.requests.live_requests import LiveRequests
from services.config.settings import RouterSettings, Settings
from services.config.tenants import TenantSettings
from services.slo.admission import AdmissionCore, AdmissionOptions
from services.slo.quotas import Quota
from services.state.connection import StateConnection
from services.state.journal import RequestJournal
from services.state.quotas import SharedQuotas
from services.telemetry.catalogue import router as catalogue
from services.telemetry.meters import Meters


@dataclass(frozen=True, slots=True)
class RouterParts:
    """The parts that a router process connects to its server and its links. Nothing inside the parts refers to this."""

    cluster: ClusterView
    requests: LiveRequests
    counters: Counters
    history: History
    events: RequestEvents
    core: AdmissionCore
    life: Lifecycle
    queue: PromptQueue
    rounds: AdmissionLoop
    dispatcher: Dispatcher


def build_parts(
    options: RouterSettings,
    tenants: Mapping[str, TenantSettings],
    model_name: str,
    journal: RequestJournal,
    clock: Callable[[], float],
    *observers: RequestObserver,
    record: RecordFiles | None = None,
) -> RouterParts:
    """Return the parts of one router.

    Args:
        tenants: options of tenants by name.
        clock: seconds on a clock that never runs backwards.
        observers: told of events after the counters and the history.
        record: where what admission is told and answers is written; None: nowhere.
    """
    chosen = admission_options(options, tenants)
    core = AdmissionCore(chosen) if record is None else record.core(chosen)
    cluster, requests = ClusterView(model_name, core), LiveRequests()
    links: dict[str, WorkerLink] = {}
    counters, history = Counters(), History()
    events = RequestEvents(counters, history, *observers, JournalWriter(journal, cluster))
    life = Lifecycle(cluster, core, requests, links, options.max_restarts, clock, events)
    queue = PromptQueue(core, requests, links, life, clock)
    rounds = AdmissionLoop(core, cluster, requests, queue.give_room, clock, events)
    outputs = Outputs(cluster, core, requests, links, life, rounds, events)
    dispatcher = Dispatcher(
        cluster, core, requests, links, life, queue, outputs, rounds, events, options.no_worker_patience_s, clock
    )
    return RouterParts(cluster, requests, counters, history, events, core, life, queue, rounds, dispatcher)


def build_quota_desk(
    settings: Settings,
    state: StateConnection,
    router_id: str,
    processes: int,
    meters: Meters,
    over_quota: Callable[[str, Quota], None],
) -> QuotaDesk:
    """Return the desk that keeps tenants to the quotas of a configuration.

    Args:
        processes: router processes that share the port.
        over_quota: told the name of the account and the quota whenever something is not let through.
    """
    accounts = TenantAccounts(settings.tenants)
    shared = SharedQuotas(state, settings.redis.prefix, router_id)
    charges = QuotaCharges(shared, accounts, time.monotonic, settings.router.quota_patience_s, processes)
    meters.observe_one(catalogue.QUOTAS_ALONE, lambda: int(charges.alone))
    return QuotaDesk(accounts, charges, time.monotonic, over_quota)


def admission_options(options: RouterSettings, tenants: Mapping[str, TenantSettings]) -> AdmissionOptions:
    """Return the options of the admission core that a configuration names; all others are the defaults.

    A field of the configuration is the option of the same name, or the one that `_OPTION_OF` says.

    Args:
        tenants: options of tenants by name, of which admission takes the weights.
    """
    named = {_OPTION_OF.get(name, name): getattr(options, name) for name in type(options).model_fields}
    given = {each.name: named[each.name] for each in fields(AdmissionOptions) if each.name in named}
    return AdmissionOptions(**given, tenant_weights=tuple((name, tenant.weight) for name, tenant in tenants.items()))


_OPTION_OF = {"room_for_newcomers": "headroom_requests", "admission_price": "cost_threshold"}
"""Options of the admission core by the fields of the configuration that have other names than they."""
