"""Conversion of a worker's description: its role, the facts of its engine, and its load."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from services.engine.protocol import EngineFacts, EngineLoad
from services.slo.performance import PerformanceCoefficients, StepCost, StepForm
from services.state.registry import WorkerRole
from services.wire.error import WireError, figures
from services.wire.fields import WireEnum, dataclass_from_wire
from services.wire.kv import compatibility_from_wire, compatibility_to_wire
from slos_serve.v1 import inference_pb2, worker_pb2

_ROLES = WireEnum(
    "role",
    "worker role",
    {
        WorkerRole.PREFILL: inference_pb2.WORKER_ROLE_PREFILL,
        WorkerRole.DECODE: inference_pb2.WORKER_ROLE_DECODE,
    },
)
_FORMS = WireEnum(
    "performance",
    "form of the step time",
    {
        StepForm.ADDITIVE: worker_pb2.STEP_FORM_ADDITIVE,
        StepForm.ROOFLINE: worker_pb2.STEP_FORM_ROOFLINE,
    },
    also_read={worker_pb2.STEP_FORM_UNSPECIFIED: StepForm.ADDITIVE},
)


_POSITIVE = ("max_context_tokens", "vocabulary_size", "max_step_tokens", "max_running_requests")
_COMPUTE_COSTS = (
    "overhead_s",
    "per_token_s",
    "per_request_s",
    "per_context_token_s",
    "per_attention_pair_s",
    "per_draft_step_s",
)
_FIGURES = (*_POSITIVE, "kv_blocks_total", "kv_bytes_per_token", "kv_lease_s")


@dataclass(frozen=True, slots=True)
class WorkerDescription:
    """Description of a worker at one moment."""

    worker_id: str
    role: WorkerRole
    facts: EngineFacts
    load: EngineLoad
    draining: bool


def role_to_wire(role: WorkerRole) -> inference_pb2.WorkerRole.ValueType:
    return _ROLES.to_wire(role)


def role_from_wire(value: inference_pb2.WorkerRole.ValueType) -> WorkerRole:
    """Read a worker role.

    Raises:
        WireError: the role is neither prefill nor decode.
    """
    return _ROLES.from_wire(value)


def load_to_wire(load: EngineLoad) -> worker_pb2.WorkerLoad:
    return worker_pb2.WorkerLoad(**asdict(load))


def load_from_wire(message: worker_pb2.WorkerLoad) -> EngineLoad:
    """Read the load of an engine.

    Raises:
        WireError: a count is negative.
    """
    return EngineLoad(**figures("load", message, EngineLoad.__dataclass_fields__))


def coefficients_to_wire(coefficients: PerformanceCoefficients) -> worker_pb2.PerformanceCoefficients:
    values = asdict(coefficients)
    values["form"] = _FORMS.to_wire(coefficients.form)
    values["memory"] = None
    message = worker_pb2.PerformanceCoefficients(**values)
    if coefficients.form is StepForm.ROOFLINE:
        message.memory.CopyFrom(worker_pb2.StepCost(**asdict(coefficients.memory)))
    return message


def coefficients_from_wire(message: worker_pb2.PerformanceCoefficients) -> PerformanceCoefficients:
    """Read the coefficients of a performance model.

    Raises:
        WireError: a coefficient is negative or no number, or so large that steps would have no finite time, or the form
            is unknown.
    """
    form = _FORMS.from_wire(message.form)
    figures("performance", message, _COMPUTE_COSTS)
    figures("performance.memory", message.memory, StepCost.__dataclass_fields__)
    try:
        return PerformanceCoefficients(
            overhead_s=message.overhead_s,
            per_token_s=message.per_token_s,
            per_context_token_s=message.per_context_token_s,
            per_attention_pair_s=message.per_attention_pair_s,
            origin=message.origin,
            per_request_s=message.per_request_s,
            per_draft_step_s=message.per_draft_step_s,
            form=form,
            memory=dataclass_from_wire(StepCost, message.memory),
        )
    except ValueError as error:
        raise WireError("performance", str(error)) from error


def description_to_wire(description: WorkerDescription) -> worker_pb2.WorkerDescription:
    facts = description.facts
    return worker_pb2.WorkerDescription(
        worker_id=description.worker_id,
        role=role_to_wire(description.role),
        engine_epoch=facts.engine_epoch,
        compatibility=compatibility_to_wire(facts.compatibility),
        model=facts.model,
        max_context_tokens=facts.max_context_tokens,
        vocabulary_size=facts.vocabulary_size,
        kv_blocks_total=facts.kv_blocks_total,
        kv_bytes_per_token=facts.kv_bytes_per_token,
        max_step_tokens=facts.max_step_tokens,
        max_running_requests=facts.max_running_requests,
        emulated=facts.emulated,
        performance=coefficients_to_wire(facts.performance),
        load=load_to_wire(description.load),
        draining=description.draining,
        eos_token_ids=facts.eos_token_ids,
        kv_lease_s=facts.kv_lease_s,
        max_step_s=facts.max_step_s if facts.max_step_s < math.inf else None,
        kv_address_json=facts.kv_address_json,
    )


def description_from_wire(message: worker_pb2.WorkerDescription) -> WorkerDescription:
    """Read the description of a worker.

    Raises:
        WireError: a field holds what no conforming worker sends.
    """
    role = role_from_wire(message.role)
    figures("description", message, _FIGURES)
    figures("description.compatibility", message.compatibility, ("block_tokens",))
    if not all(getattr(message, name) for name in _POSITIVE) or not message.compatibility.block_tokens:
        raise WireError("description", f"{', '.join(_POSITIVE)} and block_tokens must be positive")
    if message.HasField("max_step_s") and not message.max_step_s > 0:
        raise WireError("description.max_step_s", f"must be positive; got {message.max_step_s}")
    facts = EngineFacts(
        engine_epoch=message.engine_epoch,
        compatibility=compatibility_from_wire(message.compatibility),
        model=message.model,
        max_context_tokens=message.max_context_tokens,
        vocabulary_size=message.vocabulary_size,
        eos_token_ids=tuple(message.eos_token_ids),
        kv_blocks_total=message.kv_blocks_total,
        kv_bytes_per_token=message.kv_bytes_per_token,
        max_step_tokens=message.max_step_tokens,
        max_running_requests=message.max_running_requests,
        kv_lease_s=message.kv_lease_s,
        max_step_s=message.max_step_s if message.HasField("max_step_s") else math.inf,
        performance=coefficients_from_wire(message.performance),
        emulated=message.emulated,
        kv_address_json=message.kv_address_json,
    )
    return WorkerDescription(
        worker_id=message.worker_id,
        role=role,
        facts=facts,
        load=load_from_wire(message.load),
        draining=message.draining,
    )
