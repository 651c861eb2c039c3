"""Metrics of the audit log, which every process has."""

from __future__ import annotations

from services.telemetry.catalogue.metric import Kind, Metric, Process

EVENT = "slos.audit.event"
REASON = "slos.reason"

AUDIT_EVENTS = Metric(
    "slos.audit.events",
    Kind.COUNTER,
    "{event}",
    "Events of the audit log by their kind, those included that got no line.",
    tuple(Process),
    (EVENT,),
)
AUDIT_LEFT_OUT = Metric(
    "slos.audit.left_out",
    Kind.COUNTER,
    "{event}",
    "Events without a line in the audit log: too many of one kind (`rate`, told as a count), too many waiting for the "
    "disk (`backlog`), or a failed write (`disk`).",
    tuple(Process),
    (REASON,),
)

METRICS: tuple[Metric, ...] = (AUDIT_EVENTS, AUDIT_LEFT_OUT)
