"""The separation of prefix caches by tenant, as the configuration asks for it."""

from __future__ import annotations

from collections.abc import Callable

from services.config.settings import Settings
from services.config.tenants import DEFAULT_TENANT
from services.identity.cache_salts import NO_SALTS, CacheSalts


def separates_caches(settings: Settings) -> bool:
    """Return whether prefix caches are kept apart by tenant."""
    isolation = settings.router.cache_isolation
    return isolation == "tenant" or (isolation == "auto" and settings.auth.on)


def cache_salts(settings: Settings, key: Callable[[], bytes]) -> CacheSalts:
    """Return the salts with which prompts of tenants are cached.

    Args:
        key: returns the cluster's secret from which salts are made.
    """
    if not separates_caches(settings):
        return NO_SALTS
    groups = {name: options.cache_group for name, options in settings.tenants.items()}
    return CacheSalts(key, groups, groups.get(DEFAULT_TENANT, ""))
