"""Conversions between worker.proto and the engine port."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services import wire
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import KvHandle, KvPull, LeaseOutcome
from services.engine.protocol import (
    EngineFacts,
    EngineLoad,
    EngineRequest,
    EngineStep,
    FinishReason,
    RequestOutput,
    RequestTimings,
    SamplingOptions,
    Scheduling,
    TokenLogprob,
)
from services.slo.performance import PerformanceCoefficients, StepShape
from services.state.registry import WorkerRole
from slos_serve.v1 import sampling_pb2, worker_pb2

COMPATIBILITY = Compatibility("fingerprint", "bfloat16", "auto", 32, 1, "HND", "vllm 0.32")
HANDLE = KvHandle("lease", "prefill-0", "epoch", 30.0, 100, 4096, COMPATIBILITY, '{"port": 5}', "secret")
SAMPLING = SamplingOptions(
    max_tokens=20,
    temperature=0.0,
    top_p=0.5,
    top_k=3,
    min_p=0.25,
    presence_penalty=-1.0,
    frequency_penalty=1.0,
    repetition_penalty=1.5,
    min_tokens=2,
    seed=7,
    stop_token_ids=(1, 2),
    ignore_eos=True,
    logprobs=0,
    logit_bias={5: -1.5},
)
REQUEST = EngineRequest("r", (1, 2, 3), 1, SAMPLING, False, HANDLE, -0.5, 0.05, True, "coder", "salt")


def sent(message: worker_pb2.Submit) -> worker_pb2.Submit:
    return worker_pb2.Submit.FromString(message.SerializeToString())


def test_a_submission_arrives_as_it_was_sent() -> None:
    message = sent(wire.submit_to_wire(REQUEST, attempt=2, traceparent="00-1"))
    assert (message.request_id, message.attempt, message.traceparent) == ("r", 2, "00-1")
    assert wire.submit_from_wire(message, "engine-r") == replace(REQUEST, request_id="engine-r")


def test_what_is_unset_stays_unset() -> None:
    request = EngineRequest("r", (1,), 0, SamplingOptions(max_tokens=1), export_kv=True)
    assert wire.submit_from_wire(sent(wire.submit_to_wire(request, 0)), "r") == request
    bare = worker_pb2.Submit(token_ids=[1], sampling=sampling_pb2.SamplingParams(max_tokens=1))
    assert wire.submit_from_wire(bare, "r") == replace(request, export_kv=False)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"token_ids": ()}, "token_ids"),
        ({"generated_tokens": 3}, "generated_tokens"),
        ({"generated_tokens": -1}, "generated_tokens"),
        ({"sampling": SamplingOptions(max_tokens=0)}, "sampling.max_tokens"),
        ({"sampling": SamplingOptions(max_tokens=1)}, "sampling.max_tokens"),
        ({"sampling": SamplingOptions(max_tokens=9, temperature=float("nan"))}, "sampling.temperature"),
        ({"sampling": SamplingOptions(max_tokens=9, logit_bias={3: float("inf")})}, "sampling.logit_bias[3]"),
        ({"deadline_in_s": float("nan")}, "deadline_in_s"),
        ({"export_kv": True}, "kv_source"),
        ({"cache_salt": "x" * 129}, "cache_salt"),
        ({"kv_source": replace(HANDLE, lease_remaining_s=float("inf"))}, "kv.lease_remaining_s"),
    ],
)
def test_nonsense_names_its_field(change: dict[str, object], field: str) -> None:
    message = sent(wire.submit_to_wire(replace(REQUEST, **change), 0))  # type: ignore[arg-type]
    with pytest.raises(wire.WireError) as raised:
        wire.submit_from_wire(message, "r")
    assert raised.value.field == field


def test_a_handle_is_as_old_as_it_is() -> None:
    assert wire.kv_handle_from_wire(wire.kv_handle_to_wire(HANDLE)) == HANDLE
    assert wire.kv_handle_to_wire(HANDLE, age_s=12.5).lease_remaining_s == 17.5
    assert wire.kv_handle_to_wire(HANDLE, age_s=31.0).lease_remaining_s == 0.0


def test_a_report_arrives_as_it_was_sent() -> None:
    shape = StepShape(1, 100, 5000.5, 3, 4, 700)
    load = EngineLoad(4, 2, 100, 40, 10)
    output = RequestOutput(
        request_id="engine-r",
        token_ids=(5, 6),
        logprobs=((TokenLogprob(5, -0.5, 1), TokenLogprob(6, -1.0, 2)), (TokenLogprob(6, -0.25, 1),)),
        finish_reason=FinishReason.STOP,
        stop_token_id=0,
        kv=HANDLE,
        timings=RequestTimings(0.1, 0.2, 16, KvPull(4096, 0.05), "expired"),
    )
    scheduling = Scheduling(0.035, 0.045, 1e-4, preempted=1, held=2, contracts_malformed=3, drafted=9, accepted=4)
    step = EngineStep(9, 0.04, shape, (output,), load, scheduling)
    report = wire.step_to_wire(step, [wire.output_to_wire(output, "r", 3)])
    report = worker_pb2.StepReport.FromString(report.SerializeToString())
    assert (report.step, report.duration_s) == (9, 0.04)
    assert wire.shape_from_wire(report.shape) == shape
    assert wire.load_from_wire(report.load) == load
    assert wire.scheduling_from_wire(report.scheduling) == scheduling
    assert report.outputs[0].attempt == 3
    assert report.outputs[0].timings.kv_pull.wait_s == 0.1
    assert wire.output_from_wire(report.outputs[0]) == replace(output, request_id="r")
    wire.age_leases(report, 10.0)
    assert report.outputs[0].kv.lease_remaining_s == 20.0


def test_an_output_that_goes_on() -> None:
    output = RequestOutput("r", (1,))
    message = wire.output_to_wire(output, "r", 0)
    assert not message.HasField("kv")
    assert not message.HasField("timings")
    assert not message.HasField("stop_token_id")
    assert wire.output_from_wire(message) == output


def test_a_description_arrives_as_it_was_sent() -> None:
    facts = EngineFacts(
        engine_epoch="epoch",
        compatibility=COMPATIBILITY,
        model="model",
        max_context_tokens=8192,
        vocabulary_size=49152,
        eos_token_ids=(0, 2),
        kv_blocks_total=100,
        kv_bytes_per_token=22528,
        max_step_tokens=2048,
        max_running_requests=64,
        kv_lease_s=30.0,
        performance=PerformanceCoefficients(0.03, 1e-4, 1e-6, 1e-7, "measured"),
        emulated=False,
    )
    description = wire.WorkerDescription("w", WorkerRole.PREFILL, facts, EngineLoad(1, 2, 3, 4, 5), draining=False)
    for role in WorkerRole:
        description = wire.WorkerDescription("w", role, facts, EngineLoad(1, 2, 3, 4, 5), draining=True)
        assert wire.description_from_wire(wire.description_to_wire(description)) == description
    broken = wire.description_to_wire(description)
    broken.performance.overhead_s = float("nan")
    with pytest.raises(wire.WireError, match="overhead_s"):
        wire.description_from_wire(broken)
    broken.performance.overhead_s = 0.03
    broken.performance.per_token_s = 1.7e308  # Two tokens of it take longer than any number.
    with pytest.raises(wire.WireError, match="per_token_s"):
        wire.description_from_wire(broken)
    with pytest.raises(wire.WireError, match="role"):
        wire.description_from_wire(worker_pb2.WorkerDescription())


def test_every_reason_and_outcome_has_a_value() -> None:
    assert all(wire.finish_reason_from_wire(wire.finish_reason_to_wire(reason)) is reason for reason in FinishReason)
    assert wire.finish_reason_from_wire(wire.finish_reason_to_wire(None)) is None
    assert all(wire.lease_outcome_from_wire(wire.lease_outcome_to_wire(end)) is end for end in LeaseOutcome)
    with pytest.raises(wire.WireError):
        wire.lease_outcome_from_wire(worker_pb2.LEASE_OUTCOME_UNSPECIFIED)


def test_log_probabilities_that_nobody_can_have_asked_for_are_refused() -> None:
    asked = worker_pb2.RequestOutput(token_ids=[1, 2])
    for _ in range(2):
        asked.logprobs.add().entries.extend([sampling_pb2.TokenLogprob(token_id=1)] * 21)
    wire.check_output(asked, 10)
    asked.logprobs[1].entries.add()
    with pytest.raises(wire.WireError, match="of one token"):
        wire.check_output(asked, 10)
    del asked.logprobs[:], asked.token_ids[1:]
    asked.logprobs.extend([sampling_pb2.TokenLogprobs()] * 300)
    with pytest.raises(wire.WireError, match="300 for 1 tokens"):
        wire.check_output(asked, 10)


def test_more_outputs_than_a_step_can_have_are_refused() -> None:
    report = worker_pb2.StepReport(outputs=[worker_pb2.RequestOutput()] * 4096)
    wire.check_outputs(report, 16)
    report.outputs.add()
    wire.check_outputs(report, 5000)
    with pytest.raises(wire.WireError, match=r"step\.outputs: at most 4096; got 4097"):
        wire.check_outputs(report, 16)
    with pytest.raises(wire.WireError):
        wire.check_outputs(worker_pb2.StepReport(outputs=[worker_pb2.RequestOutput()] * 100_001), 2**31 - 1)
