"""Conversions between the messages of worker.proto and the dataclasses of the engine port, both ways.

`..._to_wire` builds a message, `..._from_wire` reads one and raises `WireError` for what no conforming peer sends.
Leases travel as durations: `kv_handle_to_wire` takes the handle's age, so that what is sent is valid at sending.
"""

from services.slo.admission import NO_OTHERS, OtherDecodes, OtherPrompts, OtherWork
from services.wire.description import (
    WorkerDescription,
    coefficients_from_wire,
    coefficients_to_wire,
    description_from_wire,
    description_to_wire,
    load_from_wire,
    load_to_wire,
    role_from_wire,
    role_to_wire,
)
from services.wire.error import WireError
from services.wire.kv import (
    age_leases,
    compatibility_from_wire,
    compatibility_to_wire,
    kv_handle_from_wire,
    kv_handle_to_wire,
)
from services.wire.others import others_from_wire, others_to_wire
from services.wire.sampling import logprobs_from_wire, logprobs_to_wire, sampling_from_wire, sampling_to_wire
from services.wire.steps import (
    check_output,
    check_outputs,
    duration_from_wire,
    finish_reason_from_wire,
    finish_reason_to_wire,
    lease_outcome_from_wire,
    lease_outcome_to_wire,
    output_from_wire,
    output_to_wire,
    scheduling_from_wire,
    shape_from_wire,
    shape_to_wire,
    step_to_wire,
)
from services.wire.submit import submit_from_wire, submit_to_wire

__all__ = [
    "NO_OTHERS",
    "OtherDecodes",
    "OtherPrompts",
    "OtherWork",
    "WireError",
    "WorkerDescription",
    "age_leases",
    "check_output",
    "check_outputs",
    "coefficients_from_wire",
    "coefficients_to_wire",
    "compatibility_from_wire",
    "compatibility_to_wire",
    "description_from_wire",
    "description_to_wire",
    "duration_from_wire",
    "finish_reason_from_wire",
    "finish_reason_to_wire",
    "kv_handle_from_wire",
    "kv_handle_to_wire",
    "lease_outcome_from_wire",
    "lease_outcome_to_wire",
    "load_from_wire",
    "load_to_wire",
    "logprobs_from_wire",
    "logprobs_to_wire",
    "others_from_wire",
    "others_to_wire",
    "output_from_wire",
    "output_to_wire",
    "role_from_wire",
    "role_to_wire",
    "sampling_from_wire",
    "sampling_to_wire",
    "scheduling_from_wire",
    "shape_from_wire",
    "shape_to_wire",
    "step_to_wire",
    "submit_from_wire",
    "submit_to_wire",
]
