"""A request of the simulation: as a workload offers it, and as a worker serves it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from services.slo.composer import SchedulableRequest
from services.slo.contract import Contract
from services.slo.due_times import next_due_s


@dataclass(frozen=True, slots=True)
class OfferedRequest:
    """A request of a workload, with the lengths and the arrival that a trace or a generator gave it."""

    at_s: float
    """Arrival time in seconds; ignored for a follow-up."""
    application: str
    prompt_tokens: int
    output_tokens: int
    contract: Contract
    first_stage_tokens: int = 0
    """Number of output tokens after the first that belong to the first decode stage, if the contract has two."""
    prefix: tuple[int, ...] = ()
    """Identities of the prompt's blocks of `prefix_block_tokens` each; prompts that begin alike begin with the same."""
    prefix_block_tokens: int = 512
    follow_up: OfferedRequest | None = None
    """The next request of the session, sent once this one has been answered."""
    delay_s: float = 0.0
    """Seconds from the end of this request to its follow-up."""
    tenant: str = ""
    """Name of the tenant that sends it."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"a request has tokens: prompt {self.prompt_tokens}, output {self.output_tokens}")

    @property
    def rounds(self) -> int:
        """Number of requests of the session from this one on."""
        return 1 + (self.follow_up.rounds if self.follow_up is not None else 0)


@dataclass(slots=True, eq=False)
class SimRequest:
    """A request on its way through the cluster, scored as `services.slo.attainment` does: every token, no tolerance."""

    request_id: str
    offered: OfferedRequest
    arrival_s: float
    ttft_s: float
    """Seconds that the contract allows to the first token; infinite without a target."""
    tpots_s: tuple[float, ...]
    """TPOT targets of the decode stages in seconds; empty without any."""
    work: SchedulableRequest = field(init=False)
    """The request as a step composer sees it."""
    output_tokens: int = field(init=False)
    due_s: float = field(init=False)
    """When the next token is due, in seconds of virtual time."""
    tpot_s: float = field(init=False)
    """TPOT target of the current decode stage; infinite without one."""
    stage_ends_at: int = field(init=False)
    """Number of tokens generated when the current decode stage ends."""
    plain_until: int = field(init=False)
    """Number of tokens below which one more changes nothing but the due time: no stage and no request ends with it."""
    generated: int = 0
    stage: int = 0
    """Index of the current decode stage."""
    first_s: float = math.inf
    """When the first token came."""
    ended_s: float = math.inf
    missed: bool = False
    """A token was late, or the request was refused."""
    guaranteed: bool = False
    """Admission promised to keep its contract."""
    scored: bool = True
    """The request counts in the outcome; otherwise it only keeps the cluster busy before and after those that do."""
    export: bool = False
    """The request leaves its engine with the first token, to decode elsewhere."""
    placed: object = None
    """The policy's own note of where the request goes."""

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
        """Number of tokens of the prompt and of the output so far."""
        return self.offered.prompt_tokens + self.generated

    @property
    def ended(self) -> bool:
        """Whether all its output has been generated."""
        return self.generated >= self.output_tokens

    @property
    def attained(self) -> bool:
        """Whether the request has ended and kept its whole contract."""
        return self.ended and not self.missed

    @property
    def tightest_tpot_s(self) -> float:
        """The tightest TPOT target of the current decode stage and those after it; infinite without any."""
        return min(self.tpots_s[self.stage :], default=math.inf)

    @property
    def mean_tpot_s(self) -> float:
        """Mean seconds between its tokens; 0 with a single token."""
        return (self.ended_s - self.first_s) / (self.generated - 1) if self.generated > 1 else 0.0

    def take(self, tokens: int, now_s: float) -> None:
        """Take note of `tokens` tokens that came at `now_s`; of several at once, the first is due soonest."""
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
