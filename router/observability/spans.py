"""The router's spans of one request, made from its record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.requests.phases import Phase
from services.telemetry.catalogue import router as catalogue
from services.telemetry.traces import Part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.requests.request_record import RequestRecord
    from services.slo.attainment import Attainment

    Values = dict[str, str | bool | int | float]

REQUEST_ID = "gen_ai.request.id"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
LATENCY_TTFT = "gen_ai.latency.time_to_first_token"
LATENCY_E2E = "gen_ai.latency.e2e"
STAGE = "slos.stage"


def whole(record: RequestRecord, operation: str, model_name: str) -> Part:
    """Return the span of the whole request, from its arrival to its end."""
    attributes: Values = {
        catalogue.OPERATION: operation,
        catalogue.PROVIDER: "slos-serve",
        catalogue.MODEL: model_name,
        catalogue.PROFILE: record.profile,
        catalogue.TENANT: record.tenant,
        REQUEST_ID: record.request_id,
        INPUT_TOKENS: record.prompt_tokens,
        OUTPUT_TOKENS: record.completion_tokens,
        CACHED_TOKENS: record.cached_tokens,
        LATENCY_E2E: record.ended_s - record.arrival_s,
        "slos.guaranteed": record.guaranteed,
        "slos.ending": record.ending.value,
        "slos.restarts": record.restarts,
        "slos.kv.recomputes": record.kv_recomputes,
        "slos.prefill_worker": record.prefill_worker_id,
        "slos.decode_worker": record.decode_worker_id,
    }
    attainment = record.attainment
    if attainment is not None and attainment.ttft_s is not None:
        attributes[LATENCY_TTFT] = attainment.ttft_s
    if attainment is not None and attainment.missed:
        attributes["slos.missed"] = attainment.missed
    if record.broken_by is not None:
        attributes["slos.broken_by"] = record.broken_by.value
    return Part(f"{operation} {model_name}", record.arrival_s, record.ended_s, attributes)


def parts(record: RequestRecord) -> Iterator[Part]:
    """Return one span for every stay in a phase; decoding has one for every stage of the contract."""
    for phase, began_s, ended_s in _stays(record):
        if phase is Phase.DECODE and record.attainment is not None:
            yield from _decode(record.attainment, began_s, ended_s)
        elif phase is Phase.HANDOVER and record.kv_pull is not None:
            yield Part(phase.value, began_s, ended_s, {"slos.kv.bytes": record.kv_pull.bytes})
        else:
            yield Part(phase.value, began_s, ended_s)


def _stays(record: RequestRecord) -> list[tuple[Phase, float, float]]:
    """Return the stays in phases, in order: phase, begin, end. A phase that was entered again at once is one stay."""
    ends = list(record.changes)
    if record.phase is not None:
        ends.append((record.phase, record.ended_s))
    stays: list[tuple[Phase, float, float]] = []
    began_s = record.arrival_s
    for phase, ended_s in ends:
        if stays and stays[-1][0] is phase:
            stays[-1] = (phase, stays[-1][1], ended_s)
        else:
            stays.append((phase, began_s, ended_s))
        began_s = ended_s
    return stays


def _decode(attainment: Attainment, began_s: float, ended_s: float) -> Iterator[Part]:
    starts = [began_s, *(stage.began_s for stage in attainment.stages[1:])]
    for index, stage in enumerate(attainment.stages):
        from_s = max(began_s, starts[index])
        until_s = ended_s if index == len(starts) - 1 else min(ended_s, starts[index + 1])
        if until_s > from_s or len(starts) == 1:
            attributes: Values = {
                STAGE: index + 1,
                OUTPUT_TOKENS: stage.tokens,
                "slos.late_tokens": stage.late_tokens,
                "slos.required_tpot_s": stage.required_tpot_s,
            }
            if stage.target_tpot_s is not None:
                attributes["slos.target_tpot_s"] = stage.target_tpot_s
            yield Part(Phase.DECODE.value, from_s, until_s, attributes)
