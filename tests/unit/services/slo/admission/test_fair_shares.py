"""The accounts of tenants: who is owed what, how much at most, and what nobody gains by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.config.tenants import TenantSettings
from services.slo.admission.fair_shares import (
    ACTIVE_S,
    ALONE,
    MOST_OWED_S,
    MOST_PRIORITY,
    MOST_TENANTS,
    FairShares,
)
from services.slo.planner import EVEN
from tests.unit.services.slo.admission.support import START_S


def shares_of(*tenants: str, weights: dict[str, float] | None = None) -> FairShares:
    shares = FairShares(weights or {})
    for tenant in tenants:
        shares.came(tenant, 1.0, START_S)
        shares.learn(tenant, 100, 150, 0.5)
    return shares


class TestStanding:
    def test_nothing_changes_while_a_tenant_is_alone(self) -> None:
        shares = shares_of("a")
        shares.promised("a", 100.0)
        assert not shares.shared(START_S)
        assert shares.round(START_S) is ALONE
        assert ALONE.standing("a") is EVEN
        assert ALONE.value("a", 7.0) == 7.0

    def test_who_has_had_less_counts_for_more_and_the_other_leaves_room_for_it(self) -> None:
        shares = shares_of("a", "b")
        shares.promised("a", 1.0)
        stand = shares.round(START_S)
        assert stand.standing("a").priority == 1.0
        assert stand.standing("a").leaves_room
        assert 1.0 < stand.standing("b").priority < MOST_PRIORITY
        assert not stand.standing("b").leaves_room
        assert stand.owed_arrival is not None
        assert (stand.owed_arrival.prompt_tokens, stand.owed_arrival.kv_tokens, stand.owed_arrival.due_s) == (
            100,
            150,
            0.5,
        )

    def test_a_weight_of_two_has_as_much_with_twice_the_work(self) -> None:
        shares = shares_of("a", "b", weights={"a": 2.0})
        shares.promised("a", 2.0)
        shares.promised("b", 1.0)
        stand = shares.round(START_S)
        assert stand.standing("a").priority == stand.standing("b").priority == 1.0
        assert stand.owed_arrival is None
        shares.promised("b", 1.0)
        assert (owed := shares.round(START_S).owed_arrival) is not None
        assert owed.share == pytest.approx(2 / 3)

    def test_who_is_not_named_has_the_weight_of_default(self) -> None:
        shares = shares_of("a", "b", weights={"default": 4.0, "b": 1.0})
        assert [account.weight for account in shares.accounts.values()] == [4.0, 1.0]

    def test_a_stranger_is_owed_nothing(self) -> None:
        shares = shares_of("a", "b")
        shares.promised("a", 1.0)
        assert shares.round(START_S).standing("stranger") is EVEN


class TestWhatIsOwed:
    def test_it_has_a_bound_however_long_a_tenant_asks_for_little(self) -> None:
        shares = shares_of("a", "b")
        shares.promised("a", 1e6)
        assert shares.round(START_S).standing("b").priority == MOST_PRIORITY
        shares.came("b", 1.0, START_S + 1.0)
        shares.promised("b", MOST_OWED_S / 2)
        assert shares.round(START_S).standing("b").priority == pytest.approx(1.0), "it has had all that it was owed"

    def test_a_tenant_that_is_silent_is_no_longer_left_room_for(self) -> None:
        shares = shares_of("a", "b")
        shares.promised("a", 1.0)
        shares.came("a", 1.0, START_S + ACTIVE_S + 0.1)
        assert shares.round(START_S + ACTIVE_S + 0.1) is ALONE

    def test_a_new_name_is_owed_nothing(self) -> None:
        shares = shares_of("a", "b")
        shares.promised("a", 1.0)
        shares.came("new", 1.0, START_S)
        assert shares.round(START_S).standing("new").priority == 1.0

    def test_a_new_name_that_comes_first_after_a_silence_is_owed_nothing_either(self) -> None:
        shares = shares_of("a", "b")
        shares.promised("a", 100.0)
        shares.promised("b", 100.0)
        later_s = START_S + 2 * ACTIVE_S
        shares.came("new", 1.0, later_s)
        shares.came("a", 1.0, later_s + 1.0)
        assert shares.round(later_s + 1.0).standing("new").priority == 1.0

    def test_a_request_that_was_read_for_long_comes_after_later_ones(self) -> None:
        """Its arrival lies before that of a request that was noted already: no round may break off over that."""
        shares = shares_of()
        shares.came("b", 1.0, START_S)
        shares.came("a", 1.0, START_S - 0.2)
        for now_s in (START_S, START_S + ACTIVE_S - 0.1, START_S + ACTIVE_S, START_S + ACTIVE_S + 0.1):
            assert (shares.round(now_s) is ALONE) == (now_s > START_S + ACTIVE_S)

    def test_weights_that_are_as_far_apart_as_the_options_allow(self) -> None:
        small, large = 1e-3, 1e3
        for weight in (small, large):
            TenantSettings(weight=weight)
            for too_far in (weight * weight, math.inf):
                with pytest.raises(ValidationError):
                    TenantSettings(weight=too_far)
        shares = shares_of("small", "large", weights={"small": small, "large": large})
        shares.promised("small", 1.0)
        found = shares.round(START_S)
        assert found.standing("large").priority == MOST_PRIORITY
        assert found.owed_arrival is not None
        assert found.owed_arrival.share < 1.0
        shares.promised("large", 1e7)
        assert shares.round(START_S).standing("small").priority == MOST_PRIORITY

    def test_what_was_lent_is_not_asked_back(self) -> None:
        """A tenant that has used an idle cluster for an hour is as good as any once others come."""
        shares = shares_of("a")
        for second in range(3600):
            shares.came("a", 1.0, START_S + second)
            shares.promised("a", 1.0)
        now_s = START_S + 3600
        shares.came("b", 1.0, now_s)
        assert shares.round(now_s).standing("a").priority == shares.round(now_s).standing("b").priority == 1.0


class TestManyNames:
    def test_the_table_is_bounded_and_names_that_come_back_are_owed_nothing(self) -> None:
        shares = shares_of("a", "b")
        shares.promised("a", 5.0)
        for index in range(10 * MOST_TENANTS):
            shares.came("a", 1.0, START_S)
            shares.came(f"name {index}", 1.0, START_S)
        assert len(shares.accounts) == MOST_TENANTS
        assert "b" not in shares.accounts
        assert shares.accounts["a"].received == 5.0
        shares.came("b", 1.0, START_S)
        assert shares.accounts["b"].received == 5.0


@given(
    values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=50),
    others=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=50),
    power=st.integers(-8, 8),
)
def test_a_tenant_gains_nothing_by_asking_for_more_value(values: list[float], others: list[float], power: int) -> None:
    """Values that are all multiplied by the same factor count as before; those of one tenant keep their ratios."""

    def counted(factor: float) -> list[float]:
        shares = FairShares({})
        for value in others:
            shares.came("other", value, START_S)
        for value in values:
            shares.came("greedy", value * factor, START_S)
        stand = shares.round(START_S)
        return [stand.value("greedy", value * factor) for value in values]

    before, after = counted(1.0), counted(2.0**power)
    assert before == after
    for value, beside in zip(values, before, strict=True):
        assert beside / before[0] == pytest.approx(value / values[0])


@dataclass
class Server:
    """A machine that works on one promise after the other, for tenants that always ask for as much as they may."""

    weights: dict[str, float]
    demands: dict[str, float]
    """Work that each tenant asks for in a second, of the machine's one."""
    cost_s: dict[str, float]
    done: dict[str, float] = field(default_factory=dict)

    def run(self, seconds: float) -> dict[str, float]:
        """Return the work done for each tenant in a second, with the largest priority served first."""
        shares = FairShares(self.weights)
        asked = dict.fromkeys(self.demands, 0.0)
        self.done = dict.fromkeys(self.demands, 0.0)
        now_s = 0.0
        last_s = 0.0
        while now_s < seconds:
            for tenant, demand in self.demands.items():
                asked[tenant] += demand * (now_s - last_s)
                if asked[tenant] >= self.cost_s[tenant]:
                    shares.came(tenant, 1.0, START_S + now_s)
                    shares.learn(tenant, 100, 100, 0.5)
            last_s = now_s
            waiting = [tenant for tenant in self.demands if asked[tenant] >= self.cost_s[tenant]]
            if not waiting:
                now_s += 0.01
                continue
            stand = shares.round(START_S + now_s)
            chosen = max(waiting, key=lambda tenant: stand.standing(tenant).priority)
            shares.promised(chosen, self.cost_s[chosen])
            self.done[chosen] += self.cost_s[chosen]
            asked[chosen] -= self.cost_s[chosen]
            # Nobody waits for longer than a contract would: what is not promised is not asked for again.
            asked = {tenant: min(asked[tenant], 4 * max(self.cost_s.values())) for tenant in asked}
            now_s += self.cost_s[chosen]
        return {tenant: done / seconds for tenant, done in self.done.items()}


