"""Workers as admission knows them: which can serve together, and what is learnt of their steps and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.admission import IDLE, NO_OTHERS, WorkerFacts, WorkerLoad
from services.slo.admission.workers import LEARN_TOGETHER, Cluster, WorkerState
from services.slo.fitting import StepTimeFit
from services.slo.performance import StepRegime, StepShape
from tests.unit.services.slo.admission.support import KV_BLOCKS, PRIOR, START_S, worker_facts

SHAPE = StepShape(1, 500, 125_000.0)


def cluster_of(*facts: WorkerFacts, local_prefill: bool = False) -> Cluster:
    cluster = Cluster(local_prefill=local_prefill, coverage=0.95)
    for told in facts:
        cluster.join(told, IDLE)
    return cluster


def groups(cluster: Cluster) -> list[tuple[list[str], list[str]]]:
    return [
        ([worker.worker_id for worker in group.prefill], [worker.worker_id for worker in group.decode])
        for group in cluster.groups()
    ]


class TestGroups:
    def test_workers_of_one_group_serve_together(self) -> None:
        cluster = cluster_of(
            worker_facts("p1", "a"), worker_facts("d1", "a"), worker_facts("p2", "b"), worker_facts("d2", "b")
        )
        assert groups(cluster) == [(["p1"], ["d1"]), (["p2"], ["d2"])]
        assert all(cluster.usable(worker_id) for worker_id in ("p1", "d1", "p2", "d2"))
        assert not any(worker.alone for worker in cluster.workers.values())

    def test_a_group_without_a_pool_does_not_serve(self) -> None:
        cluster = cluster_of(worker_facts("p1", "a"), worker_facts("d1", "b"))
        assert groups(cluster) == []
        assert not cluster.usable("p1")
        assert not cluster.usable("d1")

    def test_decode_workers_serve_alone_where_they_may_compute_prompts(self) -> None:
        cluster = cluster_of(worker_facts("d1"), local_prefill=True)
        assert groups(cluster) == [([], ["d1"])]
        assert cluster.workers["d1"].alone
        (group,) = cluster.groups()
        assert [worker.worker_id for worker in group.first_choice] == ["d1"]
        cluster.join(worker_facts("p1"), IDLE)
        assert groups(cluster) == [(["p1"], ["d1"])]
        assert not cluster.workers["d1"].alone
        assert [worker.worker_id for worker in cluster.groups()[0].first_choice] == ["p1"]
        assert groups(cluster_of(worker_facts("p1"), local_prefill=True)) == [], "somebody has to decode"

    def test_who_drains_or_leaves_or_serves_another_model_takes_nothing_new(self) -> None:
        cluster = cluster_of(worker_facts("p1"), worker_facts("d1"), worker_facts("d2"))
        cluster.drain("d1")
        assert groups(cluster) == [(["p1"], ["d2"])]
        assert (cluster.usable("d1"), cluster.usable("d2")) == (False, True)
        cluster.leave("d2")
        assert groups(cluster) == []
        cluster.join(replace(worker_facts("d3"), serves=False), IDLE)
        assert groups(cluster) == []
        cluster.join(worker_facts("d1"), IDLE)
        assert groups(cluster) == [(["p1"], ["d1"])], "it has come back"
        cluster.drain("unknown")
        cluster.leave("unknown")

    def test_a_kv_cache_has_as_many_tokens_as_its_blocks(self) -> None:
        assert worker_facts("d1").kv_tokens == 16 * KV_BLOCKS


class TestSteps:
    @pytest.fixture
    def worker(self) -> WorkerState:
        return WorkerState(worker_facts("p1"), 0.9, StepTimeFit(PRIOR))

    def test_the_next_step_begins_with_the_report_of_the_last(self, worker: WorkerState) -> None:
        worker.stopped_step_ends_s = START_S + 5.0
        worker.stepped(SHAPE, 0.06, START_S)
        assert (worker.step_began_s, worker.last_step_s, worker.stopped_step_ends_s) == (START_S, 0.06, 0.0)
        assert worker.steps == 1

    def test_steps_are_learnt_from_together_or_when_somebody_asks(self, worker: WorkerState) -> None:
        fit = worker.times
        assert isinstance(fit, StepTimeFit)
        for index in range(LEARN_TOGETHER - 1):
            worker.stepped(SHAPE, 0.06, START_S + index)
        assert fit.steps == 0
        worker.stepped(SHAPE, 0.06, START_S)
        assert fit.steps == LEARN_TOGETHER
        worker.stepped(SHAPE, 0.06, START_S)
        assert fit.steps == LEARN_TOGETHER
        assert worker.model is fit.model()
        assert fit.steps == LEARN_TOGETHER + 1, "whoever asks gets all of them"

    def test_what_kept_its_bound_is_counted_by_the_bound_of_before(self, worker: WorkerState) -> None:
        assert worker.bound_coverage == 0.0
        expected_s = worker.model.step_s(SHAPE)
        for factor in (1.0, 3.0, 1.0, 1.0):
            worker.stepped(SHAPE, factor * expected_s, START_S)
        assert worker.bound_coverage == pytest.approx(3 / 4)

    def test_bounds_keep_the_coverage_they_were_asked_for(self, worker: WorkerState) -> None:
        assert worker.bound == worker.times.bound(0.9)

    def test_the_bound_of_a_worker_is_that_of_the_steps_of_its_role(self) -> None:
        for worker_id, regime in (("p1", StepRegime.PREFILL), ("d1", StepRegime.DECODE)):
            worker = WorkerState(worker_facts(worker_id), 0.9, StepTimeFit(PRIOR))
            for shape, factor in ((SHAPE, 1.0), (StepShape(decode_requests=1, decode_tokens=1), 2.0)):
                for index in range(200):
                    took_s = factor * (1 + 0.1 * (index % 3)) * worker.model.step_s(shape)
                    worker.stepped(shape, took_s if index % 7 else 2 * took_s, START_S)
            assert worker.step_time_bound() == worker.bound.margins[regime]
            assert len(set(worker.bound.margins)) > 1
            assert worker.decodes is (worker_id == "d1")

    def test_what_a_worker_tells_is_kept_with_its_time(self, worker: WorkerState) -> None:
        load = WorkerLoad(running_requests=3, kv_blocks_leased=4)
        worker.told(load, NO_OTHERS, START_S)
        assert (worker.load, worker.others, worker.others_told_s) == (load, NO_OTHERS, START_S)

    def test_step_times_can_be_given(self) -> None:
        cluster = Cluster(local_prefill=False, coverage=0.95)
        times = StepTimeFit(PRIOR)
        assert cluster.join(worker_facts("p1"), IDLE, times).times is times
        assert cluster.join(worker_facts("p2"), IDLE).coverage == 0.95
