"""Due times are one rule: who meters a client, who composes steps and who simulates agree on every token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.slo.attainment import AttainmentMeter
from services.slo.composer import TokenDeadlines
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.due_times import next_due_s, wanted_s
from simulator.request import OfferedRequest, SimRequest

TTFT_S, TPOT_S = 0.5, 0.0625
TICK_S = 1 / 1024
"""Floats add multiples of it without error."""
CONTRACT = Contract(PrefillTarget(ttft_s=TTFT_S), (DecodeTarget(TPOT_S),))
ARRIVAL_S = 1_000.0

batches = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 5)), min_size=1, max_size=40)
"""Ticks since the batch of tokens before, and how many tokens come."""


def test_tokens_are_due_one_tpot_after_the_other() -> None:
    assert [next_due_s(7.0, tokens, 0.25) for tokens in (1, 2, 3)] == [7.25, 7.5, 7.75]
    assert next_due_s(next_due_s(7.0, 1, 0.25), 2, 0.25) == next_due_s(7.0, 3, 0.25)
    assert wanted_s(7.0, 0.25) == 7.5


@given(batches)
def test_meter_engine_and_simulator_agree(arrivals: list[tuple[int, int]]) -> None:
    meter = AttainmentMeter(CONTRACT, ARRIVAL_S)
    deadlines = TokenDeadlines.begin(ARRIVAL_S, TTFT_S, TPOT_S, generated_tokens=0)
    simulated = SimRequest("r", OfferedRequest(ARRIVAL_S, "", 10, 1_000, CONTRACT), ARRIVAL_S, TTFT_S, (TPOT_S,))
    now_s, late = ARRIVAL_S, False
    for gap, count in arrivals:
        now_s += gap * TICK_S
        late = late or now_s > deadlines.due_s
        meter.note_tokens(count, now_s)
        deadlines.note_tokens(count, now_s)
        simulated.take(count, now_s)
        assert deadlines.due_s == simulated.due_s == meter.next_due_s()
        assert deadlines.wanted_s == now_s + 2 * TPOT_S
        assert meter.missed == simulated.missed == late


@given(batches, st.integers(1, 6))
def test_a_request_that_moves_to_another_engine_keeps_its_due_times(
    arrivals: list[tuple[int, int]], moves_after: int
) -> None:
    """The router tells the next engine when the next token is due, as the meter says."""
    meter = AttainmentMeter(CONTRACT, ARRIVAL_S)
    deadlines = TokenDeadlines.begin(ARRIVAL_S, TTFT_S, TPOT_S, generated_tokens=0)
    now_s, generated = ARRIVAL_S, 0
    for index, (gap, count) in enumerate(arrivals):
        now_s += gap * TICK_S
        meter.note_tokens(count, now_s)
        deadlines.note_tokens(count, now_s)
        generated += count
        due_s = meter.next_due_s()
        assert due_s is not None
        if index % moves_after == 0:
            now_s += 10 * TICK_S
            deadlines = TokenDeadlines.begin(now_s, due_s - now_s, TPOT_S, generated)
        assert deadlines.due_s == due_s
