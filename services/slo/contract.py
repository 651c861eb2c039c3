"""Contracts: the latency targets that a client asks for, one per stage of a request."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from services.shown import clipped

MAX_STAGES = 64
"""Largest number of decode stages in a contract. Planning cost grows with stages, and no workload known to the field
has ten."""
MAX_TARGET_S = 1e6
"""Longest time that a target may name, 11 days: a longer one promises nothing, and sums of times must stay finite."""
MIN_TARGET_S = 1e-6
"""Shortest time that a target may name, far below what any engine can do: rates must stay finite too."""
MAX_SLOWDOWN = 1e6
"""Largest multiple of the idle prefill time that a target may name."""
MIN_VALUE, MAX_VALUE = 1e-6, 1e6
"""Bounds of the value of a promise: between them sums and ratios of values keep their digits."""
MAX_NAME_CHARACTERS = 256
"""Largest number of characters of a name that a client chooses, such as that of a session or a tenant."""
MAX_STAGE_END_CHARACTERS = 1024
"""Largest number of characters of the text that ends a decode stage."""
SOME_TEXT = "…"
"""Text that stands for one that is not to be told."""


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
    """What becomes of a request whose contract cannot be guaranteed."""

    BEST_EFFORT = "best_effort"
    REFUSE = "refuse"


def _require_positive(path: str, value: float, most: float, least: float = MIN_TARGET_S, at_least: float = 0.0) -> None:
    if not math.isfinite(value) or value <= 0 or value < at_least:
        wanted = f"at least {at_least:g}" if at_least else "positive"
        raise ContractError(path, f"must be finite and {wanted}", value)
    if not least <= value <= most:
        raise ContractError(
            path, f"is beyond what a contract can say: too {'large' if value > most else 'small'}", value
        )


def _require_short(path: str, text: str, most: int) -> None:
    if len(text) > most:
        raise ContractError(path, f"at most {most} characters", len(text))


@dataclass(frozen=True, slots=True)
class PrefillTarget:
    """Target of the prefill stage: the time to first token (TTFT), queueing included.

    It is absolute, or a multiple of the time in which an idle worker prefills the same prompt; exactly one is given.

    Raises:
        ContractError: none or both are given, or a figure is out of range.
    """

    ttft_s: float | None = None
    """Longest time from arrival to the first token, in seconds."""
    max_slowdown: float | None = None
    """Longest TTFT as a multiple of the idle prefill time, at least 1."""

    def __post_init__(self) -> None:
        if (self.ttft_s is None) == (self.max_slowdown is None):
            raise ContractError("prefill", "needs exactly one of ttft_s and max_slowdown")
        if self.ttft_s is not None:
            _require_positive("prefill.ttft_s", self.ttft_s, MAX_TARGET_S)
        if self.max_slowdown is not None:
            _require_positive("prefill.max_slowdown", self.max_slowdown, MAX_SLOWDOWN, at_least=1.0)


@dataclass(frozen=True, slots=True)
class DecodeTarget:
    """Target of a decode stage: a time per output token (TPOT) that every token keeps.

    Token k of the stage is due k * tpot_s after the stage began (docs/explanation/planning-mathematics.md, section 1).

    Raises:
        ContractError: tpot_s is out of range, or ends_with too long.
    """

    tpot_s: float
    """Seconds per token."""
    ends_with: str = field(default="", repr=False)
    """Text with which the stage ends; empty if it lasts to the end of the request."""

    def without_text(self) -> DecodeTarget:
        """Return the target with `SOME_TEXT` instead of the text that ends the stage."""
        return replace(self, ends_with=SOME_TEXT) if self.ends_with else self

    def __post_init__(self) -> None:
        _require_positive("tpot_s", self.tpot_s, MAX_TARGET_S)
        _require_short("ends_with", self.ends_with, MAX_STAGE_END_CHARACTERS)


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
    """The targets of one request, stage by stage, and their value.

    Raises:
        ContractError: a figure or a text is out of range, there are too many stages, or one before the last does not
            say how it ends.
    """

    prefill: PrefillTarget | None = None
    """Target of the prefill stage; None without one."""
    decode: tuple[DecodeTarget, ...] = ()
    """Targets of the decode stages in order; empty without any."""
    final_decode: tuple[DecodeTarget, ...] = ()
    """Targets of the decode stages of a session's last request; empty if they are those of the others."""
    value: float = 1.0
    """Worth of the promise relative to others: under overload admission keeps the largest total value."""
    on_overload: OnOverload = OnOverload.BEST_EFFORT
    """What becomes of the request if its contract cannot be guaranteed."""
    profile: str = ""
    """Name of the profile that the contract came from; empty if none."""
    session_id: str = ""
    """Name of the session that the request belongs to; empty if none."""
    session_final: bool = False
    """Whether the request is the last of its session."""
    task_deadline_s: float | None = None
    """Seconds for the whole task, counted from the arrival of its first request; None without such a deadline."""

    def __post_init__(self) -> None:
        _require_positive("value", self.value, MAX_VALUE, MIN_VALUE)
        _require_short("session_id", self.session_id, MAX_NAME_CHARACTERS)
        if self.task_deadline_s is not None:
            _require_positive("task_deadline_s", self.task_deadline_s, MAX_TARGET_S)
        _require_ordered("decode", self.decode)
        _require_ordered("final_decode", self.final_decode)

    @property
    def promises_anything(self) -> bool:
        """Whether the contract has a target for any stage."""
        return self.prefill is not None or bool(self.decode)

    @property
    def tightest_tpot_s(self) -> float | None:
        """Tightest TPOT target of any decode stage; None without a target."""
        return min((target.tpot_s for target in self.decode), default=None)

    def ttft_s(self, idle_prefill_s: float) -> float | None:
        """Return the absolute TTFT target in seconds; None without one.

        Args:
            idle_prefill_s: time in which an idle worker prefills this prompt.
        """
        if self.prefill is None:
            return None
        if self.prefill.ttft_s is not None:
            return self.prefill.ttft_s
        assert self.prefill.max_slowdown is not None
        # The largest slowdown of a prompt of more than a second is more than any target may be.
        return min(MAX_TARGET_S, max(MIN_TARGET_S, self.prefill.max_slowdown * idle_prefill_s))

    def resolved(self, idle_prefill_s: float) -> Contract:
        """Return the contract with a slowdown turned into seconds; see `ttft_s`."""
        ttft_s = self.ttft_s(idle_prefill_s)
        return self if ttft_s is None else replace(self, prefill=PrefillTarget(ttft_s=ttft_s))

    def without_texts(self) -> Contract:
        """Return the contract without what a client wrote to end its stages; it is planned as this one is."""
        return replace(
            self,
            decode=tuple(target.without_text() for target in self.decode),
            final_decode=tuple(target.without_text() for target in self.final_decode),
        )


@dataclass(frozen=True, slots=True)
class ProfileBook:
    """Named contracts, the profiles that a client may ask for."""

    contracts: Mapping[str, Contract] = field(default_factory=dict)

    def lookup(self, name: str) -> Contract:
        """Return the contract of a profile.

        Raises:
            ContractError: there is no such profile; the message lists those there are.
        """
        try:
            return replace(self.contracts[name], profile=name)
        except KeyError:
            known = ", ".join(sorted(self.contracts)) or "none"
            raise ContractError("profile", f"unknown profile {clipped(name)!r}; known: {known}") from None


TIGHT_SLOWDOWN, LOOSE_SLOWDOWN = 3.0, 5.0
"""Tight and loose TTFT targets of the SLOs-Serve paper, as multiples of the idle prefill time (arXiv 2504.08784)."""
TIGHT_TPOT_S, LOOSE_TPOT_S = 0.050, 0.100
"""Tight and loose TPOT targets of the same paper."""
END_OF_THINKING = "</think>"
"""Text with which reasoning models end their thinking (DeepSeek-R1 and its distillations)."""

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
"""Contracts of the applications in the SLOs-Serve paper (arXiv 2504.08784, table of targets; seconds as in its
configuration)."""
