"""What a planning round answers."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Verdict(enum.Enum):
    """What becomes of a candidate."""

    GUARANTEED = "guaranteed"
    HOLD = "hold"
    """No room now; it can still wait for some."""
    NOT_GUARANTEED = "not guaranteed"
    """No room, and waiting cannot help any more."""
    IMPOSSIBLE = "impossible"
    """Not even an idle worker, of those looked at, could keep the contract."""


class Binding(enum.Enum):
    """The resource that forbids a guarantee."""

    NONE = ""
    PREFILL_TIME = "prefill time"
    DECODE_RATE = "decode rate"
    KV_MEMORY = "KV memory"
    NO_WORKER = "no worker"
    PRICE = "too much work for its value"
    """It found room, which is held for others that take less work for their value."""
    NO_CONTRACT = "no contract"
    """Nothing was asked for."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one candidate. Times in seconds from now."""

    candidate_id: str
    verdict: Verdict
    prefill_worker_id: str
    """Empty unless guaranteed."""
    decode_worker_id: str
    expected_first_token_s: float | None
    """Latest end of its prefill by the bound of step times; not guaranteed: behind everything promised. None: never."""
    step_s: float | None
    """Planned step length where it decodes; None unless guaranteed a rate that the worker can keep."""
    draft_tokens: int
    binding: Binding
    earliest_s: float | None
    """When the same contract would be guaranteed if nothing else came; None if that cannot be foreseen."""
    replan_s: float | None
    """Held: when to plan it again at the latest. None otherwise."""
    work_per_value: float
    """As `Candidate.work_per_value`."""

    @property
    def guaranteed(self) -> bool:
        return self.verdict is Verdict.GUARANTEED


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How a worker steps once everything promised to it decodes."""

    step_s: float
    draft_tokens: tuple[int, ...]
    """Of each tier, at that step length."""
    prefill_share: float
    """Share of time left to prefill."""


@dataclass(frozen=True, slots=True)
class Round:
    """All decisions of a round, in the order of its candidates."""

    decisions: tuple[Decision, ...]
    steps: Mapping[str, StepPlan]
    """Of the workers that got something new."""
    work: int
    """What was spent of the limit."""
