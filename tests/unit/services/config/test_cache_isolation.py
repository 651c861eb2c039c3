"""Which tenants share prefix caches, as configured."""

from __future__ import annotations

from typing import Any

from services.config.cache_isolation import cache_salts, separates_caches
from services.config.settings import Settings
from services.identity.cache_salts import CacheSalts

KEY = bytes(range(32))


def configured(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


def salts(**sections: Any) -> CacheSalts:
    return cache_salts(configured(**sections), lambda: KEY)


def test_tenants_are_kept_apart_where_the_configuration_says_so() -> None:
    assert salts(router={"cache_isolation": "tenant"}).of("a") != salts(router={"cache_isolation": "tenant"}).of("b")
    assert salts(router={"cache_isolation": "none"}).of("a") == ""
    assert separates_caches(configured(router={"cache_isolation": "tenant"}))
    assert not separates_caches(configured())
    assert separates_caches(configured(auth={"keys_in_redis": True})), "by default where credentials are checked"
    assert not separates_caches(configured(auth={"keys_in_redis": True}, router={"cache_isolation": "none"}))


def test_groups_of_tenants_share() -> None:
    tenants = {"a": {"cache_group": "g"}, "b": {"cache_group": "g"}, "c": {}, "default": {"cache_group": "all"}}
    made = salts(router={"cache_isolation": "tenant"}, tenants=tenants)
    assert made.of("a") == made.of("b")
    assert made.of("x") == made.of("y")
    assert len({made.of(name) for name in ("a", "c", "x")}) == 3
