"""The errors that clients are told when admission does not take their request."""

from __future__ import annotations

import random

from services.rpc.errors import (
    ImpossibleContractError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    RequestError,
)
from services.slo.admission import Assessment, Impossible, RequestFacts, Target, Unservable

DEFAULT_RETRY_S = 1.0
"""Seconds after which to try again where nothing better can be foreseen."""
LEAST_RETRY_S = 0.05
RETRY_JITTER = 0.2
"""Relative spread of the time to try again, so that what was refused together does not come back together."""


def refusal_of(assessment: Assessment) -> RequestError | None:
    """Return the refusal, if the contract asks for one rather than for service without a guarantee."""
    if not assessment.to_be_refused:
        return None
    if assessment.impossible is not None:
        return impossible_error(assessment.impossible)
    wait_s = DEFAULT_RETRY_S if assessment.earliest_guarantee_s is None else assessment.earliest_guarantee_s
    return OverloadedError(
        f"cannot be guaranteed now: {assessment.binding.value}",
        retry_after_s=max(LEAST_RETRY_S, wait_s) * (1 + RETRY_JITTER * random.random()),
        metadata={
            "binding": assessment.binding.name,
            "predicted_ttft_s": f"{assessment.placement.ttft.expected_s:.4f}",
            "predicted_tpot_s": f"{assessment.placement.tpot.expected_s:.4f}",
        },
    )


def impossible_error(impossible: Impossible) -> ImpossibleContractError:
    """Return the error for a contract that no worker could keep, even with nothing else to do."""
    asked_ms, idle_ms = impossible.asked_s * 1e3, impossible.idle_s * 1e3
    if impossible.target is Target.TTFT:
        return ImpossibleContractError(
            f"TTFT {asked_ms:.3g} ms: an idle worker needs {idle_ms:.3g} ms for this prompt",
            field="contract.stages[0].prefill",
        )
    return ImpossibleContractError(
        f"TPOT {asked_ms:.3g} ms: an idle worker needs {idle_ms:.3g} ms a token", field="contract.stages"
    )


def unservable_error(why: Unservable, missing: str, prompt_tokens: int, output_tokens: int) -> RequestError:
    """Return the error for a request that cannot be served at all.

    Args:
        missing: what the cluster lacks to serve any request, in words.
        output_tokens: tokens that the request may still generate.
    """
    if why is Unservable.NO_WORKER:
        return NoWorkerError(missing, retry_after_s=DEFAULT_RETRY_S)
    return InvalidRequestError(
        f"{prompt_tokens} prompt tokens and {output_tokens} output tokens do not fit into the KV cache of any worker",
        field="sampling.max_tokens",
    )


def unservable_arrival_error(why: Unservable, missing: str, facts: RequestFacts) -> RequestError:
    """Return the error for a request that has not begun and cannot be served at all."""
    return unservable_error(why, missing, facts.prompt_tokens, facts.max_tokens)
