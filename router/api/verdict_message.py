"""The first message of a stream: the verdict about the request, as its client gets it."""

from __future__ import annotations

from collections.abc import Iterable

from router.admission.refusals import impossible_error
from router.cluster.cluster_view import ClusterView
from services.contract.resolution import in_force
from services.slo.admission import Assessment
from services.slo.planner import Binding
from services.slo.quotas import Standing
from slos_serve.contract import contract_to_wire
from slos_serve.v1 import inference_pb2

_BINDING = {
    Binding.NONE: inference_pb2.BINDING_RESOURCE_UNSPECIFIED,
    Binding.NO_CONTRACT: inference_pb2.BINDING_RESOURCE_NO_CONTRACT,
    Binding.PREFILL_TIME: inference_pb2.BINDING_RESOURCE_PREFILL_TIME,
    Binding.DECODE_RATE: inference_pb2.BINDING_RESOURCE_DECODE_RATE,
    Binding.KV_MEMORY: inference_pb2.BINDING_RESOURCE_KV_MEMORY,
    Binding.NO_WORKER: inference_pb2.BINDING_RESOURCE_NO_WORKER,
    Binding.PRICE: inference_pb2.BINDING_RESOURCE_PRICE,
    Binding.FAIR_SHARE: inference_pb2.BINDING_RESOURCE_FAIR_SHARE,
}


def admission_message(
    assessment: Assessment,
    cluster: ClusterView,
    request_id: str,
    prompt_tokens: int,
    standings: Iterable[Standing] = (),
    *,
    with_workers: bool = True,
) -> inference_pb2.Admission:
    """Return the answer to a contract. It has no verdict if the request would be refused, as only a quote can say.

    Args:
        request_id: the id by which the client knows the request.
        standings: what the tenant may still use of its quotas.
        with_workers: name the workers, which only those are told who may observe the cluster.
    """
    placement = assessment.placement
    verdict = inference_pb2.VERDICT_GUARANTEED if assessment.guaranteed else inference_pb2.VERDICT_BEST_EFFORT
    worker = cluster.workers.get(placement.decode_worker_id)
    return inference_pb2.Admission(
        request_id=request_id,
        verdict=inference_pb2.VERDICT_UNSPECIFIED if assessment.to_be_refused else verdict,
        predicted=inference_pb2.Prediction(
            ttft_s=placement.ttft.expected_s,
            tpot_s=placement.tpot.expected_s,
            ttft_bound_s=placement.ttft.bound_s,
            tpot_bound_s=placement.tpot.bound_s,
        ),
        contract=contract_to_wire(in_force(assessment.contract)),
        model=cluster.model_name,
        prompt_tokens=prompt_tokens,
        prefill_worker_id=placement.prefill_worker_id if with_workers else "",
        decode_worker_id=placement.decode_worker_id if with_workers else "",
        reason=_reason(assessment),
        emulated=worker is not None and worker.facts.emulated,
        binding=_BINDING[assessment.binding],
        earliest_guarantee_s=assessment.earliest_guarantee_s,
        rate_limits=rate_limit_messages(standings),
    )


def rate_limit_messages(standings: Iterable[Standing]) -> list[inference_pb2.RateLimit]:
    """Return what may still be used of quotas, as it goes over the wire."""
    return [
        inference_pb2.RateLimit(
            quota=each.quota.value, limit=each.limit, remaining=each.remaining, reset_s=each.reset_s
        )
        for each in standings
    ]


def _reason(assessment: Assessment) -> str:
    if assessment.impossible is not None:
        return str(impossible_error(assessment.impossible).detail)
    return assessment.binding.value
