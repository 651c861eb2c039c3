"""What a planning round answers."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Verdict(enum.Enum):
    """What becomes of a candidate."""

    GUARANTEED = "guaranteed"
    """The contract is promised, and workers are chosen."""
    HOLD = "hold"
    """No worker can promise the contract now, but waiting leaves a chance."""
    NOT_GUARANTEED = "not guaranteed"
    """No worker can promise the contract, and waiting cannot help any more."""
    IMPOSSIBLE = "impossible"
    """Not even an idle worker, of those looked at, could keep the contract."""


class Binding(enum.Enum):
    """The resource that forbids a guarantee."""

    NONE = ""
    """Nothing forbids it."""
    PREFILL_TIME = "prefill time"
    """The prompt would not be computed by its deadline."""
    DECODE_RATE = "decode rate"
    """Some request would get tokens more slowly than promised."""
    KV_MEMORY = "KV memory"
    """The context has no place in a KV cache."""
    NO_WORKER = "no worker"
    """No worker prefills, or none decodes."""
    PRICE = "too much work for its value"
    """The request would fit, but headroom is reserved for others that cost less for their value."""
    FAIR_SHARE = "the tenant's share of promises"
    """The request would fit, but its tenant has been promised most for its weight, and room is left for another."""
    NO_CONTRACT = "no contract"
    """The request asks for no guarantee."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one candidate. Times are in seconds from now."""

    candidate_id: str
    """Id of the candidate."""
    verdict: Verdict
    """What becomes of the candidate."""
    prefill_worker_id: str
    """Id of the worker that prefills; empty unless guaranteed."""
    decode_worker_id: str
    """Id of the worker that decodes; empty unless guaranteed."""
    expected_first_token_s: float | None
    """Latest end of the prefill by the bound of step times if guaranteed, else its end behind everything promised; None
    if no worker would ever get to it."""
    step_s: float | None
    """Seconds of a planned step where the request decodes; None unless guaranteed a rate that the worker can keep."""
    draft_tokens: int
    """Draft tokens planned for each of its steps; 0 unless guaranteed a rate."""
    binding: Binding
    """The resource that forbids a guarantee."""
    earliest_s: float | None
    """Time at which the same contract would be guaranteed if nothing else came; None if that cannot be foreseen."""
    replan_s: float | None
    """Time at which to plan a held candidate again at the latest; None if it is not held, or nothing is foreseen."""
    work_per_value: float
    """Cost of the candidate: see `Candidate.work_per_value`."""

    @property
    def guaranteed(self) -> bool:
        """Whether the contract is promised."""
        return self.verdict is Verdict.GUARANTEED


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How a worker steps once everything promised to it decodes."""

    step_s: float
    """Seconds of a step."""
    draft_tokens: tuple[int, ...]
    """Draft tokens of each tier in a step of that length."""


@dataclass(frozen=True, slots=True)
class Round:
    """All answers of a planning round."""

    decisions: tuple[Decision, ...]
    """Answers, in the order of the round's candidates."""
    steps: Mapping[str, StepPlan]
    """How the workers that were promised something new step, by worker id."""
    work: int
    """Work spent on the search, in prefills scheduled: how close the round came to its limit."""
