"""A composed step as plain values, so that it can be kept and composed again later.

Values are those of JSON; figures that are not finite, which JSON lacks, become strings (`"inf"`). Who keeps them, and
where, is not decided here: `services.engine.step_recording` writes them to files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from services.slo.composer.compose import compose
from services.slo.composer.step import ComposerPolicy, Composition, Limits, SchedulableRequest
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepCost, StepForm, StepShape

_REQUEST_FIELDS = tuple(field.name for field in fields(SchedulableRequest))


@dataclass(frozen=True, slots=True)
class ComposedStep:
    """The arguments of one call of `compose` and its answer."""

    work: Sequence[SchedulableRequest]
    free_blocks: int
    model: PerformanceModel
    limits: Limits
    policy: ComposerPolicy
    now_s: float
    composition: Composition

    def again(self) -> Composition:
        """Compose the step again, with the composer as it is now."""
        return compose(self.work, self.free_blocks, self.model, self.limits, self.now_s, self.policy)

    def to_plain(self) -> dict[str, Any]:
        """Return the step as plain values; later changes of its requests leave them alone."""
        composition = self.composition
        return {
            "work": [[_plain(getattr(w, name)) for name in _REQUEST_FIELDS] for w in self.work],
            "free_blocks": self.free_blocks,
            "model": _model_to_plain(self.model),
            "limits": _fields_to_plain(self.limits),
            "policy": _fields_to_plain(self.policy),
            "now_s": self.now_s,
            "grants": list(composition.grants.items()),
            "preempted": composition.preempted,
            "admitted": composition.admitted,
            "held": composition.held,
            "limit_s": _plain(composition.limit_s),
            "predicted_s": composition.predicted_s,
            "shape": _fields_to_plain(composition.shape),
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_plain` returned; entries that it does not know are ignored.

        Raises:
            KeyError, TypeError, ValueError: the values are not those of a step.
        """
        composition = Composition(
            grants=dict(values["grants"]),
            preempted=tuple(values["preempted"]),
            admitted=tuple(values["admitted"]),
            held=tuple(values["held"]),
            limit_s=float(values["limit_s"]),
            predicted_s=values["predicted_s"],
            shape=StepShape(**values["shape"]),
        )
        return cls(
            work=tuple(_request(row) for row in values["work"]),
            free_blocks=values["free_blocks"],
            model=_model(values["model"]),
            limits=Limits(**values["limits"]),
            policy=ComposerPolicy(**{name: _figure(value) for name, value in values["policy"].items()}),
            now_s=values["now_s"],
            composition=composition,
        )


def _request(row: Sequence[Any]) -> SchedulableRequest:
    request_id, *rest = row
    return SchedulableRequest(request_id, *(_figure(value) for value in rest))


def _model_to_plain(model: PerformanceModel) -> dict[str, Any]:
    coefficients = _fields_to_plain(model.coefficients)
    coefficients["form"] = model.coefficients.form.value
    coefficients["memory"] = _fields_to_plain(model.coefficients.memory)
    return {"coefficients": coefficients, "scale": model.scale, "margins": model.margins}


def _model(values: Mapping[str, Any]) -> PerformanceModel:
    coefficients = dict(values["coefficients"])
    coefficients["form"] = StepForm(coefficients["form"])
    coefficients["memory"] = StepCost(**coefficients["memory"])
    decode, mixed, prefill = values["margins"]
    return PerformanceModel(PerformanceCoefficients(**coefficients), values["scale"], (decode, mixed, prefill))


def _fields_to_plain(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _figure(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
