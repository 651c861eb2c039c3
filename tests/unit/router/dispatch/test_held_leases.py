"""KV caches that nobody will pull are freed, and none is freed while a decode worker may be reading it."""

from __future__ import annotations

import logging

import pytest

from services.state.journal_entry import RequestState
from slos_serve.v1 import worker_pb2
from tests.unit.router.dispatch.dispatch_bench import MAX_RESTARTS, DispatchBench, output, timings


def test_a_cancelled_hand_over_keeps_its_kv_cache_until_the_decode_worker_let_go(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    bench.sent("p1")
    bench.sent("d1")
    assert bench.dispatcher.cancel("r")
    assert bench.kinds("d1") == ["abort"]
    assert bench.kinds("p1") == [], "the decode worker may be reading"
    bench.confirm_abort("d1", "r", request.attempt)
    (release,) = bench.sent("p1")
    assert release.release_kv.lease_id == "r-0"
    bench.confirm_abort("d1", "r", request.attempt)
    assert bench.kinds("p1") == [], "once"


def test_an_abort_of_another_attempt_or_request_frees_nothing(bench: DispatchBench) -> None:
    bench.handed_over(bench.request())
    bench.dispatcher.cancel("r")
    bench.sent("p1")
    bench.confirm_abort("d1", "r", 1)
    bench.confirm_abort("d1", "other", 0)
    assert bench.kinds("p1") == []


def test_a_cancelled_stream_frees_what_was_not_pulled_at_once(bench: DispatchBench) -> None:
    request = bench.decoding(bench.request())
    assert request.lease is not None, "its owner has not reported the pull"
    bench.dispatcher.cancel("r")
    assert bench.kinds("d1") == ["abort"]
    assert bench.kinds("p1") == ["release_kv"]


def test_a_prompt_is_cancelled_at_its_worker(bench: DispatchBench) -> None:
    bench.accept(bench.request())
    bench.sent("p1")
    bench.dispatcher.cancel("r")
    (abort,) = bench.sent("p1")
    assert (abort.abort.request_id, abort.abort.attempt) == ("r", 0)
    assert bench.cluster.workers["p1"].state.stopped_step_ends_s > bench.now_s, "the step under way goes on"


def test_a_lease_that_was_pulled_is_forgotten(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    bench.step("d1", output(request, 71, timings=timings(kv_bytes=1)))
    bench.sent("p1")
    bench.close_lease("p1", "r-0", worker_pb2.LEASE_OUTCOME_PULLED)
    assert request.lease is None
    bench.dispatcher.cancel("r")
    assert bench.kinds("p1") == []


def test_a_lease_that_expired_is_forgotten_and_said_aloud(
    bench: DispatchBench, caplog: pytest.LogCaptureFixture
) -> None:
    request = bench.handed_over(bench.request())
    with caplog.at_level(logging.WARNING):
        bench.close_lease("p1", "r-0", worker_pb2.LEASE_OUTCOME_PULLED)
        assert "expired" not in caplog.text
        bench.close_lease("p1", "r-0", worker_pb2.LEASE_OUTCOME_EXPIRED)
        assert "expired" not in caplog.text, "it ended before"
        other = bench.handed_over(bench.request("other"))
        bench.close_lease("p1", "other-0", worker_pb2.LEASE_OUTCOME_EXPIRED)
    assert "request other: the lease on its KV cache expired" in caplog.text
    assert (request.lease, other.lease) == (None, None)


def test_a_lease_on_a_lost_worker_is_forgotten(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    bench.lose("p1")
    assert request.lease is None
    assert request.state is RequestState.HANDOVER, "its decode worker computes the KV cache itself"


def test_the_leases_of_other_workers_outlive_a_lost_one(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    bench.connect("p2")
    bench.lose("p2")
    assert request.lease is not None


def test_a_lost_reader_reads_no_more(bench: DispatchBench) -> None:
    bench.handed_over(bench.request())
    bench.dispatcher.cancel("r")
    bench.sent("p1")
    bench.connect("d2")
    bench.lose("d2")
    assert bench.kinds("p1") == [], "another worker was lost"
    bench.lose("d1")
    (release,) = bench.sent("p1")
    assert release.release_kv.lease_id == "r-0"


def test_a_lost_owner_is_asked_for_nothing(bench: DispatchBench) -> None:
    bench.handed_over(bench.request())
    bench.dispatcher.cancel("r")
    bench.sent("p1")
    bench.lose("p1")
    bench.connect("p1")
    bench.sent("p1")
    bench.confirm_abort("d1", "r", 0)
    assert bench.kinds("p1") == [], "the new worker never had it"


def test_a_request_that_starts_again_gives_its_kv_cache_up(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    bench.sent("p1")
    bench.lose("d1")
    assert request.lease is None
    assert bench.kinds("p1") == ["release_kv"]
    assert request.state is RequestState.QUEUED


@pytest.mark.parametrize(
    "kind",
    [worker_pb2.FAILURE_KIND_ENGINE, worker_pb2.FAILURE_KIND_INVALID, worker_pb2.FAILURE_KIND_NOT_ACCEPTING],
)
def test_a_hand_over_that_is_refused_frees_its_kv_cache_at_once(
    bench: DispatchBench, kind: worker_pb2.FailureKind.ValueType
) -> None:
    request = bench.handed_over(bench.request())
    bench.sent("p1")
    bench.fail("d1", request, kind)
    assert request.lease is None
    releases = [command for command in bench.sent("p1") if command.HasField("release_kv")]
    assert [command.release_kv.lease_id for command in releases] == ["r-0"]


def test_a_request_that_is_given_up_frees_its_kv_cache_at_once(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    for _ in range(MAX_RESTARTS):
        bench.fail("d1", request, worker_pb2.FAILURE_KIND_ENGINE)
        bench.step("p1", bench.first_output(request))
    bench.sent("p1")
    bench.fail("d1", request, worker_pb2.FAILURE_KIND_ENGINE)
    assert request.state is RequestState.FAILED
    (release,) = bench.sent("p1")
    assert release.release_kv.lease_id == f"r-{MAX_RESTARTS}"


def test_a_kv_cache_of_a_worker_without_a_session_is_forgotten_and_nobody_is_told(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    bench.sent("p1")
    del bench.links["p1"]
    bench.life.leases.give_up(request)
    assert request.lease is None
    assert bench.kinds("p1") == []
