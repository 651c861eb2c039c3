"""Decides about a request the moment it arrives: guaranteed, best effort, or refused and why."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from router.cluster_view import ClusterView, decode_views, prefill_views
from router.live_request import LiveRequest
from router.parsing import ParsedRequest
from services.rpc.errors import ImpossibleContractError, InvalidRequestError, NoWorkerError, OverloadedError
from services.slo.admission import Ask, Placement, idle_decode_step_s, idle_prefill_s, place
from services.slo.contract import Contract, OnOverload

RETRY_JITTER = 0.2
"""Spread of the retry time, so that what was refused together does not come back together."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that will be served."""

    contract: Contract
    """Resolved."""
    placement: Placement


def admit(
    parsed: ParsedRequest,
    cluster: ClusterView,
    requests: Iterable[LiveRequest],
    arrival_s: float,
    now_s: float,
    best_effort_patience_s: float,
) -> Admitted:
    """
    Raises:
        NoWorkerError: no pair of workers matches.
        ImpossibleContractError: not even an idle worker could keep the contract, and it asks to be refused then.
        OverloadedError: it cannot be guaranteed now, and it asks to be refused then.
        InvalidRequestError: prompt and output are larger than any worker's KV cache.
    """
    requests = list(requests)
    groups = cluster.groups()
    if not groups:
        raise NoWorkerError(cluster.missing(), retry_after_s=1.0)
    views = [(prefill_views(group.prefill, requests, now_s), decode_views(group.decode, requests)) for group in groups]
    prompt_tokens = len(parsed.prompt)
    idle_s = min(idle_prefill_s(prompt_tokens, prefill) for prefill, _ in views)
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
    if contract.promises_anything and not best.guaranteed and contract.on_overload is OnOverload.REFUSE:
        idle_step_s = min(idle_decode_step_s(prompt_tokens, decode) for _, decode in views)
        raise _refusal(contract, best, idle_s, idle_step_s)
    return Admitted(contract, best)


def _refusal(
    contract: Contract, best: Placement, idle_prefill_s: float, idle_step_s: float
) -> OverloadedError | ImpossibleContractError:
    ttft_s, tpot_s = contract.ttft_s(idle_prefill_s), contract.tightest_tpot_s
    if ttft_s is not None and ttft_s < idle_prefill_s:
        return ImpossibleContractError(
            f"TTFT {ttft_s:.3f} s: an idle worker needs {idle_prefill_s:.3f} s for this prompt",
            field="contract.stages[0].prefill",
        )
    if tpot_s is not None and tpot_s < idle_step_s:
        return ImpossibleContractError(
            f"TPOT {tpot_s:.4f} s: an idle worker needs {idle_step_s:.4f} s a token", field="contract.stages"
        )
    late_s = best.predicted_ttft_s - (ttft_s if ttft_s is not None else 0.0)
    retry_s = max(late_s, idle_step_s) * (1 + RETRY_JITTER * random.random())
    return OverloadedError(
        f"cannot be guaranteed now: {best.binding}",
        retry_after_s=retry_s,
        metadata={
            "binding": best.binding,
            "predicted_ttft_s": f"{best.predicted_ttft_s:.4f}",
            "predicted_tpot_s": f"{best.predicted_tpot_s:.4f}",
        },
    )
