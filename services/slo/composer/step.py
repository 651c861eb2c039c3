"""What the step composer is asked and what it answers. Times are seconds on the engine's monotonic clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from services.slo.performance import StepShape


@dataclass(slots=True, eq=False)
class SchedulableRequest:
    """One request as the composer sees it.

    The engine keeps one for each request and brings it up to date between steps; the composer only reads. It is
    mutable for one reason: to make a frozen one anew for each of 256 requests takes longer than to compose the step.
    """

    request_id: str
    computed_tokens: int
    """Tokens whose KV it holds; of a decode, its context. Waiting: those that it will find cached."""
    pending_tokens: int
    """Tokens to compute before its next one can be drawn, at least 1; exactly 1 while it decodes."""
    decoding: bool
    """It has drawn a token from the KV that it holds. Not so right after a pull, or when it is computed again."""
    running: bool
    """It has a place among the running and keeps the blocks it holds. False: the composer decides when it is let in."""
    held_blocks: int
    due_s: float = math.inf
    """When its next token is promised; infinite without a promise."""
    tpot_s: float = math.inf
    """At which rate it decodes here; infinite without a promise, and for a prefill that ends with its first token."""
    best_effort: bool = False
    """Makes no promised work late. So is whatever has neither `due_s` nor `tpot_s`, or NaN for `due_s`. With a finite
    `due_s` it has a contract that nobody promised to keep: it is kept where that costs no promise."""
    waiting_since_s: float = 0.0
    """When the engine was given it, preempted or not. Among best effort the older goes first, length apart."""
    draft_tokens: int = 0
    """Proposed tokens at hand, which a step may verify; cut to what its tier pays for."""
    wanted_s: float = math.inf
    """When its next token should come for an even stream, though it is not due before `due_s`. See `Promise`."""
    pulls_kv: bool = False
    """Running: its KV is on its way, nothing can be computed. Waiting: once let in, its KV is pulled into its blocks.

    A request whose KV has landed is running, does not pull, and has 1 pending token (more if the pull brought less).
    """
    pinned: bool = False
    """It must not be preempted now, for example because a step under way computes it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What no step may exceed."""

    max_step_tokens: int
    max_running_requests: int
    """Running ones, those that pull their KV included."""
    block_tokens: int
    """Tokens in a KV block."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ComposerPolicy:
    """What the composer may choose."""

    step_cap_s: float = math.inf
    """No step is composed longer, even when no promise bounds it: what comes meanwhile would be stuck behind it. The
    tightest TPOT of streams at hand bounds a step in any case. Twice either, if a promised prefill would be late
    otherwise."""
    decode_step_multiple: float = 1.25
    """A step may always take this multiple of what its promised decodes alone take, unless a promise that can be kept
    bounds it: decodes that are late anyway must not keep prompts out for ever."""
    max_step_multiple: float = 8.0
    """No step is longer than this multiple of what it takes with next to nothing to do: beyond, there is little left to
    gain, and newcomers wait."""
    min_step_multiple: float = 2.0
    """Without promised streams a step may always take this multiple, whatever caps it: prompts must not be cut so small
    that the engine does little else than begin steps."""
    reserve_s: float = 0.0
    """Kept free between the end of a step and the earliest due time, for what happens to a token after its step."""
    buffer_tpots: float = 0.25
    """Best effort, and prefills that are on track, leave each stream this part of its TPOT ahead of its due time, so
    that a step that takes longer than predicted makes no token late. Costs no throughput once a stream is ahead."""
    best_effort_step_multiple: float = 1.1
    """While somebody with a contract found no room here, best effort makes steps with promised work at most this many
    times as long: whoever comes next waits for the step under way. A step that promises leave nearly empty may be
    filled to a quarter of what they allow all the same."""
    ageing: float = 0.25
    """Of best effort, a prompt whose prefill takes 1 s longer is overtaken by what comes up to 1 / ageing s later."""
    best_case_fraction: float = 0.8
    """A prompt is given up as late, and goes after those that can be in time, once even this part of what its prefill
    is predicted to take, or what is expected of it if that is less, would be too long. Predictions are bounds: most
    steps take less."""
    streams_may_skip: bool = True
    """Streams that are ahead may sit a step out where a prompt would be late beside them and is in time without."""

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
        """Longest step without streams, for composer and planner alike.

        Args:
            least_s: what a step takes that has next to nothing to do, `StepMeter.shortest_step_s`.
        """
        if shortest_step_s <= 0:
            return self.step_cap_s
        return max(
            min(self.step_cap_s, self.max_step_multiple * shortest_step_s), self.min_step_multiple * shortest_step_s
        )


@dataclass(frozen=True, slots=True)
class Composition:
    """One step. To be applied in this order: preemptions, admissions, grants."""

    grants: Mapping[str, int]
    """Tokens of each request that the step computes, in the order in which to serve them: a prefill chunk, or 1 + the
    drafts to verify. A request that is not here gets nothing."""
    preempted: tuple[str, ...]
    """Running requests that give up their KV and go back to wait, in this order. They get nothing in this step."""
    admitted: tuple[str, ...]
    """Waiting requests that are let in, in this order. There are blocks for all their pending tokens. Those that pull
    their KV get no grant; all others do."""
    held: tuple[str, ...]
    """Running requests that could have run and sit this step out."""
    limit_s: float
    """The bound that the step was composed for, from `now_s` on; infinite if nothing bounds it. Only a step of single
    tokens of decodes is predicted to take longer."""
    predicted_s: float
    """What the model predicts; 0 for a step that computes nothing."""
    shape: StepShape
