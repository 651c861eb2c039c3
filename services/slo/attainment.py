"""Attainment: what a client received, measured against its contract token by token, without tolerance."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.slo.contract import Contract
from services.slo.due_times import next_due_s


@dataclass(frozen=True, slots=True)
class LateToken:
    """A token that came after it was due; times are on the meter's clock, in seconds."""

    number: int
    """Its number in its decode stage, counted from 1."""
    due_s: float
    came_s: float


@dataclass(slots=True)
class _Stage:
    """A decode stage as far as it has come."""

    began_s: float
    tpot_s: float | None
    tokens: int = 0
    late_tokens: int = 0
    required_tpot_s: float = 0.0
    last_s: float = 0.0
    first_late: LateToken | None = None


@dataclass(frozen=True, slots=True)
class StageAttainment:
    """What one decode stage achieved; times are seconds."""

    tokens: int
    """Number of tokens of the stage; the first token of the request belongs to the prefill stage."""
    mean_tpot_s: float
    """Time from the start of the stage to its last token, divided by its tokens: the mean that benchmark tools report,
    which hides stalls. 0 without tokens."""
    required_tpot_s: float
    """Smallest TPOT target that every token of the stage would have met."""
    late_tokens: int
    """Number of tokens that came after they were due."""
    target_tpot_s: float | None
    """TPOT target of the stage; None without one."""
    began_s: float
    """Time at which the stage began, on the meter's clock."""
    first_late: LateToken | None = None
    """The first of its tokens that came late; None if none did."""


@dataclass(frozen=True, slots=True)
class Attainment:
    """What one request achieved, and the first target that it missed; times are seconds."""

    ttft_s: float | None
    """Time from arrival to the first token; None if no token came."""
    target_ttft_s: float | None
    """TTFT target; None without one."""
    stages: tuple[StageAttainment, ...]
    """Decode stages that began, in order."""
    worst_gap_s: float
    """Longest time between two tokens in a row; 0 before the second token."""
    missed: str
    """The first target that was missed, in words; empty if all were met."""

    @property
    def kept(self) -> bool:
        """Whether every target was met so far."""
        return not self.missed

    @property
    def mean_tpot_s(self) -> float | None:
        """Mean time between tokens over all stages; None before the second token."""
        tokens = sum(stage.tokens for stage in self.stages)
        return sum(stage.mean_tpot_s * stage.tokens for stage in self.stages) / tokens if tokens else None

    @property
    def required_tpot_s(self) -> float:
        """Smallest TPOT target that every token of every stage would have met; 0 without decoded tokens."""
        return max((stage.required_tpot_s for stage in self.stages), default=0.0)


