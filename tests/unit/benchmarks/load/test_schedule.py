from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load.schedule import (
    Bounds,
    LogNormalLengths,
    Made,
    Schedule,
    ScheduleError,
    from_trace,
    made_up,
    of_applications,
)
from benchmarks.prompts import BLOCK_TOKENS, unshared, with_prefix
from benchmarks.requested_slo import RequestedSlo, SloMix, parse_slo, parse_slo_mix
from services.slo.contract import PAPER_PROFILES, ContractError, OnOverload, ProfileBook
from simulator.traces import TraceError, read_trace

PROFILES = ProfileBook(PAPER_PROFILES)


def gaps(schedule: Schedule) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.diff([request.at_s for request in schedule.planned])


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 3.0])
def test_made_up_arrivals_have_the_rate_and_the_burstiness(burstiness: float) -> None:
    made = Made(LogNormalLengths(100), LogNormalLengths(10), burstiness)
    schedule = made_up(made, SloMix(), 20.0, Bounds(seconds=1000), seed=3)
    assert schedule.seconds == 1000
    assert schedule.rate_rps == pytest.approx(20.0, rel=0.1)
    assert gaps(schedule).std() / gaps(schedule).mean() == pytest.approx(burstiness, rel=0.1)


def test_the_same_seed_gives_the_same_requests() -> None:
    made = Made(LogNormalLengths(100, 0.5), LogNormalLengths(10, 0.5))
    mix = parse_slo_mix(["chatbot@3", "none@1"])
    first, again, other = (made_up(made, mix, 5.0, Bounds(requests=50), seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first.planned) == 50
    assert first.seconds == pytest.approx(first.planned[-1].at_s + 0.2)


def test_a_mix_comes_in_its_proportions() -> None:
    made = Made(LogNormalLengths(10), LogNormalLengths(1))
    schedule = made_up(
        made, parse_slo_mix(["chatbot@3", "ttft=0.5,tpot=0.05,refuse@1"]), 10.0, Bounds(requests=4000), 0
    )
    chat = sum(request.slo.profile == "chatbot" for request in schedule.planned)
    assert chat / 4000 == pytest.approx(0.75, abs=0.03)
    others = {request.slo for request in schedule.planned if not request.slo.profile}
    assert others == {RequestedSlo(ttft_s=0.5, tpot_s=0.05, refuse=True)}


def test_applications_ask_for_the_profile_of_their_name() -> None:
    schedule = of_applications(5.0, 1.0, Bounds(seconds=60), seed=0)
    assert {request.slo.profile for request in schedule.planned} == {"chatbot", "coder", "summarizer"}
    assert {request.slo.refuse for request in schedule.planned} == {True, False}


def write_mooncake(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_trace_keeps_its_times_its_blocks_and_its_contracts(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"timestamp": 5000, "input_length": 1300, "output_length": 7, "hash_ids": [4, 9, 11]},
        {"timestamp": 9000, "input_length": 20, "output_length": 8, "hash_ids": [2], "profile": "coder"},
        {"timestamp": 13000, "input_length": 20, "output_length": 8, "ttft_ms": 250, "tpot_ms": 40},
    ]
    traced = read_trace(write_mooncake(tmp_path / "t.jsonl", rows))
    schedule = from_trace(traced, parse_slo_mix(["chatbot"]), None, 2.0, Bounds(), seed=0)
    assert [request.at_s for request in schedule.planned] == [0.0, 2.0, 4.0]
    assert schedule.planned[0].blocks == (4, 9, 11)
    assert [request.slo.name for request in schedule.planned] == ["chatbot", "coder", "ttft=0.25,tpot=0.04"]
    stretched = from_trace(traced, SloMix(), 0.1, 1.0, Bounds(), seed=0)
    assert stretched.rate_rps == pytest.approx(0.1)
    assert [request.at_s for request in stretched.planned] == pytest.approx([0.0, 10.0, 20.0])


def test_limits_of_a_trace(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"timestamp": 1000 * n, "input_length": 1000 * (n + 1), "output_length": 10, "hash_ids": [1, 2]}
        for n in range(10)
    ]
    traced = read_trace(write_mooncake(tmp_path / "t.jsonl", rows))
    assert len(from_trace(traced, SloMix(), None, 1.0, Bounds(seconds=4.5), 0).planned) == 5
    assert len(from_trace(traced, SloMix(), None, 1.0, Bounds(requests=3), 0).planned) == 3
    cut = from_trace(traced, SloMix(), None, 1.0, Bounds(longest_prompt=2500), 0)
    assert [request.prompt_tokens for request in cut.planned] == [1000, 2000] + [2500] * 8
    assert cut.clipped == 8
    short = from_trace(traced, SloMix(), None, 1.0, Bounds(length_scale=0.1), 0)
    assert (short.planned[0].prompt_tokens, short.planned[0].output_tokens, short.planned[0].block_tokens) == (
        100,
        1,
        51,
    )
    with pytest.raises(ScheduleError, match="no request"):
        from_trace(traced, SloMix(), None, 1.0, Bounds(seconds=0.0), 0)
    with pytest.raises(ScheduleError, match="all come at once"):
        from_trace([replace(row, at_s=1.0) for row in traced], SloMix(), 5.0, 1.0, Bounds(), 0)


