"""The lease table, on a clock that is a number."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.engine.kv.handle import LeaseOutcome
from services.engine.kv.leases import CONFIRM_WAIT_S, REMEMBERED_OUTCOMES, Lease, LeaseTable, LeaseUnavailableError

NOW_S = 5000.0
EPOCH = "epoch"
SECRET = "secret of a"
both_kinds = pytest.mark.parametrize("one_sided", [True, False])


def table(one_sided: bool, margin_s: float = 0.5) -> LeaseTable[str]:
    """A table with the lease `a`, which ends 10 s from now."""
    made: LeaseTable[str] = LeaseTable(EPOCH, margin_s, one_sided=one_sided)
    made.open("a", SECRET, "blocks of a", NOW_S + 10.0)
    return made


def refusal(
    leases: LeaseTable[str], lease_id: str, now_s: float = NOW_S, epoch: str | None = None, secret: str = SECRET
) -> str:
    with pytest.raises(LeaseUnavailableError) as caught:
        leases.claim(lease_id, secret, epoch, now_s)
    return str(caught.value)


@both_kinds
def test_a_lease_is_granted_to_one_claimant(one_sided: bool) -> None:
    leases = table(one_sided)
    lease = leases.claim("a", SECRET, None, NOW_S)
    assert (lease.lease_id, lease.offer, lease.until_s) == ("a", "blocks of a", NOW_S + 10.0)
    assert refusal(leases, "a") == "the lease is claimed by another engine"


@both_kinds
def test_a_lease_of_another_start_of_the_engine_is_not_granted(one_sided: bool) -> None:
    leases = table(one_sided)
    assert refusal(leases, "a", epoch="an earlier one") == "the lease belongs to an engine that is gone"
    assert leases.claim("a", SECRET, EPOCH, NOW_S).claimed


@both_kinds
def test_a_lease_within_its_margin_is_not_granted(one_sided: bool) -> None:
    leases = table(one_sided, margin_s=0.5)
    assert refusal(leases, "a", NOW_S + 9.5) == "the lease has 0.500 s left"
    assert refusal(leases, "a", NOW_S + 11.0) == "the lease has -1.000 s left"
    assert leases.claim("a", SECRET, None, NOW_S + 9.4).claimed


@both_kinds
def test_an_unknown_lease_is_not_granted(one_sided: bool) -> None:
    assert refusal(table(one_sided), "b") == "the lease is unknown"


@both_kinds
def test_a_claim_without_the_secret_hears_the_same_of_every_lease(one_sided: bool) -> None:
    leases = table(one_sided)
    leases.open("b", "secret of b", "blocks of b", NOW_S + 10.0)
    leases.release("b")
    for lease_id in ("a", "b", "c"):
        for secret in ("", "guess", SECRET[:-1], f"{SECRET}x", "\ud800"):
            assert refusal(leases, lease_id, secret=secret) == "the lease is unknown"
    assert refusal(leases, "b", secret="secret of b") == "the lease was released"
    assert leases.claim("a", SECRET, None, NOW_S).claimed
    assert SECRET not in repr(leases._open)
    assert "secret of b" not in repr(leases._closed)


@both_kinds
@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (LeaseOutcome.PULLED, "the lease was pulled"),
        (LeaseOutcome.RELEASED, "the lease was released"),
        (LeaseOutcome.EXPIRED, "the lease has expired"),
    ],
)
def test_a_late_claimant_hears_how_the_lease_ended(one_sided: bool, outcome: LeaseOutcome, words: str) -> None:
    leases = table(one_sided)
    leases.closed("a", outcome)
    assert len(leases) == 0
    assert refusal(leases, "a") == words


def test_a_lease_that_can_be_offered_again_goes_on_after_a_claim_that_brought_nothing() -> None:
    leases = table(one_sided=False)
    lease = leases.claim("a", SECRET, None, NOW_S)
    assert leases.end_claim(lease, confirmed=False) is None
    assert leases.claim("a", SECRET, None, NOW_S) is lease


def test_a_lease_that_somebody_may_still_read_ends_with_a_claim_that_brought_nothing() -> None:
    leases = table(one_sided=True)
    lease = leases.claim("a", SECRET, None, NOW_S)
    assert leases.end_claim(lease, confirmed=False) is LeaseOutcome.RELEASED
    assert refusal(leases, "a") == "the lease was released"


def test_a_confirmed_claim_ends_the_lease_where_the_exporter_sent_the_bytes() -> None:
    leases = table(one_sided=False)
    assert leases.end_claim(leases.claim("a", SECRET, None, NOW_S), confirmed=True) is LeaseOutcome.PULLED
    assert refusal(leases, "a") == "the lease was pulled"


def test_a_confirmed_one_sided_read_leaves_it_to_the_engine_to_end_the_lease() -> None:
    leases = table(one_sided=True)
    assert leases.end_claim(leases.claim("a", SECRET, None, NOW_S), confirmed=True) is None
    assert refusal(leases, "a") == "the lease is claimed by another engine"
    leases.closed("a", LeaseOutcome.PULLED)
    assert len(leases) == 0


@both_kinds
@pytest.mark.parametrize("confirmed", [True, False])
def test_the_claim_of_a_lease_that_has_ended_ends_nothing(one_sided: bool, confirmed: bool) -> None:
    leases = table(one_sided)
    lease = leases.claim("a", SECRET, None, NOW_S)
    leases.closed("a", LeaseOutcome.EXPIRED)
    assert leases.end_claim(lease, confirmed=confirmed) is None
    assert leases.outcome("a") == "the lease has expired"


@both_kinds
def test_the_claim_of_an_earlier_lease_does_not_end_a_later_one_of_the_same_name(one_sided: bool) -> None:
    leases = table(one_sided)
    lease = leases.claim("a", SECRET, None, NOW_S)
    leases.closed("a", LeaseOutcome.RELEASED)
    leases.open("a", SECRET, "other blocks", NOW_S + 10.0)
    assert leases.end_claim(lease, confirmed=False) is None
    assert leases.claim("a", SECRET, None, NOW_S).offer == "other blocks"


@both_kinds
def test_an_unclaimed_lease_is_released_at_once_and_only_once(one_sided: bool) -> None:
    leases = table(one_sided)
    released = leases.release("a")
    assert released is not None
    assert released.offer == "blocks of a"
    assert leases.outcome("a") == "the lease was released"
    assert leases.release("a") is None
    assert leases.release("never opened") is None


def test_release_waits_for_a_reader_that_nothing_can_stop() -> None:
    leases = table(one_sided=True)
    lease = leases.claim("a", SECRET, None, NOW_S)
    assert leases.release("a") is None
    assert len(leases) == 1
    assert leases.end_claim(lease, confirmed=False) is LeaseOutcome.RELEASED


def test_release_does_not_wait_where_sending_can_be_stopped() -> None:
    leases = table(one_sided=False)
    lease = leases.claim("a", SECRET, None, NOW_S)
    assert leases.release("a") is lease
    assert leases.end_claim(lease, confirmed=True) is None


@both_kinds
def test_only_leases_whose_time_is_over_expire(one_sided: bool) -> None:
    leases = table(one_sided)
    leases.open("b", "secret of b", "blocks of b", NOW_S + 20.0)
    assert leases.next_expiry_s() == NOW_S + 10.0
    assert leases.expire(NOW_S + 9.999) == []
    (lease,) = leases.expire(NOW_S + 10.0)
    assert lease.lease_id == "a"
    assert leases.outcome("a") == "the lease has expired"
    assert leases.next_expiry_s() == NOW_S + 20.0
    leases.expire(NOW_S + 20.0)
    assert leases.next_expiry_s() is None


def test_a_silent_claimant_is_not_waited_for_longer_than_the_lease_lasts() -> None:
    one_sided, sending = table(one_sided=True), table(one_sided=False)
    assert one_sided.confirmation_due_s(one_sided.claim("a", SECRET, None, NOW_S), NOW_S) == NOW_S + 10.0
    lease = sending.claim("a", SECRET, None, NOW_S)
    assert sending.confirmation_due_s(lease, NOW_S) == NOW_S + CONFIRM_WAIT_S
    assert sending.confirmation_due_s(lease, NOW_S + 9.0) == NOW_S + 10.0


def test_outcomes_are_remembered_up_to_a_number() -> None:
    leases: LeaseTable[str] = LeaseTable(EPOCH, 0.0, one_sided=True)
    for number in range(REMEMBERED_OUTCOMES + 1):
        leases.open(str(number), SECRET, "", NOW_S)
        leases.release(str(number))
    assert leases.outcome("0") == "the lease is unknown"
    assert leases.outcome("1") == "the lease was released"


class LeasesOverTime(RuleBasedStateMachine):
    """Whatever happens, blocks are freed once, and nobody is granted what was freed or may be read by another."""

    names = st.sampled_from(["a", "b", "c"])

    @initialize(one_sided=st.booleans())
    def open(self, one_sided: bool) -> None:
        self.one_sided = one_sided
        self.now_s = NOW_S
        self.leases: LeaseTable[str] = LeaseTable(EPOCH, 0.5, one_sided=one_sided)
        for index, name in enumerate("abc"):
            self.leases.open(name, SECRET, name, NOW_S + 5.0 + index)
        self.claims: dict[str, Lease[str]] = {}
        self.freed: list[str] = []

    @rule(name=names)
    def claim(self, name: str) -> None:
        try:
            lease = self.leases.claim(name, SECRET, EPOCH, self.now_s)
        except LeaseUnavailableError:
            return
        assert name not in self.claims
        assert name not in self.freed
        assert self.now_s < lease.until_s - 0.5
        self.claims[name] = lease

    @rule(name=names, confirmed=st.booleans())
    def end_claim(self, name: str, confirmed: bool) -> None:
        lease = self.claims.pop(name, None)
        if lease is not None and self.leases.end_claim(lease, confirmed=confirmed) is not None:
            self.freed.append(name)

    @rule(name=names)
    def release(self, name: str) -> None:
        if self.leases.release(name) is not None:
            assert not (self.one_sided and name in self.claims), "it may be read still"
            self.freed.append(name)

    @rule(name=names)
    def end_in_the_engine(self, name: str) -> None:
        if name not in self.freed:
            self.leases.closed(name, LeaseOutcome.EXPIRED)
            self.freed.append(name)

    @rule()
    def wait(self) -> None:
        self.now_s += 1.0
        self.freed += [lease.lease_id for lease in self.leases.expire(self.now_s)]

    @invariant()
    def every_block_is_held_or_was_freed_once(self) -> None:
        assert len(self.freed) == len(set(self.freed)) == 3 - len(self.leases)


TestLeasesOverTime = LeasesOverTime.TestCase
