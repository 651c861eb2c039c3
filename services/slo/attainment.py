"""What a client got, measured against its contract: every token, no tolerance."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.slo.contract import Contract


@dataclass(slots=True)
class _Stage:
    began_s: float
    tpot_s: float | None
    tokens: int = 0
    late_tokens: int = 0
    required_tpot_s: float = 0.0
    last_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StageAttainment:
    """One decode stage. Times in seconds."""

    tokens: int
    mean_tpot_s: float
    """(last token - start of stage) / tokens: the mean that benchmark tools report; it hides stalls."""
    required_tpot_s: float
    """The smallest TPOT that every token would have kept."""
    late_tokens: int
    target_tpot_s: float | None
    began_s: float
    """On the clock of the meter."""


@dataclass(frozen=True, slots=True)
class Attainment:
    """All targets of one request."""

    ttft_s: float | None
    """None if no token came."""
    target_ttft_s: float | None
    stages: tuple[StageAttainment, ...]
    worst_gap_s: float
    missed: str
    """The first target missed, in words; empty when all were kept."""

    @property
    def kept(self) -> bool:
        return not self.missed

    @property
    def mean_tpot_s(self) -> float | None:
        """Mean time between tokens, over all stages; None before the second token."""
        tokens = sum(stage.tokens for stage in self.stages)
        return sum(stage.mean_tpot_s * stage.tokens for stage in self.stages) / tokens if tokens else None

    @property
    def required_tpot_s(self) -> float:
        """The smallest TPOT that every token of every stage would have kept."""
        return max((stage.required_tpot_s for stage in self.stages), default=0.0)


@dataclass(slots=True)
class AttainmentMeter:
    """Follows one request token by token.

    The contract must be resolved: a slowdown means nothing here. Token 1 of the request ends the prefill stage; token k
    (k = 1, 2, ...) of a decode stage is due k * tpot_s after the stage began, which is the time of the last token of
    the stage before (planning section 1).
    """

    contract: Contract
    arrival_s: float
    task_due_s: float | None = None
    """When the whole task must be done."""
    _first_s: float | None = None
    _last_s: float = 0.0
    _worst_gap_s: float = 0.0
    _stages: list[_Stage] = field(default_factory=list)
    _missed: str = ""

    @property
    def missed(self) -> bool:
        """A target was missed already."""
        return bool(self._missed)

    def tokens(self, count: int, now_s: float) -> None:
        """`count` tokens came at `now_s`."""
        if not count:
            return
        if self._first_s is None:
            self._first(now_s)
            count -= 1
            if not count:
                return
        gap_s = now_s - self._last_s
        self._worst_gap_s = max(self._worst_gap_s, gap_s)
        stage = self._stages[-1]
        self._last_s = stage.last_s = now_s
        # Of tokens that come together the first is the latest.
        tpot_s = (now_s - stage.began_s) / (stage.tokens + 1)
        stage.required_tpot_s = max(stage.required_tpot_s, tpot_s)
        if stage.tpot_s is not None and now_s > stage.began_s + (stage.tokens + 1) * stage.tpot_s:
            self._late(stage, stage.tpot_s, count, now_s)
        stage.tokens += count

    def _first(self, now_s: float) -> None:
        self._first_s = self._last_s = now_s
        ttft_s = self._target_ttft_s()
        if ttft_s is not None and now_s - self.arrival_s > ttft_s:
            self._miss(f"TTFT {now_s - self.arrival_s:.3f} s > {ttft_s:.3f} s")
        self._begin_stage(now_s)

    def _late(self, stage: _Stage, tpot_s: float, count: int, now_s: float) -> None:
        """The next tokens of a stage, some or all of which are late."""
        for number in range(stage.tokens + 1, stage.tokens + count + 1):
            late_s = now_s - stage.began_s - number * tpot_s
            if now_s > stage.began_s + number * tpot_s:
                stage.late_tokens += 1
                self._miss(f"token {number} of decode stage {len(self._stages)} was {late_s * 1e3:.1f} ms late")

    def end(self, now_s: float) -> None:
        """The request is done."""
        if self.task_due_s is not None and now_s > self.task_due_s:
            self._miss(f"the task was done {now_s - self.task_due_s:.3f} s after its deadline")

    def end_stage(self) -> None:
        """The marker of the current decode stage came with the last token; the next stage begins there."""
        if self._stages and len(self._stages) < len(self.contract.decode):
            self._begin_stage(self._last_s)

    @property
    def stage_marker(self) -> str:
        """The text that ends the current stage; empty if none does."""
        index = max(0, len(self._stages) - 1)
        decode = self.contract.decode
        return decode[index].ends_with if index < len(decode) - 1 else ""

    def next_due_s(self) -> float | None:
        """When the next token is due, on the same clock; None without a target."""
        if self._first_s is None:
            ttft_s = self._target_ttft_s()
            return None if ttft_s is None else self.arrival_s + ttft_s
        stage = self._stages[-1]
        return None if stage.tpot_s is None else stage.began_s + (stage.tokens + 1) * stage.tpot_s

    def current_tpot_s(self) -> float | None:
        """The target of the stage now running; before the first token, of the first decode stage."""
        index = max(0, len(self._stages) - 1)
        return self.contract.decode[index].tpot_s if index < len(self.contract.decode) else None

    def tightest_tpot_s(self) -> float | None:
        """The tightest target of the stage now running and of those after it."""
        index = max(0, len(self._stages) - 1)
        return min((target.tpot_s for target in self.contract.decode[index:]), default=None)

    def attainment(self) -> Attainment:
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
