"""Every figure of an answer is the one that its name says: no two figures of these tests are the same."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gateway.answers import (
    AnswerOptions,
    ChatFormat,
    CompletionFormat,
    achieved_headers,
    last_chunks,
    slo_report,
    usage,
    usage_so_far,
    verdict_headers,
    whole_answer,
)
from slos_serve import (
    Achieved,
    Admission,
    Binding,
    Completion,
    Contract,
    DecodeTarget,
    Finished,
    FinishReason,
    Phases,
    PrefillTarget,
    Tokens,
    Verdict,
)
from slos_serve.events import Prediction, RateLimit, StageAchieved, TokenLogprob

ADMISSION = Admission(
    request_id="r",
    verdict=Verdict.GUARANTEED,
    predicted=Prediction(ttft_s=0.101, tpot_s=0.0102, ttft_bound_s=0.203, tpot_bound_s=0.0204),
    contract=Contract(),
    model="m",
    prompt_tokens=31,
    prefill_worker_id="p",
    decode_worker_id="d",
    reason="",
    binding=Binding.KV_MEMORY,
    earliest_guarantee_s=None,
    emulated=False,
)
FINISHED = Finished(
    reason=FinishReason.STOP,
    matched_stop="",
    prompt_tokens=31,
    completion_tokens=17,
    cached_tokens=7,
    achieved=Achieved(
        ttft_s=0.111,
        stages=(StageAchieved(5, 0.0112, 0.0313, 2), StageAchieved(11, 0.0214, 0.0215, 3)),
        worst_gap_s=0.116,
        kept=False,
        missed="token 2 was late",
    ),
    phases=Phases(0.201, 0.202, 0.203, 0.204, 0.205, 0.206, 0.207),
    restarts=4,
    kv_recomputes=6,
    kv_pull=None,
    trace_id="0123",
)
PLAIN = AnswerOptions("id-1", None, str)


def test_usage_counts_prompt_output_and_cache() -> None:
    assert usage(FINISHED) == {
        "prompt_tokens": 31,
        "completion_tokens": 17,
        "total_tokens": 48,
        "prompt_tokens_details": {"cached_tokens": 7},
    }


def test_usage_of_a_stream_counts_the_tokens_of_its_newest_chunk() -> None:
    assert usage_so_far(ADMISSION, Tokens(8, (1, 2, 3), "abc", ())) == {
        "prompt_tokens": 31,
        "completion_tokens": 11,
        "total_tokens": 42,
    }


def test_the_report_says_what_was_achieved_stage_by_stage_and_phase_by_phase() -> None:
    assert slo_report(ADMISSION, FINISHED) == {
        "verdict": "guaranteed",
        "kept": False,
        "missed": "token 2 was late",
        "ttft_ms": 111.0,
        "tpot_ms": 31.3,
        "worst_gap_ms": 116.0,
        "stages": [
            {"tokens": 5, "mean_tpot_ms": 11.2, "required_tpot_ms": 31.3, "late_tokens": 2},
            {"tokens": 11, "mean_tpot_ms": 21.4, "required_tpot_ms": 21.5, "late_tokens": 3},
        ],
        "phases_ms": {
            "queue": 201.0,
            "plan": 202.0,
            "prefill_wait": 203.0,
            "prefill": 204.0,
            "handover": 205.0,
            "decode": 206.0,
            "restart": 207.0,
        },
        "restarts": 4,
        "trace_id": "0123",
    }
    kept = replace(FINISHED, achieved=replace(FINISHED.achieved, kept=True, missed=""), trace_id="")
    report = slo_report(ADMISSION, kept)
    assert (report["kept"], report["missed"], report["trace_id"]) == (True, None, None)


PREDICTED = {
    "x-slo-predicted-ttft-ms": "101.0",
    "x-slo-predicted-tpot-ms": "10.2",
    "x-slo-bound-ttft-ms": "203.0",
    "x-slo-bound-tpot-ms": "20.4",
}


def test_headers_of_a_guarantee_tell_prediction_and_bound() -> None:
    assert verdict_headers(ADMISSION) == {"x-slo-verdict": "guaranteed", **PREDICTED}


def test_headers_of_best_effort_tell_the_contract_and_what_binds() -> None:
    contract = Contract(prefill=PrefillTarget(ttft_s=0.5), decode=(DecodeTarget(0.04, "x"), DecodeTarget(0.03)))
    admission = replace(
        ADMISSION, verdict=Verdict.BEST_EFFORT, contract=contract, earliest_guarantee_s=1.5, emulated=True
    )
    assert verdict_headers(admission) == {
        "x-slo-verdict": "best_effort",
        **PREDICTED,
        "x-slo-ttft-ms": "500.0",
        "x-slo-tpot-ms": "30.0",
        "x-slo-binding": "kv_memory",
        "x-slo-earliest-guarantee-ms": "1500.0",
        "x-slo-emulated": "true",
    }


def test_headers_tell_what_is_left_of_the_quotas_that_openai_has_headers_for() -> None:
    limits = (
        RateLimit("requests_per_s", 5.0, 3.5, 0.75),
        RateLimit("output_tokens_per_s", 900.0, 17.0, 88.3),
        RateLimit("a_quota_of_a_later_router", 1.0, 1.0, 1.0),
    )
    assert verdict_headers(replace(ADMISSION, rate_limits=limits)) == {
        "x-slo-verdict": "guaranteed",
        **PREDICTED,
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "750ms",
        "x-ratelimit-limit-tokens": "900",
        "x-ratelimit-remaining-tokens": "17",
        "x-ratelimit-reset-tokens": "1m28.3s",
    }


def test_a_slowdown_is_no_time_to_show() -> None:
    admission = replace(ADMISSION, contract=Contract(prefill=PrefillTarget(max_slowdown=3.0)))
    assert verdict_headers(admission) == {"x-slo-verdict": "guaranteed", **PREDICTED}


@pytest.mark.parametrize("kept", [False, True])
def test_headers_of_what_was_achieved(*, kept: bool) -> None:
    assert achieved_headers(replace(FINISHED, achieved=replace(FINISHED.achieved, kept=kept))) == {
        "x-slo-achieved-ttft-ms": "111.0",
        "x-slo-achieved-tpot-ms": "31.3",
        "x-slo-kept": "true" if kept else "false",
    }


def test_milliseconds_are_rounded_to_the_third_digit() -> None:
    admission = replace(ADMISSION, predicted=Prediction(0.0123456789, 0.0, math.inf, 0.0))
    headers = verdict_headers(admission)
    assert headers["x-slo-predicted-ttft-ms"] == "12.346"
    assert headers["x-slo-bound-ttft-ms"] == "inf"


def test_a_stream_without_usage_ends_with_its_reason_and_report_in_one_chunk() -> None:
    chunks = list(last_chunks(CompletionFormat(PLAIN, "m"), ADMISSION, FINISHED, include_usage=False))
    assert len(chunks) == 1
    assert chunks[0]["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]
    assert chunks[0]["slo"] == slo_report(ADMISSION, FINISHED)
    assert "usage" not in chunks[0]


def test_a_stream_with_usage_ends_with_a_chunk_of_its_own_for_it() -> None:
    reason, last = last_chunks(ChatFormat(PLAIN, "m"), ADMISSION, FINISHED, include_usage=True)
    assert reason["choices"][0]["finish_reason"] == "stop"
    assert "slo" not in reason
    assert (last["choices"], last["usage"], last["id"]) == ([], usage(FINISHED), "id-1")
    assert last["slo"] == slo_report(ADMISSION, FINISHED)


def candidates(token_id: int) -> tuple[TokenLogprob, ...]:
    return (TokenLogprob(token_id, -1.0, 2), TokenLogprob(token_id + 50, -0.5, 1))


def test_a_completion_chunk_by_chunk_has_offsets_that_go_on() -> None:
    form = CompletionFormat(AnswerOptions("id-1", 0, lambda token_id: "x" * token_id), "m")
    first = form.chunk(Tokens(0, (2, 3), "xxxxx", (candidates(2), candidates(3))))
    second = form.chunk(Tokens(2, (4,), "xxxx", (candidates(4),)))
    assert first["choices"][0]["logprobs"]["text_offset"] == [0, 2]
    assert second["choices"][0]["logprobs"] == {
        "tokens": ["xxxx"],
        "token_logprobs": [-1.0],
        "top_logprobs": [None],
        "text_offset": [5],
    }
    assert second["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "text": "xxxx",
        "logprobs": None,
        "finish_reason": None,
    }
    assert (second["id"], second["object"], second["model"]) == ("id-1", "text_completion", "m")


def test_only_the_first_chunk_of_a_chat_has_a_role() -> None:
    form = ChatFormat(PLAIN, "m")
    deltas = [form.chunk(Tokens(at, (1,), text, ()))["choices"][0] for at, text in enumerate("ab")]
    assert [delta["delta"] for delta in deltas] == [{"role": "assistant", "content": "a"}, {"content": "b"}]
    assert [(delta["index"], delta["logprobs"], delta["finish_reason"]) for delta in deltas] == [(0, None, None)] * 2


def whole(text: str) -> Completion:
    return Completion(text, (1,), (candidates(1),), ADMISSION, FINISHED)


@pytest.mark.parametrize(
    ("form", "kind", "content"),
    [
        (CompletionFormat(PLAIN, "m"), "text_completion", {"text": "hi"}),
        (
            ChatFormat(PLAIN, "m"),
            "chat.completion",
            {"message": {"role": "assistant", "content": "hi", "refusal": None}},
        ),
    ],
    ids=["completion", "chat"],
)
def test_a_whole_answer(form: CompletionFormat | ChatFormat, kind: str, content: dict[str, Any]) -> None:
    answer = whole_answer(form, whole("hi"))
    assert answer.pop("created") > 1_600_000_000
    assert answer == {
        "id": "id-1",
        "object": kind,
        "model": "m",
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage(FINISHED),
        "slo": slo_report(ADMISSION, FINISHED),
    }


def test_log_probabilities_of_a_chat_show_the_chosen_token_and_the_likeliest() -> None:
    form = ChatFormat(AnswerOptions("id-1", 1, lambda token_id: f"é{token_id}"), "m")
    shown = form.whole(whole("hi"))["choices"][0]["logprobs"]
    assert shown == {
        "content": [
            {
                "token": "é1",
                "logprob": -1.0,
                "bytes": [195, 169, 49],
                "top_logprobs": [{"token": "é51", "logprob": -0.5, "bytes": [195, 169, 53, 49]}],
            }
        ],
        "refusal": None,
    }
