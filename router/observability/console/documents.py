"""The JSON documents of the console.

Durations are in seconds. Moments are Unix time; those of a request count from its arrival. Numbers that are infinite or
NaN are null. The functions are pure: `unix_offset_s` is Unix time minus the router's clock, in seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from router.observability.history import Tally, Window
from router.observability.history.windows import WINDOW_S
from router.requests.lateness import Lateness
from router.requests.phases import Phase
from router.requests.planning_log import PlanningNote
from router.requests.request_record import RequestRecord
from services.slo.latency_forecast import Placement
from slos_serve.v1 import inference_pb2

Document = dict[str, Any]


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON in UTF-8."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def state_document(state: inference_pb2.ClusterState, now_unix_s: float, trace_url: str) -> Document:
    """Return the state of the cluster, in protobuf's JSON mapping with the names of the proto file.

    64-bit integers are strings, as that mapping has it.
    """
    cluster = MessageToDict(state, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {"now": now_unix_s, "trace_url": trace_url, "window_s": WINDOW_S, "cluster": _finite(cluster)}


def window_document(window: Window, unix_offset_s: float) -> Document:
    """Return the counts of one window."""
    sample = window.sample
    return {
        "began": window.began_s + unix_offset_s,
        "profiles": {profile: _tally(tally) for profile, tally in window.tallies.items()},
        "sample": None
        if sample is None
        else {
            "queued": sample.queued,
            "running": sample.running,
            "held": sample.held,
            "kv_blocks_used": sample.kv_blocks_used,
            "kv_blocks_total": sample.kv_blocks_total,
        },
    }


def summary_document(record: RequestRecord, unix_offset_s: float) -> Document:
    """Return what a line in a list of requests shows."""
    attainment, verdict = record.attainment, record.planning.verdict
    placement = None if verdict is None else verdict.placement
    return {
        "request_id": record.request_id,
        "tenant": record.tenant,
        "application": record.application,
        "profile": record.profile,
        "ending": record.ending.value,
        "guaranteed": record.guaranteed,
        "arrived": record.arrival_s + unix_offset_s,
        "took_s": record.ended_s - record.arrival_s,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "target_ttft_s": record.targets.ttft_s,
        "target_tpot_s": list(record.targets.tpot_s),
        "target_slowdown": record.targets.max_slowdown,
        "predicted": None if placement is None else _forecast(placement),
        "ttft_s": None if attainment is None else attainment.ttft_s,
        "tpot_s": None
        if attainment is None
        else max((stage.required_tpot_s for stage in attainment.stages if stage.tokens), default=None),
        "missed": "" if attainment is None else attainment.missed,
        "broken_by": _phase(record.broken_by),
        "detail": record.detail,
        "binding": "" if verdict is None else verdict.binding.value,
        "prefill_worker_id": record.prefill_worker_id,
        "decode_worker_id": record.decode_worker_id,
        "restarts": record.restarts,
        "trace_id": record.trace_id,
    }


def request_document(record: RequestRecord, unix_offset_s: float, trace_url: str) -> Document:
    """Return everything that is known of one request."""
    attainment, pull = record.attainment, record.kv_pull
    document = summary_document(record, unix_offset_s)
    document.update(
        trace_url=trace_url,
        cached_tokens=record.cached_tokens,
        kv_recomputes=record.kv_recomputes,
        worst_gap_s=None if attainment is None else attainment.worst_gap_s,
        stages=[]
        if attainment is None
        else [
            {
                "tokens": stage.tokens,
                "target_tpot_s": stage.target_tpot_s,
                "mean_tpot_s": stage.mean_tpot_s,
                "required_tpot_s": stage.required_tpot_s,
                "late_tokens": stage.late_tokens,
                "began_s": stage.began_s - record.arrival_s,
            }
            for stage in attainment.stages
        ],
        phases_s=None
        if record.phases_s is None
        else {phase.value: spent_s for phase, spent_s in record.phases_s.items()},
        timeline=list(_timeline(record)),
        kv_pull=None if pull is None else {"bytes": pull.bytes, "transfer_s": pull.transfer_s, "wait_s": pull.wait_s},
        rounds=[_note(note, record.arrival_s) for note in record.planning.notes],
        rounds_total=record.planning.total,
    )
    found: Document = _finite(document)
    return found


def lateness_document(
    late: Lateness, arrival_s: float, promise_of: Callable[[str], tuple[str, bool] | None]
) -> Document:
    """Return one token that came late, with who was in the steps until then.

    Args:
        promise_of: returns the profile of a request and whether it is guaranteed; None if it is not known.
    """
    promises = {sharer.request_id: promise_of(sharer.request_id) for sharer in late.sharers}
    document: Document = {
        "stage": late.stage,
        "token": late.token,
        "due_s": late.due_s - arrival_s,
        "came_s": None if late.came_s is None else late.came_s - arrival_s,
        "from_s": late.from_s - arrival_s,
        "worker_id": late.worker_id,
        "steps": late.steps,
        "steps_s": late.steps_s,
        "own_s": late.own_s,
        "sharers": [
            {
                "request_id": sharer.request_id,
                "profile": "" if promise is None else promise[0],
                "guaranteed": None if promise is None else promise[1],
                "steps": sharer.steps,
                "prompt_tokens": sharer.prompt_tokens,
                "share_s": sharer.share_s,
            }
            for sharer in late.sharers
            for promise in (promises[sharer.request_id],)
        ],
        "others": late.others,
        "others_s": late.others_s,
        "kept_since_s": None if late.kept_since_s is None else late.kept_since_s - arrival_s,
    }
    found: Document = _finite(document)
    return found


def summaries(records: Iterable[RequestRecord], unix_offset_s: float) -> list[Document]:
    """Return the lines of a list of requests."""
    return [_finite(summary_document(record, unix_offset_s)) for record in records]


def _tally(tally: Tally) -> Document:
    return {
        "ended": {ending.value: count for ending, count in tally.ended.items()},
        "refused_by": dict(tally.refused_by),
        "broken_by": {phase.value: count for phase, count in tally.broken_by.items()},
        "served": tally.served,
        "phases_s": {phase.value: spent_s for phase, spent_s in tally.phases_s.items()},
    }


def _timeline(record: RequestRecord) -> Iterable[Document]:
    """Return the request's stays in phases, in order."""
    if record.phase is None:
        return
    began_s = record.arrival_s
    for phase, ended_s in (*record.changes, (record.phase, record.ended_s)):
        if ended_s > began_s:
            yield {"phase": phase.value, "from_s": began_s - record.arrival_s, "to_s": ended_s - record.arrival_s}
        began_s = max(began_s, ended_s)


def _note(note: PlanningNote, arrival_s: float) -> Document:
    placement = note.placement
    return {
        "number": note.round.number,
        "at_s": note.round.at_s - arrival_s,
        "took_s": note.round.took_s,
        "candidates": note.round.candidates,
        "outcome": note.outcome.value,
        "binding": note.binding.value,
        "earliest_guarantee_s": note.earliest_guarantee_s,
        "detail": note.detail,
        "placement": None
        if placement is None
        else {
            "prefill_worker_id": placement.prefill_worker_id,
            "decode_worker_id": placement.decode_worker_id,
            "due_s": placement.due_s - arrival_s,
            **_forecast(placement),
        },
    }


def _forecast(placement: Placement) -> Document:
    return {
        "ttft_s": placement.ttft.expected_s,
        "ttft_bound_s": placement.ttft.bound_s,
        "tpot_s": placement.tpot.expected_s,
        "tpot_bound_s": placement.tpot.bound_s,
    }


def _phase(phase: Phase | None) -> str:
    return "" if phase is None else phase.value


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list():
            return [_finite(item) for item in value]
        case _:
            return value
