"""What a run of a cluster counts and when requests reach a policy, with a policy that serves them as a script says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.transfer import TransferModel
from simulator.cluster import Cluster, Failure, PolicyContext
from simulator.engine import Engine
from simulator.fabric import Fabric
from simulator.machine import Machine
from simulator.policies.base import BasePolicy
from simulator.policies.fcfs import Fcfs, Replicas, Split, fixed
from simulator.randomness import EngineRandomness
from simulator.request import OfferedRequest, SimRequest
from tests.unit.simulator.engines import TICK_S, exact_machine

LOOSE = Contract(PrefillTarget(ttft_s=1e3), (DecodeTarget(1e3),))


def offer(
    at_s: float,
    prompt_tokens: int = 10,
    output_tokens: int = 1,
    contract: Contract = LOOSE,
    follow_up: OfferedRequest | None = None,
    delay_s: float = 0.0,
) -> OfferedRequest:
    return OfferedRequest(at_s, "chatbot", prompt_tokens, output_tokens, contract, follow_up=follow_up, delay_s=delay_s)


@dataclass
class Desk(BasePolicy):
    """Notes who came when and serves nobody, or all on one engine with first come first served."""

    context: PolicyContext
    came: list[tuple[str, float]] = field(default_factory=list)
    act: Callable[[Desk, SimRequest], None] = lambda desk, request: desk.engines[0].submit(request)

    def __post_init__(self) -> None:
        super().__init__(self.context)
        self.engines = [self.engine(index, Fcfs(fixed(4096))) for index in range(self.context.workers)]

    def arrive(self, request: SimRequest) -> None:
        self.came.append((request.request_id, self.events.now_s))
        self.act(self, request)

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        for request in requests:
            self.arrive(request)


def desk(act: Callable[[Desk, SimRequest], None] | None = None) -> tuple[Callable[[PolicyContext], Desk], list[Desk]]:
    made: list[Desk] = []

    def make(context: PolicyContext) -> Desk:
        made.append(Desk(context) if act is None else Desk(context, act=act))
        return made[-1]

    return make, made


def test_a_follow_up_comes_after_its_delay_with_the_final_targets_of_its_session() -> None:
    final = Contract(
        PrefillTarget(ttft_s=1e3),
        (DecodeTarget(0.5),),
        final_decode=(DecodeTarget(0.25),),
        session_id="s",
        session_final=True,
    )
    session = offer(600.0, 10, 1, final, follow_up=offer(0.0, 20, 1, final), delay_s=3.0)
    make, made = desk()
    outcome = Cluster(exact_machine(), 1, make, [session], keep=True).run()
    first_ends_s = 600.0 + 10 * TICK_S
    assert made[0].came == [("r0", 600.0), ("r1", first_ends_s + 3.0)]
    assert [request.tpots_s for request in outcome.requests] == [(0.5,), (0.25,)]
    assert outcome.offered == outcome.attained == 2
    assert outcome.span_s == 0.0
    assert outcome.drained_s == first_ends_s + 3.0 + 20 * TICK_S


def test_slowdowns_are_multiples_of_the_idle_prefill_time() -> None:
    hardware = exact_machine()
    contract = Contract(PrefillTarget(max_slowdown=3.0), ())
    make, _ = desk()
    outcome = Cluster(hardware, 1, make, [offer(5.0, 40, 1, contract)], keep=True).run()
    assert outcome.requests[0].ttft_s == pytest.approx(3 * 40 * TICK_S)
    assert outcome.requests[0].tpots_s == ()
    assert outcome.attained == 1


def test_what_no_worker_can_hold_is_missed_and_stops_nobody() -> None:
    hardware = exact_machine(kv_blocks=10)
    make, made = desk()
    follow_up = offer(0.0, 20, 1)
    offered = [offer(5.0, 150, 11, follow_up=follow_up, delay_s=1.0), offer(5.0, 150, 10)]
    outcome = Cluster(hardware, 1, make, offered, keep=True).run()
    assert [request_id for request_id, _ in made[0].came] == ["r1", "r2"]
    assert (outcome.offered, outcome.attained) == (3, 2)
    assert outcome.requests[0].missed
    assert outcome.requests[0].ended_s == 5.0


def test_requests_that_are_refused_or_never_end_count_as_missed() -> None:
    make, _ = desk(lambda policy, request: policy.refuse(request) if request.request_id == "r0" else None)
    outcome = Cluster(exact_machine(), 1, make, [offer(5.0), offer(6.0)]).run()
    assert (outcome.offered, outcome.attained, outcome.attainment) == (2, 0, 0.0)


def test_guarantees_are_counted_apart_and_goodput_is_a_rate() -> None:
    def promise(policy: Desk, request: SimRequest) -> None:
        request.guaranteed = request.request_id != "r0"
        if request.request_id == "r1":
            policy.refuse(request)
        else:
            policy.engines[0].submit(request)

    make, _ = desk(promise)
    outcome = Cluster(exact_machine(), 1, make, [offer(at_s) for at_s in (5.0, 6.0, 9.0)]).run()
    assert (outcome.guaranteed, outcome.guaranteed_kept, outcome.attained) == (2, 1, 2)
    assert outcome.goodput_rps == pytest.approx(2 / 4.0)
    assert outcome.steps == 2


def test_delays_between_processes_are_waited_for() -> None:
    hardware = replace(exact_machine(), request_delay_s=0.125, relay_delay_s=0.25, link=TransferModel(0.5, 1e9))
    hardware = replace(hardware, kv_bytes_per_token=1_000_000)
    seen: list[tuple[str, float]] = []

    class Watched(Split):
        def arrive(self, request: SimRequest) -> None:
            seen.append(("came", self.events.now_s))
            super().arrive(request)

        def pull(self, engine: Engine, request: SimRequest) -> None:
            seen.append(("pull", self.events.now_s))
            super().pull(engine, request)

        def prompt_done(self, engine: Engine, request: SimRequest) -> None:
            seen.append(("second", self.events.now_s))

    cluster = Cluster(hardware, 2, lambda c: Watched(c, 1, Fcfs(fixed(4096))), [offer(8.0, 16, 3)], keep=True)
    outcome = cluster.run()
    first_s = 8.125 + 16 * TICK_S
    landed_s = first_s + 0.25 + 0.5 + 16 * 1e-3
    assert outcome.requests[0].first_s == first_s
    assert seen[:2] == [("came", 8.125), ("pull", first_s + 0.25)]
    assert seen[2][1] == pytest.approx(landed_s + TICK_S)
    assert [engine.leased_blocks for engine in cluster.policy.engines] == [0, 0]
    assert outcome.attained == 1


def test_a_kv_cache_whose_worker_has_failed_is_computed_again() -> None:
    hardware = replace(exact_machine(), relay_delay_s=1.0)
    policies: list[Split] = []

    def make(context: PolicyContext) -> Split:
        policies.append(Split(context, 1, Fcfs(fixed(4096))))
        return policies[-1]

    failures = [Failure(8.5, 0, 10.0)]
    outcome = Cluster(hardware, 2, make, [offer(8.0, 16, 3)], failures=failures, keep=True).run()
    assert outcome.requests[0].ended
    assert policies[0].engines[1].usage.tokens >= 17, "the prompt and the first token"
    assert [engine.leased_blocks for engine in policies[0].engines] == [0, 0]


def test_a_failed_worker_is_away_for_as_long_as_it_is_said_and_its_requests_start_again() -> None:
    make, made = desk()
    offered = [offer(8.0, 1024, 1)]
    outcome = Cluster(exact_machine(), 1, make, offered, failures=[Failure(8.5, 3, 2.0)], keep=True).run()
    assert made[0].came == [("r0", 8.0), ("r0", 8.5)]
    assert outcome.requests[0].ended_s == 8.5 + 2.0 + 1.0


def test_a_run_with_scored_sessions_ends_with_the_last_of_them() -> None:
    make, made = desk()
    counts: list[int] = []
    offered = [offer(float(at_s)) for at_s in range(5, 12)]
    outcome = Cluster(exact_machine(), 1, make, offered, scored=range(2, 4), keep=True, progress=counts.append).run()
    assert counts == [1, 2]
    assert (outcome.offered, outcome.span_s) == (2, 1.0)
    assert len(outcome.requests) < len(offered)
    assert [request.scored for request in outcome.requests] == [False, False, True, True]
    assert made[0].came[-1] == ("r3", 8.0)
    assert not outcome.stopped_early


def test_replicas_send_to_workers_that_are_there() -> None:
    offered = [offer(8.0 + index, 16, 1) for index in range(6)]
    policies: list[Replicas] = []

    def make(context: PolicyContext) -> Replicas:
        policies.append(Replicas(context, Fcfs(fixed(4096))))
        return policies[-1]

    Cluster(exact_machine(), 2, make, offered, failures=[Failure(7.0, 0, 100.0)]).run()
    assert [engine.usage.steps for engine in policies[0].engines] == [0, 6]


class TestFabric:
    def test_one_kv_cache_at_a_time_leaves_and_reaches_a_worker(self) -> None:
        fabric = Fabric(TransferModel(0.5, 1000.0))
        assert fabric.send("a", "x", 2000.0, 100.0) == 102.5
        assert fabric.send("a", "y", 1000.0, 101.0) == 103.5, "behind the first at its source"
        assert fabric.send("b", "x", 1000.0, 101.0) == 103.5, "behind the first at its target"
        assert fabric.send("c", "z", 1000.0, 101.0) == 102.5, "in nobody's way"
        assert fabric.send("a", "x", 1000.0, 200.0) == 201.5


class TestRandomness:
    def machine(self, noise: float = 0.0) -> Machine:
        return replace(exact_machine(acceptance=0.6, max_draft_tokens=5), noise=noise)

    def test_steps_stray_around_their_mean_and_repeat_with_their_seed(self) -> None:
        draws = [EngineRandomness(self.machine(noise=0.1), 3) for _ in range(2)]
        factors = [[one.factor(100.0 + n) for n in range(20_000)] for one in draws]
        assert factors[0] == factors[1]
        mean = sum(factors[0]) / len(factors[0])
        spread = math.sqrt(sum((factor - mean) ** 2 for factor in factors[0]) / len(factors[0]))
        assert mean == pytest.approx(1.0, abs=0.004)
        assert spread == pytest.approx(0.1, rel=0.05)
        assert EngineRandomness(self.machine(noise=0.0), 3).factor(100.0) == 1.0

    def test_drafts_are_accepted_one_by_one_until_one_is_not(self) -> None:
        randomness = EngineRandomness(self.machine(), 5)
        counts = [randomness.tokens(3, 100) for _ in range(20_000)]
        shares = [sum(count == tokens for count in counts) / len(counts) for tokens in (1, 2, 3, 4)]
        assert shares == pytest.approx([0.4, 0.24, 0.144, 0.216], abs=0.015)
        assert max(randomness.tokens(5, 2) for _ in range(100)) == 2, "no more than are wanted"
        assert {randomness.tokens(0, 9) for _ in range(20)} == {1}
