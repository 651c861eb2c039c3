"""Whoever scrapes reads the router's figures as they are at that moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import prometheus_client
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from router.cluster.cluster_view import ClusterView
from router.observability import readings
from router.observability.counters import Counters
from router.requests.live_requests import LiveRequests
from services.engine.kv.handle import KvHandle
from services.identity.authenticator import Authenticator
from services.identity.refusal import Cause
from services.slo.admission import AdmissionCore, Arrival, RequestFacts
from services.slo.contract import Contract
from services.state.registry import WorkerRole
from services.telemetry.catalogue import router as catalogue
from services.telemetry.meters import Meters
from tests.support.scrape import Page
from tests.unit.router.router_support import FACTS


def leased(tokens: int) -> object:
    handle = KvHandle(
        lease_id="lease",
        worker_id="p1",
        engine_epoch="epoch",
        lease_remaining_s=30.0,
        tokens=tokens,
        kv_bytes=1000 * tokens,
        compatibility=FACTS.compatibility,
        transfer_params_json="",
        secret="secret",
    )
    return SimpleNamespace(lease=SimpleNamespace(handle=handle))


class Requests:
    """Three requests, one of which waits; two have leases of 17 and 16 tokens at `p1`."""

    def __iter__(self) -> Iterator[object]:
        return iter([leased(17), leased(16), SimpleNamespace(lease=None)])

    def __len__(self) -> int:
        return 3

    def queued_count(self) -> int:
        return 1


def view(worker_id: str, role: WorkerRole, *, detail: str = "", draining: bool = False) -> object:
    return SimpleNamespace(
        worker_id=worker_id,
        role=role,
        detail=detail,
        draining=draining,
        disbelieved_reports=3,
        state=SimpleNamespace(steps=7, steps_within_bound=6),
        times=SimpleNamespace(error=lambda: 0.25),
    )


@pytest.fixture
def page() -> Page:
    registry = CollectorRegistry()
    meters = Meters(MeterProvider([PrometheusMetricReader(scope_info_enabled=False, registry=registry)]))
    workers = [
        view("p1", WorkerRole.PREFILL),
        view("d1", WorkerRole.DECODE),
        view("d2", WorkerRole.DECODE, draining=True),
        view("d3", WorkerRole.DECODE, detail="serves another model", draining=True),
    ]
    cluster = SimpleNamespace(workers={cast("Any", found).worker_id: found for found in workers})
    counters = Counters(received=9, restarts=2, workers_lost=1, kv_recomputes=4)
    requests = cast("LiveRequests", Requests())
    core = AdmissionCore()
    for name in "abcde":
        core.arrived(Arrival(RequestFacts(name, 100, 10), Contract(), 1000.0))
    credentials = SimpleNamespace(refused=Counter({Cause.EXPIRED: 3, Cause.MISSING: 5}), faults=2)
    readings.observe(meters, counters, requests, cast("ClusterView", cluster), core, cast("Authenticator", credentials))
    return Page(prometheus_client.generate_latest(registry).decode())


def test_requests_are_shown_where_they_are(page: Page) -> None:
    shown = (
        catalogue.REQUESTS_QUEUED,
        catalogue.REQUESTS_RUNNING,
        catalogue.REQUESTS_HELD,
        catalogue.REQUESTS_RECEIVED,
    )
    assert [page.value(metric) for metric in shown] == [1, 2, 5, 9]


def test_what_went_wrong_is_shown(page: Page) -> None:
    shown = (catalogue.REQUESTS_RESTARTED, catalogue.WORKERS_LOST, catalogue.KV_RECOMPUTES)
    assert [page.value(metric) for metric in shown] == [2, 1, 4]


def test_workers_are_counted_by_role_and_health(page: Page) -> None:
    def count(**labels: str) -> float:
        return page.value(catalogue.WORKERS, **labels)

    role, health = (label.replace(".", "_") for label in (catalogue.ROLE, catalogue.HEALTH))
    assert count(**{role: "prefill", health: "ready"}) == 1
    assert [count(**{role: "decode", health: name}) for name in ("ready", "draining", "incompatible")] == [1, 1, 1]


def test_the_steps_of_each_worker_are_shown(page: Page) -> None:
    worker = catalogue.WORKER.replace(".", "_")
    shown = (
        catalogue.WORKER_STEPS,
        catalogue.WORKER_STEPS_WITHIN_BOUND,
        catalogue.WORKER_STEP_ERROR,
        catalogue.DISBELIEVED_REPORTS,
    )
    assert [page.value(metric, **{worker: "d1"}) for metric in shown] == [7, 6, 0.25, 3]


def test_leased_blocks_are_whole_and_shown_for_prefill_workers(page: Page) -> None:
    assert page.value(catalogue.LEASED_BLOCKS_IN_USE) == 3, "17 tokens take two blocks of 16"
    assert len(page.samples[catalogue.LEASED_BLOCKS_IN_USE.prometheus_name]) == 1


def test_refused_credentials_are_shown_by_cause(page: Page) -> None:
    reason = catalogue.REASON.replace(".", "_")
    assert page.value(catalogue.CREDENTIALS_REFUSED, **{reason: "expired"}) == 3
    assert page.value(catalogue.CREDENTIALS_REFUSED, **{reason: "missing"}) == 5
    assert page.value(catalogue.CREDENTIAL_FAULTS) == 2
