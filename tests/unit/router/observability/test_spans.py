"""The spans of a request cover its time once, phase by phase and stage by stage."""

from __future__ import annotations

from dataclasses import replace

from router.observability import spans
from router.requests.phases import Phase
from router.requests.request_record import Ending, RequestRecord
from services.slo.attainment import Attainment, StageAttainment
from slos_serve.v1 import inference_pb2
from tests.unit.router.observability.test_history import record

ARRIVAL_S = 99.0


def stage(began_s: float, tokens: int, target_tpot_s: float | None = 0.1) -> StageAttainment:
    return StageAttainment(
        tokens=tokens,
        mean_tpot_s=0.1,
        required_tpot_s=0.2,
        late_tokens=1,
        target_tpot_s=target_tpot_s,
        began_s=began_s,
    )


def ended(*stages: StageAttainment, changes: tuple[tuple[Phase, float], ...], phase: Phase) -> RequestRecord:
    attainment = Attainment(ttft_s=0.5, target_ttft_s=0.4, stages=stages, worst_gap_s=0.2, missed="late")
    return replace(record("r", Ending.MISSED, ARRIVAL_S + 1.0), changes=changes, phase=phase, attainment=attainment)


def shown(found: RequestRecord) -> list[tuple[str, float, float]]:
    return [
        (part.name, round(part.began_s - ARRIVAL_S, 6), round(part.ended_s - ARRIVAL_S, 6))
        for part in spans.parts(found)
    ]


def test_stays_in_phases_follow_each_other_and_are_joined() -> None:
    changes = ((Phase.PLAN, ARRIVAL_S + 0.1), (Phase.RESTART, ARRIVAL_S + 0.2), (Phase.RESTART, ARRIVAL_S + 0.4))
    found = ended(changes=changes, phase=Phase.PREFILL)
    assert shown(found) == [("plan", 0.0, 0.1), ("restart", 0.1, 0.4), ("prefill", 0.4, 1.0)]


def test_decoding_is_told_by_stages() -> None:
    stages = (stage(ARRIVAL_S + 0.3, 4), stage(ARRIVAL_S + 0.6, 2, None))
    found = ended(*stages, changes=((Phase.PREFILL, ARRIVAL_S + 0.4),), phase=Phase.DECODE)
    prefill, first, second = spans.parts(found)
    assert shown(found) == [("prefill", 0.0, 0.4), ("decode", 0.4, 0.6), ("decode", 0.6, 1.0)]
    assert prefill.attributes == {}
    assert first.attributes == {
        spans.STAGE: 1,
        spans.OUTPUT_TOKENS: 4,
        "slos.late_tokens": 1,
        "slos.required_tpot_s": 0.2,
        "slos.target_tpot_s": 0.1,
    }
    assert "slos.target_tpot_s" not in second.attributes


def test_a_stage_that_fell_into_another_stay_is_not_told_here() -> None:
    """A request that was restarted decodes twice; its first stage had ended before the second time."""
    stages = (stage(ARRIVAL_S + 0.2, 4), stage(ARRIVAL_S + 0.4, 2))
    changes = ((Phase.DECODE, ARRIVAL_S + 0.5), (Phase.RESTART, ARRIVAL_S + 0.7))
    found = ended(*stages, changes=changes, phase=Phase.DECODE)
    told = [(part.name, part.attributes.get(spans.STAGE)) for part in spans.parts(found)]
    assert told == [("decode", 1), ("decode", 2), ("restart", None), ("decode", 2)]
    assert shown(found)[1:] == [("decode", 0.4, 0.5), ("restart", 0.5, 0.7), ("decode", 0.7, 1.0)]


def test_a_hand_over_tells_how_much_was_moved() -> None:
    found = ended(changes=((Phase.HANDOVER, ARRIVAL_S + 0.5),), phase=Phase.PREFILL)
    pulled = replace(found, kv_pull=inference_pb2.KvPull(bytes=7))
    assert [part.attributes for part in spans.parts(pulled)] == [{"slos.kv.bytes": 7}, {}]
    assert [part.attributes for part in spans.parts(found)] == [{}, {}]


def test_the_span_of_the_whole_request_tells_its_end() -> None:
    found = replace(ended(changes=(), phase=Phase.DECODE), broken_by=Phase.QUEUE)
    whole = spans.whole(found, "chat", "m")
    assert (whole.name, whole.began_s, whole.ended_s) == ("chat m", found.arrival_s, found.ended_s)
    assert whole.attributes[spans.LATENCY_E2E] == found.ended_s - found.arrival_s
    assert whole.attributes[spans.LATENCY_TTFT] == 0.5
    assert (whole.attributes["slos.missed"], whole.attributes["slos.broken_by"]) == ("late", "queue")
    assert whole.attributes["slos.ending"] == "missed"
