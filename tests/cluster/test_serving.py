"""Emulated engines: what a client sees of a healthy cluster."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from slos_serve.v1 import contract_pb2, inference_pb2, sampling_pb2
from tests.support.cluster import ClusterUnderTest, greedy

pytestmark = pytest.mark.cluster

PROMPT = list(range(20, 120))
ROUNDS = 20


def test_a_stream_is_admission_then_tokens_then_figures(emulated: ClusterUnderTest) -> None:
    request = greedy(PROMPT, 20)
    # Wide enough for workers that tests before this one have made stall.
    request.contract.stages.add().prefill.max_slowdown = 100.0
    request.contract.stages.add().decode.tpot_s = 5.0
    answer = emulated.generate(request)
    assert answer.admission is not None
    assert answer.finished is not None
    assert answer.admission.verdict == inference_pb2.VERDICT_GUARANTEED
    assert answer.admission.emulated
    assert answer.admission.prompt_tokens == 100
    assert answer.admission.contract.stages[0].prefill.ttft_s > 0, "the slowdown is resolved"
    assert answer.finished.reason == sampling_pb2.FINISH_REASON_LENGTH
    assert len(answer.token_ids) == 20
    achieved, phases = answer.finished.achieved, answer.finished.phases
    before_first = phases.queue_s + phases.plan_s + phases.prefill_wait_s + phases.prefill_s
    assert before_first == pytest.approx(achieved.ttft_s, abs=2e-3)
    assert achieved.stages[0].tokens == 19
    assert answer.finished.kv_pull.bytes > 0
    assert phases.restart_s == 0


def test_the_kv_cache_is_freed_on_both_sides(emulated: ClusterUnderTest) -> None:
    emulated.generate(greedy(PROMPT, 5))
    emulated.wait_empty()


def test_greedy_tokens_are_the_same_again_and_seeded_ones_too(emulated: ClusterUnderTest) -> None:
    assert emulated.generate(greedy(PROMPT, 30)).token_ids == emulated.generate(greedy(PROMPT, 30)).token_ids
    sampled = greedy(PROMPT, 30)
    sampled.sampling.temperature = 1.0
    sampled.sampling.seed = 7
    first, second = emulated.generate(sampled), emulated.generate(sampled)
    assert first.token_ids == second.token_ids
    sampled.sampling.seed = 8
    assert emulated.generate(sampled).token_ids != first.token_ids


def test_sixty_requests_at_once_all_end(emulated: ClusterUnderTest) -> None:
    prompts = [[20 + index, *range(30, 30 + 10 * index)] for index in range(60)]
    used: set[str] = set()
    # Which decode worker is preferred depends on what was learnt of each.
    for _ in range(ROUNDS):
        with concurrent.futures.ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(lambda prompt: emulated.generate(greedy(prompt, 12)), prompts))
        assert all(len(answer.token_ids) == 12 for answer in answers)
        emulated.wait_empty()
        used |= {answer.admission.decode_worker_id for answer in answers if answer.admission is not None}
        if len(used) == 2:
            break
    assert used == {"decode-0", "decode-1"}, "both workers of the pool are used"


def test_a_stop_string_ends_the_text_before_it(emulated: ClusterUnderTest) -> None:
    whole = emulated.generate(greedy(PROMPT, 30)).text
    stop = whole[10:14]
    request = greedy(PROMPT, 30)
    request.sampling.stop.append(stop)
    answer = emulated.generate(request)
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finished is not None
    assert answer.finished.reason == sampling_pb2.FINISH_REASON_STOP
    assert answer.finished.matched_stop == stop
    request.sampling.include_stop_str_in_output = True
    assert emulated.generate(request).text == whole[: whole.index(stop) + len(stop)]
    emulated.wait_empty()


def test_a_stop_token_ends_the_stream(emulated: ClusterUnderTest) -> None:
    tokens = emulated.generate(greedy(PROMPT, 30)).token_ids
    for position in (0, 7):
        request = greedy(PROMPT, 30)
        request.sampling.stop_token_ids.append(tokens[position])
        answer = emulated.generate(request)
        assert answer.token_ids == tokens[: tokens.index(tokens[position]) + 1]
        assert answer.finished is not None
        assert answer.finished.matched_stop == str(tokens[position])
    emulated.wait_empty()


def test_one_token_needs_no_decode_worker(emulated: ClusterUnderTest) -> None:
    answer = emulated.generate(greedy(PROMPT, 1))
    assert answer.finished is not None
    assert answer.finished.reason == sampling_pb2.FINISH_REASON_LENGTH
    assert not answer.finished.HasField("kv_pull")


def test_logprobs_come_one_entry_a_token(emulated: ClusterUnderTest) -> None:
    request = greedy(PROMPT, 6)
    request.sampling.logprobs = 2
    answer = emulated.generate(request)
    entries = [entry for chunk in answer.chunks for entry in chunk.logprobs]
    assert [entry.entries[0].token_id for entry in entries] == answer.token_ids


def test_text_and_chat_are_tokenised_by_the_router(emulated: ClusterUnderTest) -> None:
    text = emulated.generate(greedy("hello", 3))
    assert text.admission is not None
    assert text.admission.prompt_tokens == 5
    chat = inference_pb2.GenerateRequest(sampling=sampling_pb2.SamplingParams(max_tokens=3))
    chat.chat.messages.add(role="user", content="hello")
    answer = emulated.generate(chat)
    assert answer.admission is not None
    assert answer.admission.prompt_tokens == len("<|user|>hello\n<|assistant|>")


def test_a_contract_may_come_as_metadata(emulated: ClusterUnderTest) -> None:
    metadata = (("x-slo-ttft-ms", "5000"), ("x-slo-tpot-ms", "200"))
    stream = emulated.stub.Generate(greedy(PROMPT, 2), timeout=30, metadata=metadata)
    contract = next(iter(stream)).admission.contract
    assert contract.stages[0].prefill.ttft_s == 5.0
    assert contract.stages[1].decode.tpot_s == 0.2
    assert len(list(stream)) >= 2


def test_what_cannot_be_guaranteed_is_refused_with_a_time_to_retry(emulated: ClusterUnderTest) -> None:
    def request() -> inference_pb2.GenerateRequest:
        # An idle worker needs some 0.07 s for the prompt: two workers can keep about ten of these at once.
        message = greedy([20] * 1000, 3)
        message.contract.stages.add().prefill.ttft_s = 0.4
        message.contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
        return message

    streams = [emulated.stub.Generate(request(), timeout=30) for _ in range(40)]
    refused: list[grpc.RpcError] = []
    guaranteed = 0
    for stream in streams:
        try:
            guaranteed += next(iter(stream)).admission.verdict == inference_pb2.VERDICT_GUARANTEED
        except grpc.RpcError as error:
            refused.append(error)
    assert guaranteed >= 2
    assert guaranteed + len(refused) == 40, "guaranteed or refused, nothing else"
    assert refused
    for refusal in refused:
        assert isinstance(refusal, grpc.Call)
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "prefill time" in (refusal.details() or "")
        status = rpc_status.from_call(refusal)
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
    emulated.wait_empty()


def test_health_and_reflection_are_served_by_router_and_workers(emulated: ClusterUnderTest) -> None:
    workers = {worker.address: "slos_serve.v1.Worker" for worker in emulated.state().workers}
    for address, service in {emulated.address: "slos_serve.v1.Inference", **workers}.items():
        with grpc.insecure_channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            for name in ("", service):
                answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert service in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_the_state_is_watched_at_an_interval(emulated: ClusterUnderTest) -> None:
    stream = emulated.stub.WatchClusterState(inference_pb2.WatchClusterStateRequest(interval_s=0.1), timeout=20)
    states = [next(iter(stream)).state for _ in range(3)]
    assert states[2].uptime_s > states[0].uptime_s
    assert len(states[0].workers) == 4
    stream.cancel()
