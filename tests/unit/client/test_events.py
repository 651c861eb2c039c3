"""Messages become dataclasses field by field, also messages of older and later routers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from slos_serve import (
    Achieved,
    Admission,
    Binding,
    ClusterState,
    Completion,
    Contract,
    Counters,
    DecodeTarget,
    Finished,
    FinishReason,
    KvPull,
    OnOverload,
    Phases,
    Prediction,
    PrefillTarget,
    ProfileState,
    RateLimit,
    Scheduling,
    StageAchieved,
    TenantState,
    TokenLogprob,
    Tokens,
    Trouble,
    Verdict,
    WorkerHealth,
    WorkerRole,
    WorkerState,
)
from slos_serve.cluster import cluster_state_from_wire
from slos_serve.contract import contract_from_wire
from slos_serve.events import event_from_wire, quote_from_wire
from slos_serve.gathering import Gathering
from slos_serve.v1 import contract_pb2, inference_pb2, sampling_pb2

PHASES = {
    "queue_s": 1.0,
    "plan_s": 2.0,
    "prefill_wait_s": 3.0,
    "prefill_s": 4.0,
    "handover_s": 5.0,
    "decode_s": 6.0,
    "restart_s": 7.0,
}
CONTRACT = contract_pb2.Contract(
    profile="coder",
    stages=[
        contract_pb2.Stage(prefill=contract_pb2.PrefillStage(ttft_s=0.5)),
        contract_pb2.Stage(decode=contract_pb2.DecodeStage(tpot_s=0.1, ends_with="x")),
        contract_pb2.Stage(decode=contract_pb2.DecodeStage(tpot_s=0.2)),
    ],
    final_stages=[contract_pb2.DecodeStage(tpot_s=0.3)],
    value=0.0,
    on_overload=contract_pb2.ON_OVERLOAD_REFUSE,
    session_id="s",
    session_final=True,
    task_deadline_s=0.0,
)
ADMISSION = inference_pb2.Admission(
    request_id="r",
    verdict=inference_pb2.VERDICT_BEST_EFFORT,
    predicted=inference_pb2.Prediction(ttft_s=1.0, tpot_s=2.0, ttft_bound_s=3.0, tpot_bound_s=4.0),
    contract=CONTRACT,
    model="m",
    prompt_tokens=5,
    prefill_worker_id="p",
    decode_worker_id="d",
    reason="no room",
    emulated=True,
    binding=inference_pb2.BINDING_RESOURCE_KV_MEMORY,
    earliest_guarantee_s=0.0,
    rate_limits=[inference_pb2.RateLimit(quota="requests_per_s", limit=5.0, remaining=3.5, reset_s=0.75)],
)
ADMITTED = Admission(
    request_id="r",
    verdict=Verdict.BEST_EFFORT,
    predicted=Prediction(1.0, 2.0, 3.0, 4.0),
    contract=Contract(
        profile="coder",
        prefill=PrefillTarget(ttft_s=0.5),
        decode=(DecodeTarget(0.1, "x"), DecodeTarget(0.2)),
        final_decode=(DecodeTarget(0.3),),
        value=0.0,
        on_overload=OnOverload.REFUSE,
        session_id="s",
        session_final=True,
        task_deadline_s=0.0,
    ),
    model="m",
    prompt_tokens=5,
    prefill_worker_id="p",
    decode_worker_id="d",
    reason="no room",
    binding=Binding.KV_MEMORY,
    earliest_guarantee_s=0.0,
    emulated=True,
    rate_limits=(RateLimit("requests_per_s", 5.0, 3.5, 0.75),),
)


def test_an_admission() -> None:
    assert event_from_wire(inference_pb2.GenerateResponse(admission=ADMISSION)) == ADMITTED
    plain = event_from_wire(
        inference_pb2.GenerateResponse(
            admission=inference_pb2.Admission(verdict=inference_pb2.VERDICT_GUARANTEED, binding=99)  # type: ignore[arg-type]
        )
    )
    assert isinstance(plain, Admission)
    assert (plain.verdict, plain.binding) == (Verdict.GUARANTEED, Binding.NOTHING), "a bound of a later router"
    assert (plain.earliest_guarantee_s, plain.contract) == (None, Contract())


@pytest.mark.parametrize("impossible", [False, True])
def test_a_quote(*, impossible: bool) -> None:
    quote = quote_from_wire(inference_pb2.QuoteResponse(admission=ADMISSION, impossible=impossible))
    assert (quote.admission, quote.impossible) == (ADMITTED, impossible)


def test_a_contract_of_a_later_router_is_read_as_far_as_it_is_known() -> None:
    message = contract_pb2.Contract(
        stages=[
            contract_pb2.Stage(),
            contract_pb2.Stage(prefill=contract_pb2.PrefillStage()),
            contract_pb2.Stage(prefill=contract_pb2.PrefillStage(max_slowdown=2.0)),
        ],
        on_overload=9,  # type: ignore[arg-type]
    )
    assert contract_from_wire(message) == Contract(prefill=PrefillTarget(max_slowdown=2.0))


def test_tokens() -> None:
    chunk = inference_pb2.TokenChunk(index=3, token_ids=[7, 8], text="ab")
    chunk.logprobs.add(entries=[sampling_pb2.TokenLogprob(token_id=7, logprob=-0.5, rank=2)])
    assert event_from_wire(inference_pb2.GenerateResponse(tokens=chunk)) == Tokens(
        3, (7, 8), "ab", ((TokenLogprob(7, -0.5, 2),),)
    )


def finished(**more: Any) -> inference_pb2.Finished:
    return inference_pb2.Finished(
        reason=sampling_pb2.FINISH_REASON_STOP,
        matched_stop="END",
        prompt_tokens=1,
        completion_tokens=2,
        cached_tokens=3,
        achieved=inference_pb2.Achieved(
            ttft_s=0.5,
            stages=[
                inference_pb2.StageAchieved(tokens=1, mean_tpot_s=0.1, required_tpot_s=0.4, late_tokens=6),
                inference_pb2.StageAchieved(tokens=2, mean_tpot_s=0.2, required_tpot_s=0.3),
            ],
            worst_gap_s=0.7,
            kept=True,
            missed="late",
        ),
        phases=inference_pb2.Phases(**PHASES),
        restarts=4,
        kv_recomputes=5,
        trace_id="t",
        **more,
    )


def test_the_end() -> None:
    pull = inference_pb2.KvPull(bytes=10, transfer_s=0.1, wait_s=0.2)
    event = event_from_wire(inference_pb2.GenerateResponse(finished=finished(kv_pull=pull)))
    assert event == Finished(
        reason=FinishReason.STOP,
        matched_stop="END",
        prompt_tokens=1,
        completion_tokens=2,
        cached_tokens=3,
        achieved=Achieved(
            ttft_s=0.5,
            stages=(StageAchieved(1, 0.1, 0.4, 6), StageAchieved(2, 0.2, 0.3, 0)),
            worst_gap_s=0.7,
            kept=True,
            missed="late",
        ),
        phases=Phases(**PHASES),
        restarts=4,
        kv_recomputes=5,
        kv_pull=KvPull(10, 0.1, 0.2),
        trace_id="t",
    )
    without_pull = event_from_wire(inference_pb2.GenerateResponse(finished=finished()))
    assert isinstance(without_pull, Finished)
    assert without_pull.kv_pull is None


def test_the_tpot_of_a_request_is_that_of_its_slowest_stage() -> None:
    stages = tuple(StageAchieved(1, 0.1, required_s, 0) for required_s in (0.2, 0.4, 0.3))
    assert Achieved(0.5, stages, 0.7, kept=True, missed="").tpot_s == 0.4
    assert Achieved(0.5, (), 0.0, kept=True, missed="").tpot_s == 0.0


def test_a_stream_put_together() -> None:
    first = Tokens(0, (7,), "a", ((TokenLogprob(7, -0.5, 2),),))
    second = Tokens(1, (8,), "b", ((TokenLogprob(8, -0.25, 1),),))
    end = event_from_wire(inference_pb2.GenerateResponse(finished=finished()))
    assert isinstance(end, Finished)
    gathering = Gathering()
    gathering.take(ADMITTED)
    gathering.take(first)
    gathering.take(second)
    with pytest.raises(RuntimeError, match="before its end"):
        gathering.completion()
    gathering.take(end)
    assert gathering.completion() == Completion("ab", (7, 8), (*first.logprobs, *second.logprobs), ADMITTED, end)


def distinct(kind: type[Any], **given: Any) -> Any:
    """An object whose numbers and texts all differ, so that no two fields can be mixed up unnoticed."""
    values: dict[str, Any] = {}
    for number, one in enumerate(fields(kind), start=1):
        if one.name in given:
            continue
        values[one.name] = {"int": number, "float": number / 4, "str": f"text {number}", "bool": True}[str(one.type)]
    return kind(**values, **given)


def wire_of(message: Any, thing: Any, **given: Any) -> Any:
    """The message whose fields have the names and values of a dataclass."""
    return message(**{one.name: getattr(thing, one.name) for one in fields(thing) if one.name not in given}, **given)


SCHEDULING = distinct(Scheduling)
WORKER = distinct(WorkerState, role=WorkerRole.DECODE, health=WorkerHealth.DRAINING, scheduling=SCHEDULING)
COUNTERS = distinct(Counters)
PROFILE = distinct(ProfileState, refused={"PRICE": 3}, missed_in={"decode": 4}, mean_phases=Phases(**PHASES))
TROUBLE = distinct(Trouble)
TENANT = TenantState("acme", (RateLimit("requests_per_s", 5.0, 3.5, 0.75),))
STATE = distinct(
    ClusterState,
    workers=(WORKER,),
    counters=COUNTERS,
    warnings=("one", "two"),
    profiles=(PROFILE,),
    trouble=(TROUBLE,),
    tenants=(TENANT,),
)


def test_the_state_of_a_cluster() -> None:
    worker = wire_of(
        inference_pb2.WorkerState,
        WORKER,
        role=inference_pb2.WORKER_ROLE_DECODE,
        health=inference_pb2.WORKER_HEALTH_DRAINING,
        scheduling=wire_of(inference_pb2.SchedulingState, SCHEDULING),
    )
    message = wire_of(
        inference_pb2.ClusterState,
        STATE,
        workers=[worker],
        counters=wire_of(inference_pb2.Counters, COUNTERS),
        profiles=[wire_of(inference_pb2.ProfileState, PROFILE, mean_phases=inference_pb2.Phases(**PHASES))],
        trouble=[wire_of(inference_pb2.Trouble, TROUBLE)],
        tenants=[inference_pb2.TenantState(tenant="acme", limits=ADMISSION.rate_limits)],
    )
    assert cluster_state_from_wire(message) == STATE


def test_the_state_that_an_older_or_later_router_tells() -> None:
    worker = inference_pb2.WorkerState(role=9, health=9)  # type: ignore[arg-type]
    state = cluster_state_from_wire(inference_pb2.ClusterState(workers=[worker]))
    assert (state.process, state.processes) == (1, 1), "an older router is alone"
    (shown,) = state.workers
    assert (shown.role, shown.health, shown.scheduling) == (WorkerRole.UNKNOWN, WorkerHealth.UNKNOWN, None)
