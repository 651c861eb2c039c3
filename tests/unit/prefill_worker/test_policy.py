"""What a prefill worker takes, and for whom it holds KV caches."""

from __future__ import annotations

import logging

import pytest

from prefill_worker.lease_owners import LeaseOwners
from prefill_worker.policy import PrefillPolicy
from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import EngineRequest, SamplingOptions
from services.worker.policy import Refusal
from tests.support.engine_facts import FACTS
from tests.unit.services.worker.worker_support import handle

BLOCKS = 2
"""KV blocks of 32 tokens that 50 tokens fill."""


def request(**more: object) -> EngineRequest:
    return EngineRequest("r", (1, 2, 3), 0, SamplingOptions(max_tokens=4), **more)  # type: ignore[arg-type]


def owners() -> LeaseOwners:
    """Two leases of the session `a`, one of `b`."""
    held = LeaseOwners()
    for owner, name in (("a", "a1"), ("a", "a2"), ("b", "b1")):
        held.open(owner, handle(name, tokens=50, kv_bytes=640))
    return held


def test_prompts_are_taken_to_export_or_to_the_end_but_no_kv_cache_is_pulled() -> None:
    policy = PrefillPolicy()
    for taken in (request(), request(export_kv=True)):
        assert policy.admit(taken, FACTS) is taken
    assert policy.admit(request(kv_source=handle()), FACTS) == Refusal("a prefill worker pulls no KV cache", True)


def test_each_owner_has_its_own_leases() -> None:
    held = owners()
    assert (held.of("a"), held.of("b"), held.of("c")) == (("a1", "a2"), ("b1",), ())
    assert len(held) == 3
    assert held.kv_bytes_held == 3 * 640


def test_a_closed_lease_is_nobodys() -> None:
    held = owners()
    assert held.close("a1", LeaseOutcome.PULLED) == "a"
    assert held.close("a1", LeaseOutcome.PULLED) is None
    assert held.close("never opened", LeaseOutcome.EXPIRED) is None
    assert held.of("a") == ("a2",)
    assert held.kv_bytes_held == 2 * 640
    assert held.closed == {LeaseOutcome.PULLED: 1, LeaseOutcome.RELEASED: 0, LeaseOutcome.EXPIRED: 0}


def test_blocks_are_wanted_until_their_lease_is_given_up() -> None:
    held = owners()
    everybody = frozenset({"a", "b"})
    assert held.wanted_blocks(everybody) == 3 * BLOCKS
    assert held.wanted_blocks(frozenset({"b"})) == BLOCKS
    held.give_up("a1")
    held.give_up("never opened")
    assert held.wanted_blocks(everybody) == 2 * BLOCKS
    assert len(held) == 3, "the engine has yet to close it"
    held.close("a1", LeaseOutcome.RELEASED)
    held.open("b", handle("a1", tokens=50))
    assert held.wanted_blocks(everybody) == 3 * BLOCKS, "a new lease is not given up because an old one was"


def test_the_policy_follows_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    policy = PrefillPolicy()
    with caplog.at_level(logging.WARNING):
        policy.hold("a", handle("x", tokens=50))
        policy.hold("a", handle("y", tokens=50))
        assert (policy.exports, policy.open_leases, policy.leases_of("a")) == (2, 2, ("x", "y"))
        assert policy.leased_blocks(frozenset({"a"})) == 2 * BLOCKS
        policy.given_up("x")
        assert policy.leased_blocks(frozenset({"a"})) == BLOCKS
        assert policy.lease_closed("x", LeaseOutcome.RELEASED) == "a"
        assert caplog.text == ""
        assert policy.lease_closed("y", LeaseOutcome.EXPIRED) == "a"
    assert "lease y expired" in caplog.text
    assert policy.open_leases == 0
    assert policy.summary() == "KV caches exported: 2 (0 pulled, 1 released, 1 expired)"
