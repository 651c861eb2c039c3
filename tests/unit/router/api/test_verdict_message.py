"""The first message of a stream says what was decided, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.admission.refusals import refusal_of
from router.api.verdict_message import admission_message
from services.rpc.errors import ImpossibleContractError
from services.slo.planner import Binding
from services.slo.quotas import Quota, Standing
from slos_serve.v1 import contract_pb2, inference_pb2
from tests.unit.router.router_support import Desk, contract


def test_a_guarantee_with_its_prediction_and_contract(desk: Desk) -> None:
    answer = desk.assess("a", 1000, contract(1.0, 0.1, value=2.0), now_s=50.0)
    placement = answer.placement
    forecasts = (placement.ttft.expected_s, placement.tpot.expected_s, placement.ttft.bound_s, placement.tpot.bound_s)
    assert len(set(forecasts)) == 4
    message = admission_message(answer, desk.cluster, "mine", 1000)
    expected = contract_pb2.Contract(value=2.0, on_overload=contract_pb2.ON_OVERLOAD_BEST_EFFORT)
    expected.stages.add().prefill.ttft_s = 1.0
    expected.stages.add().decode.tpot_s = 0.1
    assert message == inference_pb2.Admission(
        request_id="mine",
        verdict=inference_pb2.VERDICT_GUARANTEED,
        predicted=inference_pb2.Prediction(
            ttft_s=forecasts[0], tpot_s=forecasts[1], ttft_bound_s=forecasts[2], tpot_bound_s=forecasts[3]
        ),
        contract=expected,
        model="m",
        prompt_tokens=1000,
        prefill_worker_id="p1",
        decode_worker_id="d1",
        reason="",
        emulated=True,
    )


def test_best_effort_says_what_binds_and_when_it_would_be_guaranteed(desk: Desk) -> None:
    answer = replace(desk.assess("a", 1000, contract(1.0, 0.1)), binding=Binding.DECODE_RATE, earliest_guarantee_s=2.5)
    message = admission_message(answer, desk.cluster, "a", 1000)
    assert message.verdict == inference_pb2.VERDICT_BEST_EFFORT
    assert message.binding == inference_pb2.BINDING_RESOURCE_DECODE_RATE
    assert message.reason == Binding.DECODE_RATE.value
    assert message.earliest_guarantee_s == 2.5
    unknown = admission_message(replace(answer, earliest_guarantee_s=None), desk.cluster, "a", 1000)
    assert not unknown.HasField("earliest_guarantee_s")


def test_a_refusal_has_no_verdict_and_an_impossible_contract_says_why(desk: Desk) -> None:
    refused = desk.assess("a", 1000, contract(0.001, refuse=True))
    refusal = refusal_of(refused)
    assert isinstance(refusal, ImpossibleContractError)
    message = admission_message(refused, desk.cluster, "a", 1000)
    assert message.verdict == inference_pb2.VERDICT_UNSPECIFIED
    assert message.reason == refusal.detail
    assert message.binding == inference_pb2.BINDING_RESOURCE_PREFILL_TIME
    served = desk.assess("a", 1000, contract(0.001))
    assert admission_message(served, desk.cluster, "a", 1000).verdict == inference_pb2.VERDICT_BEST_EFFORT


@pytest.mark.parametrize("binding", list(Binding))
def test_every_bound_has_its_name_in_the_protocol(desk: Desk, binding: Binding) -> None:
    answer = replace(desk.assess("a", 1000, contract(1.0, 0.1)), binding=binding)
    message = admission_message(answer, desk.cluster, "a", 1000)
    name = inference_pb2.BindingResource.Name(message.binding).removeprefix("BINDING_RESOURCE_")
    assert name == ("UNSPECIFIED" if binding is Binding.NONE else binding.name)


def test_a_worker_that_is_gone_by_now_is_not_said_to_be_emulated(desk: Desk) -> None:
    answer = desk.assess("a", 1000, contract(1.0, 0.1))
    desk.cluster.workers.pop("d1")
    assert not admission_message(answer, desk.cluster, "a", 1000).emulated


def test_a_tenant_is_told_what_is_left_of_its_quotas(desk: Desk) -> None:
    left = (Standing(Quota.REQUESTS, 5.0, 3.5, 0.75), Standing(Quota.QUOTES, 2.0, 1.0, 4.0))
    message = admission_message(desk.assess("a", 1000, contract()), desk.cluster, "a", 1000, left)
    assert [(each.quota, each.limit, each.remaining, each.reset_s) for each in message.rate_limits] == [
        ("requests_per_s", 5.0, 3.5, 0.75),
        ("quotes_per_s", 2.0, 1.0, 4.0),
    ]
