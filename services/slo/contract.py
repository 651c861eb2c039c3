"""What a client asks for: one latency target per stage of a request."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

MAX_STAGES = 64
"""Longer contracts are refused: planning cost grows with stages, and no request known to the field has ten."""


class ContractError(ValueError):
    """A contract makes no sense.

    In this module, `path` names the field of `Contract` at fault (`decode[1].tpot_s`). Whoever reads contracts from
    outside renames it to the name that its client wrote.

    Args:
        rule: what the field must be, or why it is not taken, in words.
        got: what it is, if that says more.
    """

    def __init__(self, path: str, rule: str, got: object = None) -> None:
        self.path = path
        self.rule = rule
        self.got = got
        self.detail = rule if got is None else f"{rule}; got {got}"
        super().__init__(f"{path}: {self.detail}")

    def renamed(self, path: str, got: object = None) -> ContractError:
        """Return the same error of a field that has another name, and perhaps another unit, where it was written."""
        return ContractError(path, self.rule, self.got if got is None else got)


class OnOverload(enum.Enum):
    """What to do with a request whose contract cannot be guaranteed."""

    BEST_EFFORT = "best_effort"
    REFUSE = "refuse"


def _require_positive(path: str, value: float, at_least: float = 0.0) -> None:
    if not math.isfinite(value) or value <= 0 or value < at_least:
        wanted = f"at least {at_least:g}" if at_least else "positive"
        raise ContractError(path, f"must be finite and {wanted}", value)


@dataclass(frozen=True, slots=True)
class PrefillTarget:
    """Time to first token, queueing included: absolute, or a multiple of the idle prefill time of the same prompt."""

    ttft_s: float | None = None
    max_slowdown: float | None = None

    def __post_init__(self) -> None:
        if (self.ttft_s is None) == (self.max_slowdown is None):
            raise ContractError("prefill", "needs exactly one of ttft_s and max_slowdown")
        if self.ttft_s is not None:
            _require_positive("prefill.ttft_s", self.ttft_s)
        if self.max_slowdown is not None:
            _require_positive("prefill.max_slowdown", self.max_slowdown, at_least=1.0)


@dataclass(frozen=True, slots=True)
class DecodeTarget:
    """Token k of the stage is due k * tpot_s after the stage began."""

    tpot_s: float
    ends_with: str = ""
    """The stage ends with this text; empty: it lasts to the end of the request."""

    def __post_init__(self) -> None:
        _require_positive("tpot_s", self.tpot_s)


def decode_targets(path: str, stages: Iterable[tuple[float, str]]) -> tuple[DecodeTarget, ...]:
    """Return the decode stages of a contract from pairs of TPOT in seconds and the text that ends the stage.

    Args:
        path: the field of `Contract` that they are for.

    Raises:
        ContractError: a stage makes no sense; the path says which.
    """
    targets = []
    for index, (tpot_s, ends_with) in enumerate(stages):
        try:
            targets.append(DecodeTarget(tpot_s, ends_with))
        except ContractError as error:
            raise error.renamed(f"{path}[{index}].{error.path}") from error
    return tuple(targets)


def _require_ordered(path: str, stages: tuple[DecodeTarget, ...]) -> None:
    if len(stages) > MAX_STAGES:
        raise ContractError(path, f"at most {MAX_STAGES} decode stages", len(stages))
    for index, target in enumerate(stages[:-1]):
        if not target.ends_with:
            raise ContractError(f"{path}[{index}].ends_with", "every decode stage but the last must say how it ends")


@dataclass(frozen=True, slots=True)
class Contract:
    """The targets of one request, stage by stage, and what they are worth."""

    prefill: PrefillTarget | None = None
    decode: tuple[DecodeTarget, ...] = ()
    final_decode: tuple[DecodeTarget, ...] = ()
    """Targets of the decode stages of a session's last request; empty: the same as of the others."""
    value: float = 1.0
    on_overload: OnOverload = OnOverload.BEST_EFFORT
    profile: str = ""
    session_id: str = ""
    session_final: bool = False
    task_deadline_s: float | None = None

    def __post_init__(self) -> None:
        _require_positive("value", self.value)
        if self.task_deadline_s is not None:
            _require_positive("task_deadline_s", self.task_deadline_s)
        _require_ordered("decode", self.decode)
        _require_ordered("final_decode", self.final_decode)

    @property
    def promises_anything(self) -> bool:
        return self.prefill is not None or bool(self.decode)

    @property
    def tightest_tpot_s(self) -> float | None:
        return min((target.tpot_s for target in self.decode), default=None)

    def ttft_s(self, idle_prefill_s: float) -> float | None:
        """The absolute TTFT target, given the prefill time of this prompt on an idle worker; None without a target."""
        if self.prefill is None:
            return None
        if self.prefill.ttft_s is not None:
            return self.prefill.ttft_s
        assert self.prefill.max_slowdown is not None
        return self.prefill.max_slowdown * idle_prefill_s

    def resolved(self, idle_prefill_s: float) -> Contract:
        """The same contract with a slowdown turned into seconds."""
        ttft_s = self.ttft_s(idle_prefill_s)
        return self if ttft_s is None else replace(self, prefill=PrefillTarget(ttft_s=ttft_s))


@dataclass(frozen=True, slots=True)
class ProfileBook:
    """Contracts by name."""

    contracts: Mapping[str, Contract] = field(default_factory=dict)

    def lookup(self, name: str) -> Contract:
        """
        Raises:
            ContractError: no such profile; the message lists those there are.
        """
        try:
            return replace(self.contracts[name], profile=name)
        except KeyError:
            known = ", ".join(sorted(self.contracts)) or "none"
            raise ContractError("profile", f"unknown profile {name!r}; known: {known}") from None


TIGHT_SLOWDOWN, LOOSE_SLOWDOWN = 3.0, 5.0
TIGHT_TPOT_S, LOOSE_TPOT_S = 0.050, 0.100
END_OF_THINKING = "</think>"

PAPER_PROFILES: Mapping[str, Contract] = {
    "summarizer": Contract(PrefillTarget(max_slowdown=TIGHT_SLOWDOWN), (DecodeTarget(LOOSE_TPOT_S),)),
    "coder": Contract(PrefillTarget(max_slowdown=LOOSE_SLOWDOWN), (DecodeTarget(TIGHT_TPOT_S),)),
    "chatbot": Contract(PrefillTarget(max_slowdown=LOOSE_SLOWDOWN), (DecodeTarget(LOOSE_TPOT_S),)),
    "tool_use": Contract(
        PrefillTarget(max_slowdown=TIGHT_SLOWDOWN),
        (DecodeTarget(TIGHT_TPOT_S),),
        final_decode=(DecodeTarget(LOOSE_TPOT_S),),
    ),
    "reasoning": Contract(
        PrefillTarget(max_slowdown=TIGHT_SLOWDOWN),
        (DecodeTarget(TIGHT_TPOT_S, ends_with=END_OF_THINKING), DecodeTarget(LOOSE_TPOT_S)),
    ),
}
"""The applications of the SLOs-Serve paper (arXiv 2504.08784, table of targets; seconds as in its configuration)."""
