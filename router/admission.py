"""Decides about a request the moment it arrives: guaranteed, best effort, or refused and why."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from router.cluster_view import ClusterView, decode_views, prefill_views
from router.live_request import LiveRequest
from router.parsing import ParsedRequest
from services.rpc.errors import (
    ImpossibleContractError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    RequestError,
)
from services.slo.admission import Ask, Binding, Placement, idle_decode_step_s, idle_prefill_s, place
from services.slo.contract import Contract, OnOverload

DEFAULT_RETRY_S = 1.0
RETRY_JITTER = 0.2
"""Spread of the retry time, so that what was refused together does not come back together."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What would become of a request, were it taken now."""

    contract: Contract
    """Resolved: slowdowns are seconds."""
    placement: Placement
    impossible: ImpossibleContractError | None
    """Set if not even an idle worker could keep the contract."""
    earliest_guarantee_s: float | None
    """In how many seconds it would be guaranteed; None when it is already, or when that cannot be seen."""

    @property
    def refused(self) -> RequestError | None:
        """The refusal, if the contract asks for one rather than for service without a guarantee."""
        wants_refusal = self.contract.promises_anything and self.contract.on_overload is OnOverload.REFUSE
        if self.placement.guaranteed or not wants_refusal:
            return None
        if self.impossible is not None:
            return self.impossible
        wait_s = DEFAULT_RETRY_S if self.earliest_guarantee_s is None else self.earliest_guarantee_s
        binding = self.placement.binding
        return OverloadedError(
            f"cannot be guaranteed now: {binding.value}",
            retry_after_s=wait_s * (1 + RETRY_JITTER * random.random()),
            metadata={
                "binding": binding.name,
                "predicted_ttft_s": f"{self.placement.predicted_ttft_s:.4f}",
                "predicted_tpot_s": f"{self.placement.predicted_tpot_s:.4f}",
            },
        )


def assess(
    parsed: ParsedRequest,
    cluster: ClusterView,
    requests: Iterable[LiveRequest],
    arrival_s: float,
    now_s: float,
    best_effort_patience_s: float,
) -> Assessment:
    """
    Raises:
        NoWorkerError: no pair of workers matches.
        InvalidRequestError: prompt and output are larger than any worker's KV cache.
    """
    requests = list(requests)
    groups = cluster.groups()
    if not groups:
        raise NoWorkerError(cluster.missing(), retry_after_s=DEFAULT_RETRY_S)
    views = [(prefill_views(group.prefill, requests, now_s), decode_views(group.decode, requests)) for group in groups]
    prompt_tokens = len(parsed.prompt)
    idle_s = min(idle_prefill_s(prompt_tokens, prefill) for prefill, _ in views)
    idle_step_s = min(idle_decode_step_s(prompt_tokens, decode) for _, decode in views)
    contract = parsed.contract.resolved(idle_s)
    ask = Ask(arrival_s, prompt_tokens, parsed.sampling.max_tokens, contract)
    placements = [
        placement
        for prefill, decode in views
        if (placement := place(ask, prefill, decode, now_s, best_effort_patience_s)) is not None
    ]
    if not placements:
        raise InvalidRequestError(
            f"{prompt_tokens} prompt tokens and {parsed.sampling.max_tokens} output tokens do not fit into the KV "
            "cache of any worker",
            field="sampling.max_tokens",
        )
    best = min(placements, key=lambda placement: (not placement.guaranteed, placement.predicted_ttft_s))
    return Assessment(contract, best, _impossible(contract, idle_s, idle_step_s), _earliest_s(contract, best))


def admit(
    parsed: ParsedRequest,
    cluster: ClusterView,
    requests: Iterable[LiveRequest],
    arrival_s: float,
    now_s: float,
    best_effort_patience_s: float,
) -> Assessment:
    """
    Raises:
        NoWorkerError, InvalidRequestError: as `assess`.
        ImpossibleContractError: not even an idle worker could keep the contract, and it asks to be refused then.
        OverloadedError: it cannot be guaranteed now, and it asks to be refused then.
    """
    assessment = assess(parsed, cluster, requests, arrival_s, now_s, best_effort_patience_s)
    if (refusal := assessment.refused) is not None:
        raise refusal
    return assessment


def _impossible(contract: Contract, idle_prefill_s: float, idle_step_s: float) -> ImpossibleContractError | None:
    ttft_s, tpot_s = contract.ttft_s(idle_prefill_s), contract.tightest_tpot_s
    if ttft_s is not None and ttft_s < idle_prefill_s:
        return ImpossibleContractError(
            f"TTFT {ttft_s * 1e3:.3g} ms: an idle worker needs {idle_prefill_s * 1e3:.3g} ms for this prompt",
            field="contract.stages[0].prefill",
        )
    if tpot_s is not None and tpot_s < idle_step_s:
        return ImpossibleContractError(
            f"TPOT {tpot_s * 1e3:.3g} ms: an idle worker needs {idle_step_s * 1e3:.3g} ms a token",
            field="contract.stages",
        )
    return None


def _earliest_s(contract: Contract, placement: Placement) -> float | None:
    """A late prompt would be in time once the prefill worker has worked off what makes it late."""
    if placement.binding not in (Binding.PREFILL_TIME, Binding.EARLIER_GUARANTEE):
        return None
    ttft_s = contract.ttft_s(0.0)
    return max(0.0, placement.ttft_bound_s - (ttft_s or 0.0))