def test_a_csv_may_bring_contracts(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens,Profile,TtftMs,TpotMs\n"
        "2023-11-16 18:17:03.9799600,48,10,chatbot,,\n"
        "2023-11-16 18:17:04.9799600,48,10,,500,\n"
        "2023-11-16 18:17:05.9799600,48,10,,,\n"
    )
    rows = read_trace(path)
    assert [(row.profile, row.ttft_s, row.tpot_s) for row in rows] == [
        ("chatbot", None, None),
        ("", 0.5, None),
        ("", None, None),
    ]
    assert [row.asks_nothing for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    "row", ["2023-11-16 18:17:03,x,10", "yesterday,1,1", "2023-11-16 18:17:03,-5,10", "2023-11-16 18:17:03,5"]
)
def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,48,10\n{row}\n")
    with pytest.raises(TraceError, match="line 3"):
        read_trace(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"timestamp": 1}',
        "[1]",
        "{",
        '{"timestamp": NaN, "input_length": 1, "output_length": 1}',
        '{"timestamp": 1, "input_length": 1, "output_length": 1, "ttft_ms": -1}',
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"timestamp": 0, "input_length": 1, "output_length": 1}}\n{text}\n')
    with pytest.raises(TraceError, match="line 2"):
        read_trace(path)
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.csv")


def test_equal_blocks_are_equal_tokens_and_nothing_else_is() -> None:
    one = with_prefix(1300, (4, 9, 11), seed=1, number=0)
    two = with_prefix(2000, (4, 9, 12), seed=1, number=1)
    assert (len(one), len(two)) == (1300, 2000)
    assert one[: 2 * BLOCK_TOKENS] == two[: 2 * BLOCK_TOKENS]
    assert one[2 * BLOCK_TOKENS :] != two[2 * BLOCK_TOKENS : 1300]
    assert with_prefix(1300, (4, 9, 11), seed=1, number=7) == one, "the whole prompt is given by its blocks"
    assert with_prefix(100, (4,), seed=2, number=0) != one[:100], "another seed shares nothing"
    beyond = [with_prefix(600, (4,), seed=1, number=number) for number in (1, 2)]
    assert beyond[0][:BLOCK_TOKENS] == beyond[1][:BLOCK_TOKENS]
    assert beyond[0][BLOCK_TOKENS:] != beyond[1][BLOCK_TOKENS:]
    assert unshared(50, 1, 1) != unshared(50, 1, 2)
    assert with_prefix(5, (-3,), seed=1, number=0) == with_prefix(5, (-3,), seed=1, number=1)


@pytest.mark.parametrize(
    ("text", "name", "refuse"),
    [
        ("chatbot", "chatbot", False),
        ("coder,refuse", "coder", True),
        ("ttft=0.5, tpot=0.05", "ttft=0.5,tpot=0.05", False),
        ("slowdown=5,refuse", "slowdown=5", True),
        ("chatbot,tpot=0.2", "chatbot,tpot=0.2", False),
        ("none", "none", False),
    ],
)
def test_what_is_asked_for(text: str, name: str, *, refuse: bool) -> None:
    ask = parse_slo(text)
    assert (ask.name, ask.refuse) == (name, refuse)
    contract = ask.contract(PROFILES)
    assert contract.on_overload is (OnOverload.REFUSE if refuse else OnOverload.BEST_EFFORT)
    assert contract.promises_anything is (name != "none")


@pytest.mark.parametrize("text", ["", "ttft=soon", "ttft=-1", "speed=3", "slowdown=0.5", "ttft=1,slowdown=3"])
def test_what_cannot_be_asked_for(text: str) -> None:
    with pytest.raises(ContractError):
        parse_slo(text)
    for texts in (["chatbot@x"], ["chatbot@-1"], ["chatbot@0"], [f"chatbot@{math.inf}"]):
        with pytest.raises(ContractError):
            parse_slo_mix(texts)