def max_min(weights: dict[str, float], demands: dict[str, float], capacity: float = 1.0) -> dict[str, float]:
    """Return the max-min fair shares: water is poured until everybody is full or nothing is left."""
    given: dict[str, float] = {}
    left = dict(demands)
    while left:
        level = capacity / sum(weights.get(tenant, 1.0) for tenant in left)
        full = [tenant for tenant, demand in left.items() if demand <= level * weights.get(tenant, 1.0) + 1e-12]
        if not full:
            return given | {tenant: level * weights.get(tenant, 1.0) for tenant in left}
        for tenant in full:
            given[tenant] = left.pop(tenant)
            capacity -= given[tenant]
    return given


@pytest.mark.parametrize(
    ("weights", "demands"),
    [
        ({}, {"a": 2.0, "b": 0.2}),
        ({}, {"a": 0.36, "b": 3.6}),
        ({"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 20.0}),
        ({"b": 3.0}, {"a": 5.0, "b": 0.3, "c": 1.0}),
        ({}, {"a": 0.3, "b": 0.4}),
    ],
)
def test_tenants_get_their_max_min_fair_share(weights: dict[str, float], demands: dict[str, float]) -> None:
    server = Server(weights, demands, dict.fromkeys(demands, 0.02))
    given, fair = server.run(60.0), max_min(weights, demands)
    for tenant in demands:
        assert given[tenant] == pytest.approx(fair[tenant], rel=0.1), (given, fair)


@given(
    weights=st.lists(st.floats(0.25, 4.0), min_size=2, max_size=4),
    demands=st.lists(st.floats(0.05, 4.0), min_size=4, max_size=4),
    costs=st.lists(st.floats(0.01, 0.05), min_size=4, max_size=4),
)
def test_nobody_is_below_its_share_by_more_than_a_request_and_what_it_may_owe(
    weights: list[float], demands: list[float], costs: list[float]
) -> None:
    """Work is also never left undone while somebody asks for it."""
    tenants = [f"t{index}" for index in range(len(weights))]
    named = dict(zip(tenants, weights, strict=True))
    wanted = dict(zip(tenants, demands, strict=False))
    cost_s = dict(zip(tenants, costs, strict=False))
    seconds = 30.0
    given = Server(named, wanted, cost_s).run(seconds)
    fair = max_min(named, wanted)
    total = sum(named.values())
    for tenant in tenants:
        slack = (MOST_OWED_S * named[tenant] / total + 6 * max(costs)) / seconds
        assert given[tenant] >= fair[tenant] - slack, (given, fair)
    if sum(wanted.values()) > 1.2:
        assert sum(given.values()) == pytest.approx(1.0, abs=0.02)
