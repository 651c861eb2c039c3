"""The speed of a machine from a few timings."""

from __future__ import annotations

import pytest

from cli.demo.machine import Timing, machine_of


def timing(tokens: int, ttft_s: float, step_s: float = 0.03, second_s: float = 0.04) -> Timing:
    return Timing(tokens, ttft_s, step_s, second_s)


def test_a_prompt_costs_an_overhead_and_so_much_a_token() -> None:
    machine = machine_of([timing(40, 0.09)], [timing(400, 0.45)], workers=2, bound_ratio=1.2)
    assert machine.per_prompt_token_s == pytest.approx(0.001)
    assert machine.prefill_overhead_s == pytest.approx(0.05)
    assert machine.prefill_s(1000) == pytest.approx(1.05)
    assert (machine.workers, machine.bound_ratio) == (2, 1.2)


def test_one_disturbed_request_does_not_count() -> None:
    short = [timing(40, 0.09), timing(40, 3.0), timing(40, 0.09)]
    long = [timing(400, 0.45), timing(400, 0.45, 0.5, 0.9), timing(400, 9.0)]
    machine = machine_of(short, long, workers=1, bound_ratio=1.0)
    assert machine.prefill_s(400) == pytest.approx(0.45)
    assert machine.decode_step_s == pytest.approx(0.03)
    assert machine.second_token_s == pytest.approx(0.04)


def test_a_disturbed_short_prompt_leaves_the_long_one_what_it_took() -> None:
    machine = machine_of([timing(40, 2.0)], [timing(400, 0.8)], workers=1, bound_ratio=1.0)
    assert machine.prefill_overhead_s == pytest.approx(0.0)
    assert machine.prefill_s(400) == pytest.approx(0.8)


def test_nothing_begins_before_it_is_asked_for() -> None:
    """A first token that came too early to be linear in the tokens leaves no negative overhead."""
    machine = machine_of([timing(40, 0.01)], [timing(400, 0.8)], workers=1, bound_ratio=0.7)
    assert machine.prefill_overhead_s == pytest.approx(0.0)
    assert machine.prefill_s(400) == pytest.approx(0.8)
    assert machine.bound_ratio == 1.0