@dataclass(slots=True)
class AttainmentMeter:
    """Measures one request against its contract as its tokens come.

    The first token of the request ends the prefill stage. Token k of a decode stage is due k TPOTs after the stage
    began, which is when the last token of the stage before came; a stage attains when every token does
    (docs/explanation/planning-mathematics.md, section 1). The contract must be resolved: a slowdown means nothing here.
    """

    contract: Contract
    arrival_s: float
    """Time of arrival, on the clock of every other time that the meter is given."""
    task_due_s: float | None = None
    """Time by which the whole task must be done; None without a task deadline."""
    _first_s: float | None = None
    _last_s: float = 0.0
    _worst_gap_s: float = 0.0
    _stages: list[_Stage] = field(default_factory=list)
    _missed: str = ""

    @property
    def missed(self) -> bool:
        """Whether a target was missed already."""
        return bool(self._missed)

    def note_tokens(self, count: int, now_s: float) -> None:
        """Record that `count` tokens came together at `now_s`."""
        if not count:
            return
        if self._first_s is None:
            self._note_first(now_s)
            count -= 1
            if not count:
                return
        gap_s = now_s - self._last_s
        self._worst_gap_s = max(self._worst_gap_s, gap_s)
        stage = self._stages[-1]
        self._last_s = stage.last_s = now_s
        # Of tokens that come together the first was due soonest, and needs the largest TPOT.
        tpot_s = (now_s - stage.began_s) / (stage.tokens + 1)
        stage.required_tpot_s = max(stage.required_tpot_s, tpot_s)
        if stage.tpot_s is not None and now_s > next_due_s(stage.began_s, stage.tokens + 1, stage.tpot_s):
            self._note_late(stage, stage.tpot_s, count, now_s)
        stage.tokens += count

    def _note_first(self, now_s: float) -> None:
        self._first_s = self._last_s = now_s
        ttft_s = self._target_ttft_s()
        if ttft_s is not None and now_s - self.arrival_s > ttft_s:
            self._miss(f"TTFT {now_s - self.arrival_s:.3f} s > {ttft_s:.3f} s")
        self._begin_stage(now_s)

    def _note_late(self, stage: _Stage, tpot_s: float, count: int, now_s: float) -> None:
        """Record those of the stage's next `count` tokens that came late, which are all or the first of them."""
        for number in range(stage.tokens + 1, stage.tokens + count + 1):
            due_s = next_due_s(stage.began_s, number, tpot_s)
            if now_s > due_s:
                stage.late_tokens += 1
                stage.first_late = stage.first_late or LateToken(number, due_s, now_s)
                late_ms = (now_s - due_s) * 1e3
                self._miss(f"token {number} of decode stage {len(self._stages)} was {late_ms:.1f} ms late")

    def end(self, now_s: float) -> None:
        """Record that the request was done at `now_s`."""
        if self.task_due_s is not None and now_s > self.task_due_s:
            self._miss(f"the task was done {now_s - self.task_due_s:.3f} s after its deadline")

    def end_stage(self) -> None:
        """Begin the next decode stage at the last token, which brought the marker that ends the current one."""
        if self._stages and len(self._stages) < len(self.contract.decode):
            self._begin_stage(self._last_s)

    @property
    def stage_marker(self) -> str:
        """The text that ends the current decode stage; empty if nothing but the end of the request does."""
        index = max(0, len(self._stages) - 1)
        decode = self.contract.decode
        return decode[index].ends_with if index < len(decode) - 1 else ""

    def next_due_s(self) -> float | None:
        """Return when the next token is due, on the meter's clock; None without a target."""
        if self._first_s is None:
            ttft_s = self._target_ttft_s()
            return None if ttft_s is None else self.arrival_s + ttft_s
        stage = self._stages[-1]
        return None if stage.tpot_s is None else next_due_s(stage.began_s, stage.tokens + 1, stage.tpot_s)

    def current_tpot_s(self) -> float | None:
        """Return the TPOT target of the current decode stage, which before the first token is the first stage's."""
        index = max(0, len(self._stages) - 1)
        return self.contract.decode[index].tpot_s if index < len(self.contract.decode) else None

    def tightest_tpot_s(self) -> float | None:
        """Return the tightest TPOT target of the current decode stage and those to come; None without a target."""
        decode = self.contract.decode
        if len(decode) < 2:
            return decode[0].tpot_s if decode else None
        return min((target.tpot_s for target in decode[max(0, len(self._stages) - 1) :]), default=None)

    def attainment(self) -> Attainment:
        """Return what the request has achieved so far."""
        return Attainment(
            ttft_s=None if self._first_s is None else self._first_s - self.arrival_s,
            target_ttft_s=self._target_ttft_s(),
            stages=tuple(
                StageAttainment(
                    tokens=stage.tokens,
                    mean_tpot_s=(stage.last_s - stage.began_s) / stage.tokens if stage.tokens else 0.0,
                    required_tpot_s=stage.required_tpot_s,
                    late_tokens=stage.late_tokens,
                    target_tpot_s=stage.tpot_s,
                    began_s=stage.began_s,
                    first_late=stage.first_late,
                )
                for stage in self._stages
            ),
            worst_gap_s=self._worst_gap_s,
            missed=self._missed,
        )

    def _target_ttft_s(self) -> float | None:
        return self.contract.prefill.ttft_s if self.contract.prefill is not None else None

    def _begin_stage(self, now_s: float) -> None:
        index = len(self._stages)
        decode = self.contract.decode
        self._stages.append(_Stage(began_s=now_s, tpot_s=decode[index].tpot_s if index < len(decode) else None))

    def _miss(self, what: str) -> None:
        self._missed = self._missed or what
