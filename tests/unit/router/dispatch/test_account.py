"""Whatever happens, each received request has ended or is still here, and those that ended leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from types import NoneType

from hypothesis import given
from hypothesis import strategies as st

from services.rpc.errors import InvalidRequestError
from services.state.journal_entry import RequestState
from slos_serve.v1 import worker_pb2
from tests.unit.router.dispatch.dispatch_bench import (
    GOES_ON,
    LENGTH,
    PATIENCE_S,
    STOP,
    DispatchBench,
    output,
    placement,
    timings,
)

WORKERS = ("p1", "d1", "p2", "d2")
ACTIONS = ("accept", "accept", "step", "step", "step", "stop", "fail", "invalid", "cancel", "lose", "drain", "wait")


def act(bench: DispatchBench, action: str, number: int) -> None:
    """Do one thing to the request, or to the worker, that the number picks."""
    worker_id = WORKERS[number % len(WORKERS)]
    running = list(bench.requests)
    request = running[number % len(running)] if running else None
    match action:
        case "accept":
            where = placement(("p1", "p2", "d1")[number % 3], ("d1", "d2")[number % 2])
            bench.accept(bench.request(f"r{bench.counters.received}", where=where, max_tokens=3))
        case "lose" if worker_id in bench.links:
            bench.lose(worker_id)
            bench.connect(worker_id)
        case "drain":
            bench.tell(worker_id, worker_pb2.SessionResponse(draining=worker_pb2.Draining()))
        case "wait":
            bench.now_s += PATIENCE_S
            bench.dispatcher.tick()
        case _ if request is None or not request.worker_id:
            return
        case "step" if request.state is RequestState.PREFILLING and not request.placement.local:
            bench.step(request.worker_id, bench.first_output(request))
        case "step":
            last = len(request.generated) == 2
            found = output(request, 71, finish=LENGTH if last else GOES_ON, timings=timings(kv_bytes=1))
            bench.step(request.worker_id, found)
        case "stop":
            bench.step(request.worker_id, output(request, 2, finish=STOP, timings=timings()))
        case "fail":
            bench.fail(request.worker_id, request, worker_pb2.FAILURE_KIND_ENGINE)
        case "invalid":
            bench.fail(request.worker_id, request, worker_pb2.FAILURE_KIND_INVALID)
        case "cancel":
            bench.dispatcher.cancel(request.request_id)


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 11)), max_size=60))
def test_received_is_ended_and_running(tiny_model: Path, actions: list[tuple[str, int]]) -> None:
    bench = DispatchBench(tiny_model)
    for worker_id in WORKERS:
        bench.connect(worker_id)
    bench.planning.answer = placement("p2", "d2")
    for action, number in actions:
        act(bench, action, number)
        counted = bench.counters
        ended = counted.finished + counted.cancelled + counted.failed
        assert counted.received == ended + len(bench.requests)
        assert len(bench.account.ended) == ended
        assert bench.life.idle.is_set() is (len(bench.requests) == 0)
    for request in list(bench.requests):
        bench.dispatcher.cancel(request.request_id)
    ended_ids = sorted(record.request_id for record in bench.account.ended)
    assert ended_ids == sorted(f"r{index}" for index in range(bench.counters.received)), "each ends once"
    assert bench.life.leases._requests == {}
    assert bench.counters.kept + bench.counters.missed == bench.counters.finished


def test_the_end_of_a_request_is_told_with_the_error_that_its_client_got(bench: DispatchBench) -> None:
    failed = bench.accept(bench.request("failed"))
    bench.fail("p1", failed, worker_pb2.FAILURE_KIND_INVALID)
    done = bench.decoding(bench.request("done"))
    bench.step("d1", output(done, 72, finish=STOP))
    bench.accept(bench.request("cancelled"))
    bench.dispatcher.cancel("cancelled")
    assert [record.request_id for record in bench.account.ended] == ["failed", "done", "cancelled"]
    assert [type(error) for error in bench.account.errors] == [InvalidRequestError, NoneType, NoneType]
    assert [record.detail for record in bench.account.ended] == ["because", "", ""]
