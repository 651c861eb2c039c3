"""What workers tell of themselves, believed as far as it makes sense."""

from __future__ import annotations

import math

import pytest

from router.cluster.cluster_view import ClusterView, WorkerView
from services import wire
from services.engine.protocol import EngineLoad
from services.slo.admission import AdmissionCore, AdmissionOptions
from services.slo.performance import StepShape
from slos_serve.v1 import worker_pb2
from tests.unit.router.router_support import START_S, description

SHAPE = StepShape(decode_requests=4, decode_tokens=4, decode_context_tokens=400)
LOAD = EngineLoad(4, 0, 1000, 100, 0)


def view() -> tuple[ClusterView, WorkerView]:
    cluster = ClusterView("m", AdmissionCore(AdmissionOptions()))
    return cluster, cluster.put(description("d1"), "nowhere")


def step(duration_s: float = 0.040) -> worker_pb2.StepReport:
    return worker_pb2.StepReport(duration_s=duration_s, shape=wire.shape_to_wire(SHAPE), load=wire.load_to_wire(LOAD))


def learn(cluster: ClusterView, worker: WorkerView, steps: int) -> None:
    for index in range(steps):
        cluster.stepped(worker, step(), START_S + index)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda report: setattr(report.shape, "prefill_attention_pairs", math.nan),
        lambda report: setattr(report.shape, "prefill_attention_pairs", -1.0),
        lambda report: setattr(report.shape, "decode_tokens", -4),
        lambda report: setattr(report.shape, "prefill_attention_pairs", 1e300),
        lambda report: setattr(report.scheduling, "predicted_s", math.inf),
        lambda report: setattr(report.load, "kv_blocks_used", -1),
        lambda report: report.load.others.decodes.add(tpot_s=math.nan, requests=1, tokens=1),
        lambda report: report.load.others.decodes.add(tpot_s=0.0, requests=1, tokens=1),
        lambda report: report.load.others.decodes.add(tpot_s=1e-300, requests=1, tokens=1),
        lambda report: report.load.others.prompts.extend([worker_pb2.OtherPrompts(tokens=1)] * 20_000),
        lambda report: report.load.others.decodes.extend([worker_pb2.OtherDecodes(tpot_s=0.1)] * 20_000),
        lambda report: setattr(report, "duration_s", math.nan),
        lambda report: setattr(report, "made_at_s", -math.inf),
        lambda report: report.load.others.decodes.add(requests=-1, tokens=1),
        lambda report: report.load.others.prompts.add(due_in_s=math.nan, tokens=1),
        lambda report: report.load.others.prompts.add(tokens=-1),
    ],
)
def test_a_step_whose_figures_make_no_sense_is_counted_and_not_learnt_from(spoil: object) -> None:
    assert callable(spoil)
    cluster, worker = view()
    learn(cluster, worker, 100)
    before = worker.step_times.model().decode_step_s(4, 400)
    report = step()
    spoil(report)
    for index in range(50):
        cluster.stepped(worker, report, START_S + 200 + index)
    assert worker.disbelieved_reports == 50
    assert worker.load == LOAD
    assert worker.step_times.model().decode_step_s(4, 400) == before
    learn(cluster, worker, 100)
    assert worker.step_times.model().decode_step_s(4, 400) == pytest.approx(0.040, rel=0.05)


@pytest.mark.parametrize("duration_s", [math.nan, math.inf, -1.0, 0.0, 1e300])
def test_a_step_without_a_credible_duration_is_not_learnt_from(duration_s: float) -> None:
    cluster, worker = view()
    learn(cluster, worker, 100)
    before = worker.step_times.model().decode_step_s(4, 400)
    for index in range(50):
        cluster.stepped(worker, step(duration_s), START_S + 200 + index)
    assert math.isfinite(worker.state.last_step_s), "the next plan counts on it"
    assert worker.step_times.model().decode_step_s(4, 400) == pytest.approx(before)


def test_a_load_whose_figures_make_no_sense_is_counted_and_not_believed() -> None:
    cluster, worker = view()
    cluster.heard(worker, wire.load_to_wire(LOAD), START_S)
    cluster.heard(worker, worker_pb2.WorkerLoad(running_requests=-5), START_S + 1)
    assert (worker.load, worker.disbelieved_reports) == (LOAD, 1)
