"""The question and the answer of the step composer; times are seconds on the engine's monotonic clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from services.slo.performance import StepShape


@dataclass(slots=True, eq=False)
class SchedulableRequest:
    """One request of an engine, as the composer sees it.

    The engine keeps one for each request and brings it up to date between steps; the composer only reads it. It is
    mutable for one reason: to make a frozen one anew for each of 256 requests takes longer than to compose the step.
    """

    request_id: str
    computed_tokens: int
    """Tokens whose KV the request holds, which for a decode are its context; while it waits, those it will find
    cached."""
    pending_tokens: int
    """Tokens to compute before the request's next token can be drawn, at least 1; exactly 1 while it decodes."""
    decoding: bool
    """Whether the request has drawn a token from the KV that it holds. It has not right after a pull, nor when it is
    computed again."""
    running: bool
    """Whether the request has a slot among the running ones and keeps the blocks it holds. If not, the composer decides
    when it is admitted."""
    held_blocks: int
    """KV blocks that the request holds."""
    due_s: float = math.inf
    """Time by which the request's next token is promised; infinite without a promise."""
    tpot_s: float = math.inf
    """TPOT at which the request decodes on this engine; infinite without a promise, and for a prefill that ends with
    its first token."""
    best_effort: bool = False
    """Whether the request must make no promised one late. One with neither `due_s` nor `tpot_s`, or with NaN for
    `due_s`, is best effort too. Best effort with a finite `due_s` has a contract that nobody promised to keep: the
    composer keeps it where that costs no promise."""
    waiting_since_s: float = 0.0
    """Time at which the engine was given the request, preempted since or not. Older best effort goes first, apart from
    length."""
    draft_tokens: int = 0
    """Number of proposed tokens that a step may verify; the composer cuts them to what fits."""
    wanted_s: float = math.inf
    """Time by which an even stream has its next token, which need not be due before `due_s`: see `TokenDeadlines`."""
    pulls_kv: bool = False
    """Whether the request's KV comes from another worker: while it runs, the KV is on its way and nothing can be
    computed; while it waits, the KV will be pulled into its blocks once it is admitted.

    A request whose KV has landed is running, does not pull, and has 1 pending token (more if the pull brought less).
    """
    pinned: bool = False
    """Whether the request must not be preempted now, for example because a step under way computes it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What no step of an engine may exceed."""

    max_step_tokens: int
    """Largest number of tokens in a step."""
    max_running_requests: int
    """Largest number of running requests, including those that pull their KV."""
    block_tokens: int
    """Number of tokens in a KV block."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ComposerPolicy:
    """What the composer may choose; the defaults were chosen by simulation (docs/reports/capacity.md, `slos-serve bench
    capacity`).

    The multiples are of step times that the performance model predicts, so that they mean the same on every machine.
    """

    step_cap_s: float = math.inf
    """Longest step that is composed even where no promise bounds it, because a newcomer would be stuck behind it. The
    tightest TPOT of the streams in the step caps it as well. Either may be doubled for a promised prefill that would be
    late otherwise."""
    decode_step_multiple: float = 1.25
    """Multiple of the time of its promised decodes alone that a step may always take, unless a promise that can be kept
    bounds it: decodes that are late anyway must not keep prompts out for ever."""
    max_step_multiple: float = 8.0
    """Longest step, as a multiple of the shortest step there is: beyond it there is little throughput left to gain, and
    newcomers wait."""
    min_step_multiple: float = 2.0
    """Multiple of the shortest step that a step without promised streams may always take, whatever caps it: prompts
    must not be cut so small that the engine does little else than begin steps."""
    reserve_s: float = 0.0
    """Time kept free between the end of a step and the earliest due time, for what happens to a token after its
    step."""
    buffer_tpots: float = 0.25
    """Part of its TPOT that best effort, and prefills that are on track, leave each stream ahead of its due time, so
    that a step that takes longer than predicted makes no token late. It costs no throughput once a stream is ahead."""
    best_effort_step_multiple: float = 1.1
    """Multiple of what its promised work takes up to which best effort may lengthen a step while somebody with a
    contract found no capacity on this engine: whoever comes next waits for the step under way. A step that promises
    leave nearly empty may be filled to `best_effort.MIN_BEST_EFFORT_FRACTION` of their limit all the same. Infinite:
    best effort may fill every step."""
    ageing: float = 0.25
    """Seconds of prefill that one second of waiting outweighs in the order of best effort: a prompt whose prefill takes
    1 s longer is overtaken by those that come up to 1 / ageing s later, and by none after."""
    best_case_fraction: float = 0.8
    """Fraction of its predicted time that a prefill takes if all goes well. A prompt that would be late even so is
    given up and goes after those that can be in time. Predictions are upper bounds, and where the expected time is a
    smaller fraction of them, that counts."""
    streams_may_skip: bool = True
    """Whether streams that are ahead may skip a step in which a prompt would be late beside them and is in time
    alone."""

    def __post_init__(self) -> None:
        if not self.step_cap_s > 0:
            raise ValueError(f"step_cap_s must be positive; got {self.step_cap_s}")
        for name in ("decode_step_multiple", "max_step_multiple", "min_step_multiple"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 1):
                raise ValueError(f"{name} must be finite and above 1; got {value}")
        if not self.best_effort_step_multiple >= 1:
            raise ValueError(f"best_effort_step_multiple must be at least 1; got {self.best_effort_step_multiple}")
        if not 0 < self.best_case_fraction <= 1:
            raise ValueError(f"best_case_fraction must be above 0 and at most 1; got {self.best_case_fraction}")
        for name in ("reserve_s", "buffer_tpots", "ageing"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative; got {value}")

    def longest_step_s(self, shortest_step_s: float) -> float:
        """Return the longest step without streams, in seconds, for composer and planner alike.

        Args:
            shortest_step_s: time of a step with one token, `StepMeter.shortest_step_s`.
        """
        if shortest_step_s <= 0:
            return self.step_cap_s
        capped_s = min(self.step_cap_s, self.max_step_multiple * shortest_step_s)
        return max(capped_s, self.min_step_multiple * shortest_step_s)


@dataclass(frozen=True, slots=True)
class Composition:
    """What one step does; the engine applies preemptions, then admissions, then grants."""

    grants: Mapping[str, int]
    """Tokens of each request that the step computes, in the order in which to serve them: a prefill chunk, or 1 + the
    drafts to verify. A request that is not here gets nothing."""
    preempted: tuple[str, ...]
    """Running requests that give up their KV and go back to wait, in this order. They get nothing in this step."""
    admitted: tuple[str, ...]
    """Waiting requests that are admitted, in this order. There are blocks for all their pending tokens. Those that pull
    their KV get no grant; all others do."""
    held: tuple[str, ...]
    """Running requests that could have run and skip this step."""
    limit_s: float
    """Longest time that the step may take, in seconds from `now_s`; infinite if nothing bounds it. Only a step of
    single tokens of decodes is predicted to take longer."""
    predicted_s: float
    """Seconds that the model predicts for the step; 0 for a step that computes nothing."""
    shape: StepShape
    """Content of the step in the terms of the performance model."""
