"""Steps written down, so that they can be composed again: one JSON object a line.

The first line is `{"format": 2}`. Figures that are not finite are written as strings (`"inf"`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from services.slo.composer.compose import compose
from services.slo.composer.step import ComposerPolicy, Composition, Limits, SchedulableRequest
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepCost, StepForm, StepShape

FORMAT = 2
_WORK = tuple(field.name for field in fields(SchedulableRequest))


class RecordingError(ValueError):
    """A file that is no recording; the message names the line."""


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """What was asked, what was answered, and how long the step took."""

    work: tuple[SchedulableRequest, ...]
    free_blocks: int
    model: PerformanceModel
    limits: Limits
    policy: ComposerPolicy
    now_s: float
    composition: Composition
    took_s: float

    def again(self) -> Composition:
        """The answer of today's composer."""
        return compose(self.work, self.free_blocks, self.model, self.limits, self.now_s, self.policy)


class StepRecorder:
    """Writes the steps of one engine to a file, over what was there."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: the file cannot be written.
        """
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._write({"format": FORMAT})
        self._begun: dict[str, Any] | None = None

    def begin(
        self,
        work: Sequence[SchedulableRequest],
        free_blocks: int,
        model: PerformanceModel,
        limits: Limits,
        policy: ComposerPolicy,
        now_s: float,
        composition: Composition,
    ) -> None:
        """A step begins; takes a copy of everything."""
        self._begun = {
            "work": [[_plain(getattr(w, name)) for name in _WORK] for w in work],
            "free_blocks": free_blocks,
            "model": _of_model(model),
            "limits": _of_fields(limits),
            "policy": _of_fields(policy),
            "now_s": now_s,
            "grants": list(composition.grants.items()),
            "preempted": composition.preempted,
            "admitted": composition.admitted,
            "held": composition.held,
            "limit_s": _plain(composition.limit_s),
            "predicted_s": composition.predicted_s,
            "shape": _of_fields(composition.shape),
        }

    def end(self, took_s: float) -> None:
        """The step that began last has ended; nothing is written without one."""
        if self._begun is not None:
            self._write({**self._begun, "took_s": took_s})
            self._begun = None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        json.dump(line, self._file, allow_nan=False, separators=(",", ":"))
        self._file.write("\n")


def read_steps(path: Path) -> Iterator[RecordedStep]:
    """The steps of a recording, in order.

    Raises:
        RecordingError: it is not one.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        number = 1
        try:
            if json.loads(file.readline())["format"] != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            for line in file:
                number += 1
                yield _step(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise RecordingError(f"{path}, line {number}: {error!r}") from error


def _step(values: dict[str, Any]) -> RecordedStep:
    composition = Composition(
        grants=dict(values["grants"]),
        preempted=tuple(values["preempted"]),
        admitted=tuple(values["admitted"]),
        held=tuple(values["held"]),
        limit_s=float(values["limit_s"]),
        predicted_s=values["predicted_s"],
        shape=StepShape(**values["shape"]),
    )
    return RecordedStep(
        work=tuple(_work(row) for row in values["work"]),
        free_blocks=values["free_blocks"],
        model=_model(values["model"]),
        limits=Limits(**values["limits"]),
        policy=ComposerPolicy(**{name: _figure(value) for name, value in values["policy"].items()}),
        now_s=values["now_s"],
        composition=composition,
        took_s=values["took_s"],
    )


def _work(row: Sequence[Any]) -> SchedulableRequest:
    request_id, *rest = row
    return SchedulableRequest(request_id, *(_figure(value) for value in rest))


def _of_model(model: PerformanceModel) -> dict[str, Any]:
    coefficients = _of_fields(model.coefficients)
    coefficients["form"] = model.coefficients.form.value
    coefficients["memory"] = _of_fields(model.coefficients.memory)
    return {"coefficients": coefficients, "scale": model.scale, "margins": model.margins}


def _model(values: dict[str, Any]) -> PerformanceModel:
    coefficients = dict(values["coefficients"])
    coefficients["form"] = StepForm(coefficients["form"])
    coefficients["memory"] = StepCost(**coefficients["memory"])
    decode, mixed, prefill = values["margins"]
    return PerformanceModel(PerformanceCoefficients(**coefficients), values["scale"], (decode, mixed, prefill))


def _of_fields(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _figure(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
