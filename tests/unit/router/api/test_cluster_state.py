"""What operators are told of the cluster: workers, warnings, and what became of recent requests."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.api.cluster_state import RECENT_S, SHOWN_TENANTS, SHOWN_TROUBLE, ClusterReporter
from router.observability.counters import Counters
from router.observability.history import History
from router.process_rank import ProcessRank
from router.requests.output_coalescer import OutputCoalescer
from router.requests.phases import Phase
from router.requests.planning_log import PlanningLog
from router.requests.request_record import Ending, RequestRecord, Targets
from services.engine.protocol import EngineLoad
from services.rpc.errors import NO_WORKERS
from services.slo.quotas import Quota, Standing
from services.state.registry import WorkerRecord, WorkerRole
from slos_serve.v1 import inference_pb2
from tests.unit.router.router_support import Desk

NOW_S = 50_000.0


def worker_record(worker_id: str, role: WorkerRole) -> WorkerRecord:
    return WorkerRecord(worker_id, role, f"{worker_id}:1", "7", {}, "m", emulated=True, metrics_address="page:9")


def ended(request_id: str, ending: Ending, ended_s: float, **more: Any) -> RequestRecord:
    record = RequestRecord(
        request_id=request_id,
        tenant="",
        application="",
        profile="chatbot",
        targets=Targets(None, None, ()),
        guaranteed=ending in (Ending.KEPT, Ending.MISSED),
        ending=ending,
        arrival_s=ended_s - 1.0,
        ended_s=ended_s,
        prompt_tokens=10,
        planning=PlanningLog(),
        phases_s={phase: float(number) for number, phase in enumerate(Phase, start=1)},
        broken_by=Phase.HANDOVER if ending is Ending.MISSED else None,
    )
    return replace(record, **more)


class Router:
    """Everything that a reporter reads."""

    def __init__(self, desk: Desk) -> None:
        self.now_s = NOW_S
        self.desk = desk
        self.registered: dict[str, WorkerRecord] = {}
        self.unproven: dict[str, str] = {}
        self.warnings: list[str] = []
        self.history = History()
        self.counters = Counters(received=9, kept=4)
        self.state = SimpleNamespace(connected=True, url="redis://here")
        self.coalescer = OutputCoalescer()
        self.quotas = SimpleNamespace(warning="", tenants=lambda: iter(self.tenants))
        self.tenants: list[tuple[str, tuple[Standing, ...]]] = []
        self.running, self.queued, self.held = 7, 3, 2

    def reporter(self) -> ClusterReporter:
        parts: dict[str, Any] = {
            "router_id": "router-1",
            "rank": ProcessRank(2, 3),
            "cluster": self.desk.cluster,
            "links": self,
            "requests": self,
            "admission_loop": self,
            "counters": self.counters,
            "history": self.history,
            "state": self.state,
            "coalescer": self.coalescer,
            "quotas": self.quotas,
            "clock": lambda: self.now_s,
        }
        return ClusterReporter(**parts)

    def __len__(self) -> int:
        return self.running

    def queued_count(self) -> int:
        return self.queued


@pytest.fixture
def router(desk: Desk) -> Router:
    return Router(desk)


def test_the_router_describes_itself(router: Router) -> None:
    reporter = router.reporter()
    reporter.console_url, reporter.metrics_address = "http://console", "page:1"
    router.now_s += 60.0
    state = reporter.message()
    assert (state.router_id, state.process, state.processes, state.model) == ("router-1", 2, 3, "m")
    assert (state.uptime_s, state.recent_s) == (60.0, RECENT_S)
    assert (state.queued_requests, state.running_requests, state.held_requests) == (3, 4, 2)
    assert (state.counters.received, state.counters.kept) == (9, 4)
    assert (state.console_url, state.metrics_address) == ("http://console", "page:1")
    assert (state.ready, state.redis_connected, list(state.warnings)) == (True, True, [])


def test_what_is_wrong_is_said_in_words(router: Router) -> None:
    router.state.connected = False
    router.coalescer.interval_s = 0.1
    router.desk.cluster.remove("d1")
    state = router.reporter().message()
    assert (state.ready, state.redis_connected) == (False, False)
    missing, redis, slow = state.warnings
    assert missing == "no decode worker is connected"
    assert redis == "Redis at redis://here is unreachable"
    assert "at its limit" in slow


def test_workers_are_sorted_and_those_not_yet_connected_are_connecting(router: Router) -> None:
    router.registered = {
        "d1": worker_record("d1", WorkerRole.DECODE),
        "p0": worker_record("p0", WorkerRole.PREFILL),
    }
    workers = router.reporter().message().workers
    assert [worker.worker_id for worker in workers] == ["p0", "p1", "d1"]
    connecting, unregistered, ready = workers
    assert connecting == inference_pb2.WorkerState(
        worker_id="p0",
        role=inference_pb2.WORKER_ROLE_PREFILL,
        address="p0:1",
        engine_epoch="7",
        health=inference_pb2.WORKER_HEALTH_CONNECTING,
        emulated=True,
        metrics_address="page:9",
    )
    assert (unregistered.health, unregistered.metrics_address) == (inference_pb2.WORKER_HEALTH_READY, "")
    assert (ready.role, ready.metrics_address) == (inference_pb2.WORKER_ROLE_DECODE, "page:9")


def test_a_worker_that_is_not_let_in_says_why(router: Router) -> None:
    router.registered = {"p0": worker_record("p0", WorkerRole.PREFILL)}
    router.unproven = {"p0": "its certificate has expired"}
    router.warnings = ["worker p0 gets no work: its certificate has expired"]
    state = router.reporter().message()
    assert list(state.warnings) == router.warnings
    shown = {worker.worker_id: worker for worker in state.workers}
    assert shown["p0"].detail == "its certificate has expired"
    assert shown["p0"].health == inference_pb2.WORKER_HEALTH_CONNECTING


def test_a_worker_is_draining_or_does_not_match(router: Router) -> None:
    prefill, decode = (router.desk.cluster.workers[name] for name in ("p1", "d1"))
    router.desk.cluster.drain("p1")
    prefill.load = EngineLoad(
        running_requests=1, waiting_requests=2, kv_blocks_total=30, kv_blocks_used=4, kv_blocks_leased=5
    )
    router.desk.cluster.drain("d1")
    decode.detail = "another model"
    shown = {worker.worker_id: worker for worker in router.reporter().message().workers}
    assert shown["p1"].health == inference_pb2.WORKER_HEALTH_DRAINING
    assert shown["d1"].health == inference_pb2.WORKER_HEALTH_INCOMPATIBLE
    assert shown["d1"].detail == "another model"
    figures = shown["p1"]
    assert (figures.running_requests, figures.waiting_requests) == (1, 2)
    assert (figures.kv_blocks_total, figures.kv_blocks_used, figures.kv_blocks_leased) == (30, 4, 5)


def test_recent_requests_are_summed_up_by_profile(router: Router) -> None:
    for number, ending in enumerate(
        [Ending.KEPT] * 3 + [Ending.MISSED] * 2 + [Ending.CANCELLED, Ending.FAILED, Ending.UNPROMISED]
    ):
        record = ended(f"r{number}", ending, NOW_S)
        router.history.windows.at(NOW_S).of("chatbot").add(record)
    router.history.windows.at(NOW_S - 2 * RECENT_S)
    (profile,) = router.reporter().message().profiles
    assert (profile.profile, profile.kept, profile.missed) == ("chatbot", 3, 2)
    assert (profile.best_effort, profile.cancelled, profile.failed) == (1, 1, 1)
    assert dict(profile.missed_in) == {Phase.HANDOVER.value: 2}
    assert (profile.mean_phases.queue_s, profile.mean_phases.plan_s) == (1.0, 2.0)
    router.now_s += 2 * RECENT_S
    assert not router.reporter().message().profiles, "so long ago is not recent"


def test_the_last_trouble_is_shown_however_long_ago(router: Router) -> None:
    for number in range(SHOWN_TROUBLE + 2):
        router.history.add(ended(f"m{number}", Ending.MISSED, NOW_S - 100.0 + number, restarts=number))
    router.history.add(
        ended("f", Ending.FAILED, NOW_S - 5.0, detail="broken", prefill_worker_id="p1", decode_worker_id="d1")
    )
    router.now_s += 10 * RECENT_S
    trouble = router.reporter().message().trouble
    assert len(trouble) == SHOWN_TROUBLE
    failed, missed = trouble[0], trouble[1]
    assert (failed.request_id, failed.what, failed.phase) == ("f", "broken", "")
    assert (failed.prefill_worker_id, failed.decode_worker_id) == ("p1", "d1")
    assert failed.ended_before_s == 10 * RECENT_S + 5.0
    assert (missed.request_id, missed.phase, missed.restarts) == ("m11", Phase.HANDOVER.value, 11)


def test_one_state_answers_everybody_who_asks_within_its_age(router: Router) -> None:
    reporter = router.reporter()
    first = reporter.recent(0.5)
    router.now_s += 0.5
    assert reporter.recent(0.5) is first
    router.now_s += 0.1
    later = reporter.recent(0.5)
    assert later.uptime_s == pytest.approx(first.uptime_s + 0.6)


def test_a_client_is_told_whether_it_is_served_and_by_which_model_and_nothing_else(desk: Desk) -> None:
    router = Router(desk)
    state = router.reporter().client_message()
    assert {field.name for field, _ in state.ListFields()} == {"ready", "model"}
    for worker_id in list(desk.cluster.workers):
        desk.cluster.remove(worker_id)
    state = router.reporter().client_message()
    assert {field.name for field, _ in state.ListFields()} == {"model", "warnings"}
    assert list(state.warnings) == [NO_WORKERS]


def test_quotas_are_told_by_tenant_of_a_bounded_number_of_them(router: Router) -> None:
    left = Standing(Quota.CONCURRENT_REQUESTS, 4, 1, 0.0)
    router.tenants = [(f"tenant-{number}", (left,)) for number in range(300)]
    router.quotas.warning = "quotas are kept without Redis"
    state = router.reporter().message()
    assert [tenant.tenant for tenant in state.tenants] == [f"tenant-{number}" for number in range(SHOWN_TENANTS)]
    (limit,) = state.tenants[7].limits
    assert (limit.quota, limit.limit, limit.remaining) == ("concurrent_requests", 4.0, 1.0)
    assert "quotas are kept without Redis" in state.warnings
