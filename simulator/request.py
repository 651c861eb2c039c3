"""One request: what is offered, and what becomes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from services.slo.composer import SchedulableRequest
from services.slo.contract import Contract
from services.slo.due_times import next_due_s


@dataclass(frozen=True, slots=True)
class OfferedRequest:
    """A request of a workload."""

    at_s: float
    """When it comes; of a follow-up, ignored."""
    application: str
    prompt_tokens: int
    output_tokens: int
    contract: Contract
    first_stage_tokens: int = 0
    """Tokens of the first decode stage, if the contract has two; the rest belong to the second."""
    prefix: tuple[int, ...] = ()
    """One identity for every `prefix_block_tokens` of the prompt: prompts that begin alike begin with the same."""
    prefix_block_tokens: int = 512
    follow_up: OfferedRequest | None = None
    delay_s: float = 0.0
    """Of a follow-up: it comes so long after the request before it has ended."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"a request has tokens: prompt {self.prompt_tokens}, output {self.output_tokens}")

    @property
    def rounds(self) -> int:
        """Requests of the whole session."""
        return 1 + (self.follow_up.rounds if self.follow_up is not None else 0)


@dataclass(slots=True, eq=False)
class SimRequest:
    """A request on its way. Scored as `services.slo.attainment` does: every token, without tolerance."""

    request_id: str
    offered: OfferedRequest
    arrival_s: float
    ttft_s: float
    """Target; infinite without one."""
    tpots_s: tuple[float, ...]
    """Targets of the decode stages; empty without any."""
    work: SchedulableRequest = field(init=False)
    output_tokens: int = field(init=False)
    due_s: float = field(init=False)
    """When its next token is due."""
    tpot_s: float = field(init=False)
    """Of the stage running now."""
    stage_ends_at: int = field(init=False)
    """Tokens generated when the stage running now ends."""
    plain_until: int = field(init=False)
    """Before so many tokens are generated, another changes no more than when the next is due."""
    generated: int = 0
    stage: int = 0
    first_s: float = math.inf
    ended_s: float = math.inf
    missed: bool = False
    guaranteed: bool = False
    """The planner promised it."""
    scored: bool = True
    """It counts; otherwise it is there to keep others company."""
    export: bool = False
    """It leaves the engine with its first token."""
    placed: object = None
    """The policy's own note of where it goes."""

    def __post_init__(self) -> None:
        offered = self.offered
        self.output_tokens = offered.output_tokens
        self.due_s = self.arrival_s + self.ttft_s
        self.tpot_s = self.tpots_s[0] if self.tpots_s else math.inf
        self.stage_ends_at = 1 + offered.first_stage_tokens if len(self.tpots_s) > 1 else offered.output_tokens + 1
        self.plain_until = min(self.stage_ends_at, self.output_tokens)
        self.work = SchedulableRequest(
            self.request_id, 0, offered.prompt_tokens, decoding=False, running=False, held_blocks=0
        )

    @property
    def context_tokens(self) -> int:
        """Prompt and what was generated."""
        return self.offered.prompt_tokens + self.generated

    @property
    def ended(self) -> bool:
        return self.generated >= self.output_tokens

    @property
    def attained(self) -> bool:
        return self.ended and not self.missed

    @property
    def tightest_tpot_s(self) -> float:
        """Of the stage running now and those after it."""
        return min(self.tpots_s[self.stage :], default=math.inf)

    @property
    def mean_tpot_s(self) -> float:
        """0 with a single token."""
        return (self.ended_s - self.first_s) / (self.generated - 1) if self.generated > 1 else 0.0

    def take(self, tokens: int, now_s: float) -> None:
        """So many tokens came. Of several at once, the first is due soonest."""
        if self.generated and self.generated + tokens < self.stage_ends_at:
            if now_s > self.due_s:
                self.missed = True
            self.due_s = next_due_s(self.due_s, tokens, self.tpot_s)
            self.generated += tokens
        else:
            for _ in range(tokens):
                self._take_one(now_s)
        if self.generated >= self.output_tokens:
            self.ended_s = now_s

    def _take_one(self, now_s: float) -> None:
        if now_s > self.due_s:
            self.missed = True
        self.generated += 1
        if self.generated == 1:
            self.first_s = now_s
            self.due_s = next_due_s(now_s, 1, self.tpot_s)
        else:
            self.due_s = next_due_s(self.due_s, 1, self.tpot_s)
        if self.generated == self.stage_ends_at and self.stage + 1 < len(self.tpots_s):
            self.stage += 1
            self.tpot_s = self.tpots_s[self.stage]
            self.due_s = next_due_s(now_s, 1, self.tpot_s)
            self.stage_ends_at = self.output_tokens + 1
            self.plain_until = self.output_tokens
