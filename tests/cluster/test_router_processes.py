"""Several router processes on one port: spread, cancelled across, killed, drained."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import signal
import time
import uuid
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest

from services.rpc.options import channel_options
from slos_serve.v1 import contract_pb2, inference_pb2, inference_pb2_grpc
from tests.cluster.conftest import EMULATED
from tests.support.cluster import Answer, ClusterUnderTest, cluster_under_test, greedy
from tests.support.eventually import wait_until
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

CONNECTIONS = 12
REQUESTS = 80
ARRIVAL_GAP_S = 0.02
PROMPT = [20 + index % 900 for index in range(3000)]
TTFT_S = 3.0
ASKED_AT_ONCE = 24
FULL_OUTPUT, WIDE_TPOT_S = 300, 0.8


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    directory = tmp_path_factory.mktemp("shared")
    config = directory / "cluster.toml"
    text = EMULATED.format(
        model=write_tiny_model(directory / "tiny"), run_dir=directory / "run", prefill=2, decode=2, patience_s=10.0
    )
    config.write_text(text.replace("[router]", "[router]\nprocesses = 2"))
    with cluster_under_test(config) as cluster:
        yield cluster


@contextlib.contextmanager
def channels(cluster: ClusterUnderTest) -> Iterator[dict[str, grpc.Channel]]:
    """A connection to each router process, by router id."""
    found: dict[str, grpc.Channel] = {}
    with contextlib.ExitStack() as stack:

        def both() -> bool:
            for _ in range(CONNECTIONS):
                channel = stack.enter_context(grpc.insecure_channel(cluster.address, channel_options(1 << 22)))
                stub = inference_pb2_grpc.InferenceStub(channel)
                with contextlib.suppress(grpc.RpcError):
                    state = stub.GetClusterState(inference_pb2.GetClusterStateRequest(), timeout=10).state
                    if len(state.workers) == 4 and not state.warnings:
                        found[state.router_id] = channel
                if len(found) == 2:
                    return True
            return False

        wait_until(both, "two router processes that see all workers")
        yield found


@contextlib.contextmanager
def doors(cluster: ClusterUnderTest) -> Iterator[dict[str, inference_pb2_grpc.InferenceStub]]:
    """The same, ready to be asked."""
    with channels(cluster) as found:
        yield {router_id: inference_pb2_grpc.InferenceStub(channel) for router_id, channel in found.items()}


def router_children(cluster: ClusterUnderTest) -> list[psutil.Process]:
    parent = next(process for process in cluster.launcher._running.processes if process.name == "router").process()
    assert parent is not None
    return [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]


def test_an_id_is_taken_and_cancelled_whichever_process_serves_it(shared: ClusterUnderTest) -> None:
    with doors(shared) as found:
        here, there = found.values()
        stream = here.Generate(greedy([20, 21], 3000, request_id="one-of-two"), timeout=60)
        answer = Answer()
        for response in stream:
            answer.take(response)
            if answer.chunks:
                break
        with pytest.raises(grpc.RpcError) as duplicate:
            list(there.Generate(greedy([20, 21], 5, request_id="one-of-two"), timeout=60))
        assert duplicate.value.code() is grpc.StatusCode.ALREADY_EXISTS
        there.Cancel(inference_pb2.CancelRequest(request_id="one-of-two"), timeout=10)
        for response in stream:
            answer.take(response)
        assert answer.checked().finished is not None

        def unknown() -> bool:
            """The journal is written a moment after the stream has ended."""
            try:
                there.Cancel(inference_pb2.CancelRequest(request_id="one-of-two"), timeout=10)
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.NOT_FOUND
            return False

        wait_until(unknown, "what has ended cannot be cancelled")
    shared.wait_empty()


def test_vllms_abort_reaches_the_process_that_serves_the_request(shared: ClusterUnderTest) -> None:
    vllm = pytest.importorskip("smg_grpc_proto", reason="the protocol of vLLM's gRPC server")
    messages = vllm.vllm_engine_pb2
    with channels(shared) as found:
        here, there = (vllm.vllm_engine_pb2_grpc.VllmEngineStub(channel) for channel in found.values())
        sampling = {"max_tokens": 3000, "ignore_eos": True, "temperature": 0.0}
        request = messages.GenerateRequest(
            request_id="abort-one-of-two", text="hello", stream=True, sampling_params=sampling
        )
        running = here.Generate(request, timeout=60)
        next(running)
        there.Abort(messages.AbortRequest(request_ids=["nobody", "no id!", "abort-one-of-two"]), timeout=10)
        assert [item.complete.finish_reason for item in running][-1] == "abort"
    shared.wait_empty()


def ask_both(
    cluster: ClusterUnderTest, requests: Sequence[inference_pb2.GenerateRequest]
) -> tuple[list[Answer], list[grpc.StatusCode]]:
    """One after another, to either process in turn: what was answered, and how the rest were refused."""
    answers: list[Answer] = []
    refusals: list[grpc.StatusCode] = []

    def ask(stub: inference_pb2_grpc.InferenceStub, request: inference_pb2.GenerateRequest) -> None:
        answer = Answer()
        try:
            for response in stub.Generate(request, timeout=90):
                answer.take(response)
        except grpc.RpcError as error:
            refusals.append(error.code())
        else:
            answers.append(answer.checked())

    with doors(cluster) as found, concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        streams = []
        for stub, request in zip(itertools.cycle(found.values()), requests):
            streams.append(pool.submit(ask, stub, request))
            time.sleep(ARRIVAL_GAP_S)
        for stream in streams:
            stream.result()
    cluster.wait_empty()
    return answers, refusals


def contracted(
    name: str, number: int, tokens: int, tpot_s: float, on_overload: contract_pb2.OnOverload.ValueType
) -> inference_pb2.GenerateRequest:
    request = greedy([20 + number, *PROMPT], tokens, request_id=f"{name}-{uuid.uuid4().hex}")
    request.contract.on_overload = on_overload
    request.contract.stages.add().prefill.ttft_s = TTFT_S
    request.contract.stages.add().decode.tpot_s = tpot_s
    return request


def test_promises_of_two_processes_are_kept_beside_each_other(shared: ClusterUnderTest) -> None:
    """Together they are asked for far more than there is: either knows what the other has promised, or half
    come late.
    """
    best_effort = contract_pb2.ON_OVERLOAD_BEST_EFFORT
    answers, refusals = ask_both(
        shared, [contracted("beside", number, 4, 1.0, best_effort) for number in range(REQUESTS)]
    )
    assert not refusals
    assert len(answers) == REQUESTS, "every stream was complete"
    promised = [answer for answer in answers if promises(answer)]
    kept = sum(answer.finished is not None and answer.finished.achieved.kept for answer in promised)
    assert 0.2 * REQUESTS < len(promised) < 0.9 * REQUESTS, "some were promised, and not all could be"
    assert kept >= 0.95 * len(promised)


def test_memory_is_promised_once_by_two_processes(shared: ClusterUnderTest) -> None:
    """Two decode workers have memory for four of these each. What is handed over to a worker that is full waits for its
    second token until another ends, far longer than its contract allows.
    """
    refuse = contract_pb2.ON_OVERLOAD_REFUSE
    requests = [contracted("memory", number, FULL_OUTPUT, WIDE_TPOT_S, refuse) for number in range(ASKED_AT_ONCE)]
    answers, refusals = ask_both(shared, requests)
    assert set(refusals) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(answers) + len(refusals) == ASKED_AT_ONCE, "every stream was complete, or refused"
    assert 2 <= len(answers) <= 12, "16 are promised if each process takes all memory for its own"
    kept = sum(answer.finished is not None and answer.finished.achieved.kept for answer in answers)
    assert kept >= len(answers) - 2, "on a machine that is busy with something else one may be late"


def promises(answer: Answer) -> bool:
    return answer.admission is not None and answer.admission.verdict == inference_pb2.VERDICT_GUARANTEED


def test_a_killed_process_takes_its_own_streams_and_comes_back(shared: ClusterUnderTest) -> None:
    with doors(shared) as found:
        children = router_children(shared)
        assert len(children) == 2
        streams = {router_id: stub.Generate(greedy([20, 21], 400), timeout=60) for router_id, stub in found.items()}
        for stream in streams.values():
            next(iter(stream))
        os.kill(children[0].pid, signal.SIGKILL)
        ends = []
        for stream in streams.values():
            answer = Answer()
            try:
                for response in stream:
                    answer.admission = answer.admission or inference_pb2.Admission()
                    answer.take(response)
                ends.append("finished")
            except grpc.RpcError as error:
                ends.append(error.code().name)
        assert sorted(ends) == ["UNAVAILABLE", "finished"], "the other process goes on"
        # While one is missing, new connections go to the one that is there.
        for _ in range(4):
            with grpc.insecure_channel(shared.address, channel_options(1 << 22)) as channel:
                stub = inference_pb2_grpc.InferenceStub(channel)
                state = stub.GetClusterState(inference_pb2.GetClusterStateRequest(), timeout=30)
                assert state.state.router_id in found
    with doors(shared) as again:
        assert set(again) == set(found), "it came back under its name"
    shared.wait_empty()


def test_sigterm_lets_the_streams_of_all_processes_end(shared: ClusterUnderTest) -> None:
    with doors(shared) as found:
        streams = [stub.Generate(greedy([20, 21], 60), timeout=60) for stub in found.values()]
        for stream in streams:
            next(iter(stream))
        parent = next(process for process in shared.launcher._running.processes if process.name == "router").process()
        assert parent is not None
        parent.send_signal(signal.SIGTERM)
        for stream in streams:
            assert [response for response in stream if response.HasField("finished")]
        wait_until(lambda: not parent.is_running() or parent.status() == psutil.STATUS_ZOMBIE, "the routers to end")
