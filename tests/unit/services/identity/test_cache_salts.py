"""Salts of prefix caches: each tenant has its own, unless a group shares."""

from __future__ import annotations

from services.identity.cache_salts import NO_SALTS, CacheSalts

KEY = bytes(range(32))
NAMES = ["", "a", "b", "group", "tenant a", "group g", "\ud800", "A", "a "]


def salts(key: bytes = KEY, default_group: str = "", **groups: str) -> CacheSalts:
    return CacheSalts(lambda: key, groups, default_group)


def test_each_tenant_has_a_salt_of_its_own() -> None:
    made = [salts().of(name) for name in NAMES]
    assert len(set(made)) == len(NAMES)
    assert all(len(bytes.fromhex(salt)) == 16 for salt in made)
    assert made == [salts().of(name) for name in NAMES], "on every router"


def test_tenants_of_a_group_share_and_nobody_gets_into_it_by_name() -> None:
    grouped = salts(a="g", b="g", c="h", d="")
    assert grouped.of("a") == grouped.of("b")
    assert len({grouped.of(name) for name in ("a", "c", "d", "e", "g", "group g")}) == 6


def test_tenants_that_are_not_named_are_in_the_group_of_the_default() -> None:
    grouped = salts(default_group="all", alone="", a="g")
    assert grouped.of("x") == grouped.of("y") == grouped.of("")
    assert len({grouped.of(name) for name in ("x", "alone", "a")}) == 3


def test_salts_cannot_be_made_without_the_key() -> None:
    assert salts().of("a") != salts(key=bytes(32)).of("a")


def test_the_key_is_asked_for_again_each_time() -> None:
    keys = [bytes(32), KEY]
    changing = CacheSalts(lambda: keys[0], {})
    before = changing.of("a")
    del keys[0]
    assert changing.of("a") == salts().of("a") != before


def test_without_a_key_all_tenants_share() -> None:
    assert NO_SALTS.of("a") == NO_SALTS.of("b") == ""
