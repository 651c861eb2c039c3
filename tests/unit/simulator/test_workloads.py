from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.scenarios import SCENARIOS, UnknownScenarioError, at_rate, bursty_gaps, from_trace, generate, scenario
from simulator.traces import TraceError, read_trace


@pytest.mark.parametrize("cv", [1.0, 5.84, 13.0])
def test_gaps_are_as_bursty_as_asked(cv: float) -> None:
    gaps = np.concatenate([bursty_gaps(np.random.default_rng(seed), 20_000, cv) for seed in range(10)])
    assert gaps.mean() == pytest.approx(1.0, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


@pytest.mark.parametrize(
    ("name", "prompt_mean", "prompt_p50", "output_mean", "output_p50"),
    [("chatbot", 1155, 1020, 211, 165), ("coder", 2048, 1469, 28, 13)],
)
def test_lengths_are_near_the_published(
    name: str, prompt_mean: float, prompt_p50: float, output_mean: float, output_p50: float
) -> None:
    offered = generate(scenario(name), 20_000, 0)
    prompts, outputs = [o.prompt_tokens for o in offered], [o.output_tokens for o in offered]
    assert np.mean(prompts) == pytest.approx(prompt_mean, rel=0.15)
    assert np.median(prompts) == pytest.approx(prompt_p50, rel=0.1)
    assert np.mean(outputs) == pytest.approx(output_mean, rel=0.15)
    assert np.median(outputs) == pytest.approx(output_p50, rel=0.1)


def test_a_tool_session_is_tight_until_its_last_answer_and_shares_its_beginning() -> None:
    session = next(offered for offered in generate(scenario("toolllm"), 50, 0) if offered.rounds > 2)
    assert session.follow_up is not None
    assert session.follow_up.prompt_tokens > session.prompt_tokens + session.output_tokens
    assert session.follow_up.prefix[: len(session.prefix)] == session.prefix
    assert session.contract.final_decode


def test_rates_count_rounds() -> None:
    for name in SCENARIOS:
        offered = at_rate(generate(scenario(name), 400, 0), 8.0)
        assert sum(o.rounds for o in offered) / offered[-1].at_s == pytest.approx(8.0, rel=0.02)
    with pytest.raises(UnknownScenarioError, match="chatbot"):
        scenario("poems")


def test_reads_azure_and_mooncake_and_drops_nothing(tmp_path: Path) -> None:
    azure = tmp_path / "azure.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.9799600,200000,8\n"
    )
    assert [(t.at_s, t.prompt_tokens) for t in read_trace(azure)] == [(0.0, 4808), (1.0, 200_000)]
    mooncake = tmp_path / "mooncake.jsonl"
    mooncake.write_text('{"timestamp": 500, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n')
    (request,) = read_trace(mooncake)
    assert (request.at_s, request.prefix) == (0.5, (1, 2))
    assert from_trace([request], "coder")[0].prefix_block_tokens == 512


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,1\n", "line 2"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("a.jsonl", "[]\n", "line 1"),
    ],
)
def test_a_bad_trace_says_where(tmp_path: Path, name: str, text: str, where: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TraceError, match=where):
        read_trace(path)
    with pytest.raises(TraceError):
        read_trace(tmp_path / "absent.csv")
