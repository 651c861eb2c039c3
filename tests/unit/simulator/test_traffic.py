"""As much traffic as a rate and a duration ask for, and the same each time."""

from __future__ import annotations

import pytest

from simulator.machine import machine
from simulator.scenarios import from_trace, scenario
from simulator.traces import Traced
from simulator.traffic import Window, generated, repeated

QWEN = machine("qwen2.5-7b-a100")


@pytest.mark.parametrize("kind", ["chatbot", "toolllm"])
def test_what_comes_first_does_not_depend_on_how_much_is_asked_for(kind: str) -> None:
    few, many = generated(scenario(kind), 3), generated(scenario(kind), 3)
    long = many.sessions(5000)
    short = few.sessions(1500)
    assert list(short) == list(long[: len(short)])
    assert sum(session.rounds for session in short) >= 1500 > sum(session.rounds for session in short[:-1])
    assert [session.at_s for session in long] == sorted(session.at_s for session in long)
    assert long[-1].at_s == pytest.approx(len(long), rel=0.1)
    prefixes = [session.prefix[0] for session in long if session.prefix]
    assert len(set(prefixes)) == len(prefixes)


def test_a_trace_starts_again_and_shares_nothing_with_its_first_pass() -> None:
    traced = [Traced(at_s, 1024, 10, (7, 8)) for at_s in (0.0, 1.0, 5.0)]
    sessions = repeated(from_trace(traced, "coder")).sessions(7)
    assert len(sessions) == 7
    gaps_s = [sessions[first + 1].at_s - sessions[first].at_s for first in (0, 3)]
    assert gaps_s[0] == pytest.approx(gaps_s[1])
    assert sessions[0].prefix == sessions[1].prefix
    assert not set(sessions[0].prefix) & set(sessions[3].prefix)


@pytest.mark.parametrize(("rate", "counted"), [(0.5, 100), (10.0, 600), (100.0, 1000)])
def test_a_window_lasts_as_asked_within_its_limits(rate: float, counted: int) -> None:
    load = Window(seconds=60.0, least=100, most=1000, margin=0.2).load(generated(scenario("chatbot"), 0), rate)
    assert load.requests == counted
    assert load.seconds == pytest.approx((counted - 1) / rate)
    assert load.scored.start == len(load.offered) - load.scored.stop == 0.2 * counted


def test_few_requests_are_the_same_at_every_rate() -> None:
    window, traffic = Window(seconds=10.0, least=100, most=1000, margin=0.2), generated(scenario("coder"), 0)
    slow, fast = window.load(traffic, 1.0), window.load(traffic, 4.0)
    assert slow.scored == fast.scored
    assert [request.at_s for request in slow.offered] == pytest.approx([4 * request.at_s for request in fast.offered])
