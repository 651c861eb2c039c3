"""Conversion of KV handles, and of the facts that make KV caches compatible."""

from __future__ import annotations

from dataclasses import asdict

from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import KvHandle
from services.wire.error import figures
from services.wire.fields import dataclass_from_wire
from slos_serve.v1 import worker_pb2


def compatibility_to_wire(facts: Compatibility) -> worker_pb2.Compatibility:
    return worker_pb2.Compatibility(**asdict(facts))


def compatibility_from_wire(message: worker_pb2.Compatibility) -> Compatibility:
    return dataclass_from_wire(Compatibility, message)


def kv_handle_to_wire(handle: KvHandle, age_s: float = 0.0) -> worker_pb2.KvHandle:
    """Build the message for a KV handle.

    Args:
        age_s: seconds since the handle was handed over, by which its lease is shorter now.
    """
    return worker_pb2.KvHandle(
        lease_id=handle.lease_id,
        worker_id=handle.worker_id,
        engine_epoch=handle.engine_epoch,
        lease_remaining_s=max(0.0, handle.lease_remaining_s - age_s),
        tokens=handle.tokens,
        bytes=handle.kv_bytes,
        compatibility=compatibility_to_wire(handle.compatibility),
        transfer_params_json=handle.transfer_params_json,
        secret=handle.secret,
    )


def kv_handle_from_wire(message: worker_pb2.KvHandle) -> KvHandle:
    """Read a KV handle.

    Raises:
        WireError: a figure is negative or no number.
    """
    figures("kv", message, ("tokens", "bytes", "lease_remaining_s"))
    return KvHandle(
        lease_id=message.lease_id,
        worker_id=message.worker_id,
        engine_epoch=message.engine_epoch,
        lease_remaining_s=message.lease_remaining_s,
        tokens=message.tokens,
        kv_bytes=message.bytes,
        compatibility=compatibility_from_wire(message.compatibility),
        transfer_params_json=message.transfer_params_json,
        secret=message.secret,
    )


def age_leases(report: worker_pb2.StepReport, age_s: float) -> None:
    """Shorten the leases in a report by the seconds that it has waited to be sent."""
    for output in report.outputs:
        if output.HasField("kv"):
            output.kv.lease_remaining_s = max(0.0, output.kv.lease_remaining_s - age_s)
