"""What a worker's meter makes of steps and outputs, read as Prometheus would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import prometheus_client
import pytest

from decode_worker.policy import DecodePolicy
from prefill_worker.policy import PrefillPolicy
from services.engine.kv.handle import KvPull, LeaseOutcome
from services.engine.protocol import (
    EngineLoad,
    EngineStep,
    FinishReason,
    RequestOutput,
    RequestTimings,
    Scheduling,
)
from services.slo.performance import StepShape
from services.telemetry.catalogue import router, vllm, worker
from services.telemetry.process import ProcessTelemetry
from services.telemetry.settings import TelemetrySettings
from services.worker.ledger import LedgerEntry
from services.worker.meter import WorkerMeter
from tests.support.engine_facts import FACTS
from tests.support.scrape import Page
from tests.unit.services.worker.worker_support import IDLE, ScriptedEngine

if TYPE_CHECKING:
    from services.worker.policy import RolePolicy

NOW_S = 9_000.0


class Metered:
    def __init__(self, policy: RolePolicy) -> None:
        self.telemetry = ProcessTelemetry(TelemetrySettings(), "test", "test")
        self.engine = ScriptedEngine()
        self.meter = WorkerMeter(self.telemetry, self.engine, FACTS, policy)

    def page(self) -> Page:
        return Page(prometheus_client.generate_latest(self.telemetry.registry).decode())

    def step(self, duration_s: float, shape: StepShape, **scheduling: float) -> None:
        told = Scheduling(**scheduling)  # type: ignore[arg-type]
        self.meter.step(EngineStep(1, duration_s, shape, (), IDLE, told))


@pytest.fixture
def decode() -> Iterator[Metered]:
    metered = Metered(DecodePolicy())
    yield metered
    metered.telemetry.close()


@pytest.fixture
def prefill() -> Iterator[Metered]:
    metered = Metered(PrefillPolicy())
    yield metered
    metered.telemetry.close()


DECODES = StepShape(decode_requests=3, decode_tokens=3)
MIXED = StepShape(decode_requests=3, decode_tokens=3, prefill_tokens=40)


def test_steps_are_told_by_regime_and_by_how_well_they_were_foreseen(decode: Metered) -> None:
    decode.step(0.10, DECODES, predicted_s=0.08, bound_s=0.12)
    decode.step(0.10, MIXED, predicted_s=0.08, bound_s=0.09)
    decode.step(0.10, MIXED)
    decode.step(0.00, StepShape(), predicted_s=0.08, bound_s=0.12)
    page = decode.page()
    assert page.value(worker.STEP_DURATION, slos_regime="decode") == 1
    assert page.value(worker.STEP_DURATION, slos_regime="prefill") == 2
    assert page.value(worker.STEP_PREDICTION_ERROR) == 2
    assert sum(value for _, value in page.samples["slos_engine_step_prediction_error_sum"]) == pytest.approx(0.4)
    assert page.value(worker.STEPS_FORETOLD, slos_within_bound="true") == 1
    assert page.value(worker.STEPS_FORETOLD, slos_within_bound="false") == 1
    assert page.value(vllm.STEP_TOKENS) == 3


def test_a_step_of_exactly_its_bound_is_within_it(decode: Metered) -> None:
    decode.step(0.12, DECODES, predicted_s=0.08, bound_s=0.12)
    assert decode.page().value(worker.STEPS_FORETOLD, slos_within_bound="true") == 1


def test_figures_that_an_engine_counts_up_are_shown_as_it_counts_them(decode: Metered) -> None:
    first = {"preempted": 2, "held": 5, "contracts_missing": 1, "contracts_malformed": 1, "drafted": 10, "accepted": 4}
    decode.step(0.1, DECODES, compose_s=0.001, **first)
    decode.step(0.1, DECODES, compose_s=0.002, **(first | {"preempted": 3, "drafted": 16, "held": 7}))
    page = decode.page()
    assert page.value(vllm.PREEMPTIONS) == 3
    assert (page.value(vllm.DRAFT_TOKENS), page.value(vllm.ACCEPTED_TOKENS)) == (16, 4)
    assert page.value(worker.ENGINE_HELD) == 7
    assert page.value(worker.CONTRACTS_UNUSABLE) == 2
    assert page.value(worker.COMPOSE_TIME) == pytest.approx(0.003)


def test_a_prompt_computed_here_counts_and_a_pulled_one_does_not(decode: Metered) -> None:
    here = LedgerEntry("a", "o", "a", 0, prompt_tokens=30, computes_prompt=True, arrived_s=NOW_S)
    pulled = LedgerEntry("b", "o", "b", 0, prompt_tokens=50, computes_prompt=False, arrived_s=NOW_S)
    timings = RequestTimings(wait_s=0.5, run_s=0.25, cached_tokens=16)
    decode.meter.output(here, RequestOutput("a", (1,), timings=timings), NOW_S + 1.0)
    decode.meter.output(
        pulled, RequestOutput("b", (1,), timings=RequestTimings(0.5, 0.1, kv_pull=KvPull(640, 0.05))), NOW_S + 1.0
    )
    page = decode.page()
    assert (page.value(vllm.PROMPT_TOKENS), page.value(vllm.PREFIX_QUERIES), page.value(vllm.PREFIX_HITS)) == (
        30,
        30,
        16,
    )
    assert (page.value(vllm.PREFILL), page.value(vllm.QUEUE), page.value(vllm.TTFT)) == (1, 2, 1)
    assert page.value(worker.KV_PULL_BYTES) == 640
    assert page.value(router.KV_RECOMPUTES) == 0


def test_the_pace_of_a_request_is_that_between_its_tokens(decode: Metered) -> None:
    entry = LedgerEntry("a", "o", "a", 0, arrived_s=NOW_S)
    recomputed = RequestTimings(0.1, 0.1, kv_recompute_reason="expired")
    decode.meter.output(entry, RequestOutput("a", (1,), timings=recomputed), NOW_S + 1.0)
    decode.meter.output(entry, RequestOutput("a", (2, 3)), NOW_S + 1.25)
    last = RequestOutput("a", (4,), finish_reason=FinishReason.LENGTH)
    decode.meter.output(entry, last, NOW_S + 1.75)
    page = decode.page()
    assert page.samples["vllm:request_time_per_output_token_seconds_sum"][0][1] == 0.25
    assert page.samples["vllm:inter_token_latency_seconds_sum"][0][1] == 0.75
    assert page.samples["vllm:request_decode_time_seconds_sum"][0][1] == 0.75
    assert page.samples["vllm:e2e_request_latency_seconds_sum"][0][1] == 1.75
    assert page.value(vllm.GENERATION_TOKENS) == 4
    assert page.value(vllm.REQUEST_SUCCESS, finished_reason="length") == 1
    assert page.value(router.KV_RECOMPUTES) == 1


def test_a_request_without_tokens_has_no_pace(decode: Metered) -> None:
    entry = LedgerEntry("a", "o", "a", 0, arrived_s=NOW_S)
    decode.meter.output(entry, RequestOutput("a", (), finish_reason=FinishReason.ERROR), NOW_S + 1.0)
    page = decode.page()
    assert (page.value(vllm.TPOT), page.value(vllm.DECODE), page.value(vllm.E2E)) == (0, 0, 1)


def test_leases_are_the_prefill_workers_and_pulls_the_decode_workers(prefill: Metered, decode: Metered) -> None:
    for metered in (prefill, decode):
        metered.meter.lease_closed(LeaseOutcome.PULLED)
        metered.meter.lease_closed(LeaseOutcome.EXPIRED)
    page = prefill.page()
    assert page.value(worker.KV_LEASES_CLOSED, slos_outcome="pulled") == 1
    assert page.value(worker.KV_LEASES_CLOSED, slos_outcome="released") == 0
    assert "slos_kv_leases_closed_total" in page.samples
    assert "slos_kv_leases_closed_total" not in decode.page().samples
    assert "slos_kv_pull_bytes_total" not in page.samples


def test_refusals_are_shown_before_the_first(prefill: Metered) -> None:
    prefill.meter.refused("invalid")
    shown = {labels["slos_kind"]: value for labels, value in prefill.page().samples["slos_worker_refused_total"]}
    assert shown == {"not_accepting": 0, "invalid": 1, "engine": 0}


def test_usage_is_the_share_of_blocks_in_use(decode: Metered) -> None:
    decode.engine.load = lambda: EngineLoad(3, 2, 64, 16, 0)  # type: ignore[method-assign]
    page = decode.page()
    assert (page.value(vllm.RUNNING), page.value(vllm.WAITING), page.value(vllm.KV_USAGE)) == (3, 2, 0.25)
