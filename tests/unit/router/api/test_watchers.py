"""Who gets a place to watch the cluster from, and who is turned away."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from router.api.watchers import MAX_WATCHERS, MAX_WATCHERS_OF_TENANT, PLACES_OF_OBSERVERS, Watchers
from services.identity.principal import ANYBODY, Principal, Role
from services.rpc.errors import OverloadedError

OPERATOR = Principal("ops", "", frozenset({Role.OPERATOR}))


def client(tenant: str) -> Principal:
    return Principal("key", tenant, frozenset({Role.CLIENT}))


def test_places_are_kept_for_operators_however_many_tenants_watch() -> None:
    watchers = Watchers()
    with ExitStack() as held:
        for number in range(MAX_WATCHERS - PLACES_OF_OBSERVERS):
            held.enter_context(watchers.place(client(f"tenant-{number // MAX_WATCHERS_OF_TENANT}")))
        with pytest.raises(OverloadedError) as caught, watchers.place(client("late")):
            pass
        assert caught.value.retry_after_s
        for _ in range(PLACES_OF_OBSERVERS):
            held.enter_context(watchers.place(OPERATOR))
        with pytest.raises(OverloadedError, match=f"{MAX_WATCHERS} clients watch already"), watchers.place(OPERATOR):
            pass
    with watchers.place(client("late")):
        pass


def test_a_tenant_has_so_many_places_and_those_that_it_leaves_again() -> None:
    watchers, acme = Watchers(), client("acme")
    with ExitStack() as held:
        for _ in range(MAX_WATCHERS_OF_TENANT):
            held.enter_context(watchers.place(acme))
        for _ in range(3):
            with pytest.raises(OverloadedError, match="of this tenant"), watchers.place(acme):
                pass
        with watchers.place(client("globex")), watchers.place(OPERATOR):
            pass
    with ExitStack() as held:
        for _ in range(MAX_WATCHERS_OF_TENANT):
            held.enter_context(watchers.place(acme))


def test_without_credentials_whoever_calls_gets_every_place() -> None:
    watchers = Watchers()
    with ExitStack() as held:
        for _ in range(MAX_WATCHERS):
            held.enter_context(watchers.place(ANYBODY))
        with pytest.raises(OverloadedError), watchers.place(ANYBODY):
            pass
