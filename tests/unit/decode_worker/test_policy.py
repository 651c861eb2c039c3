"""What a decode worker takes, and what it says became of KV caches."""

from __future__ import annotations

from dataclasses import replace

from decode_worker.policy import DecodePolicy
from services.engine.kv.handle import KvHandle, KvPull
from services.engine.protocol import EngineRequest, FinishReason, RequestOutput, RequestTimings, SamplingOptions
from services.worker.policy import Refusal
from tests.support.engine_facts import FACTS
from tests.unit.services.worker.worker_support import COMPATIBILITY, handle


def request(kv: KvHandle | None = None, request_id: str = "r") -> EngineRequest:
    return EngineRequest(request_id, (1, 2, 3, 4), 1, SamplingOptions(max_tokens=4), kv_source=kv)


def first(reason: str = "", pull: KvPull | None = None, request_id: str = "r") -> RequestOutput:
    """The first output of a request."""
    timings = RequestTimings(0.1, 0.2, kv_pull=pull, kv_recompute_reason=reason)
    return RequestOutput(request_id, (5,), timings=timings)


def test_continuations_and_prompts_are_taken_but_nothing_is_exported() -> None:
    policy = DecodePolicy()
    for taken in (request(), request(handle())):
        assert policy.admit(taken, FACTS) is taken
    exporting = replace(request(), export_kv=True)
    assert policy.admit(exporting, FACTS) == Refusal("a decode worker exports no KV cache", True)


def test_the_output_of_another_model_is_not_continued() -> None:
    foreign = handle(compatibility=replace(COMPATIBILITY, model_fingerprint="another"))
    refusal = DecodePolicy().admit(request(foreign), FACTS)
    assert isinstance(refusal, Refusal)
    assert not refusal.invalid
    assert refusal.detail == "the request was begun by another model: model_fingerprint: fingerprint != another"


def test_an_unusable_handle_is_set_aside_and_its_reason_told_with_the_first_output() -> None:
    policy = DecodePolicy()
    admitted = policy.admit(request(handle(lease_remaining_s=0.0)), FACTS)
    assert isinstance(admitted, EngineRequest)
    assert admitted.kv_source is None
    told = policy.annotate(first("the engine's own reason"))
    assert told.timings is not None
    assert told.timings.kv_recompute_reason.startswith("the lease has 0.000 s left")
    assert (policy.pulls, policy.recomputes) == (0, 1)
    again = policy.annotate(first())
    assert again.timings is not None
    assert again.timings.kv_recompute_reason == "", "it is told once"


def test_the_engines_reason_counts_like_the_workers() -> None:
    policy = DecodePolicy()
    told = policy.annotate(first("the lease was released", KvPull(10, 0.1)))
    assert told.timings is not None
    assert told.timings.kv_recompute_reason == "the lease was released"
    assert (policy.pulls, policy.pulled_bytes, policy.recomputes) == (0, 0, 1)


def test_pulls_are_counted_with_their_bytes() -> None:
    policy = DecodePolicy()
    for size in (640, 320):
        policy.annotate(first(pull=KvPull(size, 0.1)))
    policy.annotate(first())
    assert (policy.pulls, policy.pulled_bytes, policy.recomputes) == (2, 960, 0)
    assert policy.summary() == "KV caches pulled: 2 (960 bytes), computed again: 0"


def test_later_outputs_are_passed_on_as_they_are() -> None:
    policy = DecodePolicy()
    later = RequestOutput("r", (6,), finish_reason=FinishReason.STOP)
    assert policy.annotate(later) is later


def test_a_request_that_ended_without_an_output_is_forgotten() -> None:
    policy = DecodePolicy()
    policy.admit(request(handle(tokens=0)), FACTS)
    policy.finished("r")
    policy.finished("never admitted")
    told = policy.annotate(first())
    assert told.timings is not None
    assert told.timings.kv_recompute_reason == ""
