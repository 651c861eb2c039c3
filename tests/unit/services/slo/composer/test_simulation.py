"""Steps one after the other: nothing starves, promises are kept, best effort delays none of them."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.slo.composer import ComposerPolicy, Limits
from tests.unit.services.slo.composer.works import LIMITS, Request, Simulation, arriving, policies

FEW = settings(max_examples=60)

finite = st.one_of(st.none(), st.floats(-0.1, 2.0))
paces = st.one_of(st.none(), st.floats(0.005, 0.3))


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    return [
        arriving(
            f"r{index}",
            draw(st.integers(1, 100)),
            draw(st.integers(1, 20)),
            draw(st.floats(0, 1)),
            draw(finite),
            draw(paces),
            draw(st.booleans()),
        )
        for index in range(draw(st.integers(1, 12)))
    ]


@FEW
@given(workloads(), st.integers(30, 60), policies, st.randoms(use_true_random=False))
def test_everything_ends_whatever_was_promised_and_however_long_steps_take(
    requests: list[Request], blocks: int, policy: ComposerPolicy, noise: random.Random
) -> None:
    Simulation(requests, blocks, policy=policy, took=lambda predicted_s: predicted_s * noise.uniform(0.5, 2)).run()


def test_best_effort_that_is_long_gets_its_turn_while_short_requests_keep_coming() -> None:
    long = arriving("long", 400, 5, best_effort=True)
    short = [arriving(f"short{index}", 60, 1, 0.06 * index, best_effort=True) for index in range(100)]
    simulation = Simulation([long, *short], policy=ComposerPolicy(step_cap_s=0.07, ageing=0.25))
    simulation.run()
    assert long.token_s[0] < 3.0, "the others would have kept the engine busy for 7 s"
    patient = arriving("long", 400, 5, best_effort=True)
    again = [arriving(request.work.request_id, 60, 1, request.arrives_s, best_effort=True) for request in short]
    Simulation([patient, *again], policy=ComposerPolicy(step_cap_s=0.07, ageing=0.0)).run()
    assert patient.token_s[0] > long.token_s[0]


def test_best_effort_ends_after_the_promised_load_that_took_everything() -> None:
    promised = [arriving(f"p{index}", 60, 2, 0.068 * index, 0.3, 0.1) for index in range(40)]
    other = arriving("be", 80, 10, best_effort=True)
    simulation = Simulation([*promised, other])
    simulation.run()
    assert not any(request.late for request in promised)
    assert other.token_s[-1] > promised[-1].arrives_s


def test_best_effort_streams_go_on_while_promised_prompts_follow_each_other() -> None:
    """As on a decode worker that computes prompts as well."""
    streams = [arriving("s", 20, 400, 0.0, 0.5, 0.04)]
    prompts = [arriving(f"p{index}", 60, 2, 0.15 * index, 0.6, 0.1) for index in range(40)]
    other = arriving("be", 10, 100, best_effort=True)
    Simulation([*streams, *prompts, other]).run()
    assert not any(request.late for request in (*streams, *prompts))
    gaps_s = [after - before for before, after in itertools.pairwise(other.token_s)]
    assert max(gaps_s) < 0.2, "it would have waited for the last of the prompts"


def test_promises_are_kept_with_or_without_best_effort() -> None:
    """The same promised load twice; what best effort is added delays no token past its due time."""

    def promised() -> list[Request]:
        streams = [arriving(f"s{index}", 20, 60, 0.1 * index, 0.5, 0.04) for index in range(3)]
        prompts = [arriving(f"p{index}", 300, 1, 0.9 * index, 2.5) for index in range(4)]
        return [*streams, *prompts]

    best_effort = [arriving(f"be{index}", 150, 30, 0.3 * index, best_effort=True) for index in range(12)]
    hopeful = [arriving(f"be{index}", 40, 30, 0.3 * index, 0.5, 0.06, best_effort=True) for index in range(12)]
    for requests in (promised(), [*promised(), *best_effort], [*promised(), *hopeful]):
        simulation = Simulation(requests, blocks=300, limits=Limits(64, 32, 4))
        simulation.run()
        kept = [request for request in requests if not request.work.best_effort]
        assert not any(request.late for request in kept)


def test_best_effort_keeps_its_contract_where_there_is_room() -> None:
    """Two streams of best effort beside a promised prompt that has time: all three are in time."""
    prompt = arriving("p", 600, 1, 0.1, 5.0)
    hopeful = [arriving(f"be{index}", 20, 30, 0.0, 0.2, 0.05, best_effort=True) for index in range(2)]
    Simulation([prompt, *hopeful], blocks=300, limits=Limits(256, 32, 4)).run()
    assert not any(request.late for request in (prompt, *hopeful))


def test_no_gap_of_a_stream_is_longer_than_twice_its_tpot() -> None:
    stream = arriving("stream", 20, 200, tpot_s=0.04)
    prompts = [arriving(f"p{index}", 300, 1, 0.7 * index, 0.6) for index in range(6)]
    Simulation([stream, *prompts], limits=Limits(2048, 8, 4)).run()
    gaps_s = [after - before for before, after in itertools.pairwise(stream.token_s)]
    assert not stream.late
    assert max(gaps_s) <= 2 * 0.04 + 1e-9


def test_steps_that_take_longer_than_predicted_make_few_tokens_late() -> None:
    """One step in ten takes half as long again; the buffer takes it up."""
    late = {}
    for buffer_tpots in (0.0, 0.5):
        noise = random.Random(1)
        stream = arriving("stream", 20, 500, tpot_s=0.05)
        best_effort = [arriving(f"be{index}", 600, 1, 0.2 * index, best_effort=True) for index in range(20)]
        simulation = Simulation(
            [stream, *best_effort],
            blocks=10_000,
            limits=Limits(2048, 64, 4),
            policy=ComposerPolicy(buffer_tpots=buffer_tpots),
            took=lambda predicted_s, noise=noise: predicted_s * (1.5 if noise.random() < 0.1 else 0.98),  # type: ignore[misc]
        )
        simulation.run()
        late[buffer_tpots] = len(stream.late)
    assert late[0.5] == 0
    assert late[0.0] > 10


def test_preempted_best_effort_goes_on_where_it_was() -> None:
    best_effort = arriving("be", 60, 30, best_effort=True)
    promised = arriving("p", 100, 10, 0.2, 0.5, 0.05)
    simulation = Simulation([best_effort, promised], blocks=32, limits=replace(LIMITS, max_step_tokens=128))
    simulation.run()
    assert simulation.preemptions == ["be"]
    assert not promised.late
    assert len(best_effort.token_s) == 30
