"""The salts that keep the prefix caches of tenants apart."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping

SALT_BYTES = 16
"""Number of bytes of a salt: 128 bits, which nobody can guess who does not have the cluster's key."""


class CacheSalts:
    """Says with which salt a tenant's prompts are cached: prompts of another salt never share a KV block.

    Salts are the same on every router that has the same key, so that they share what engines have cached.
    """

    def __init__(self, key: Callable[[], bytes] | None, groups: Mapping[str, str], default_group: str = "") -> None:
        """
        Args:
            key: returns the cluster's secret; None: all tenants share.
            groups: name of the group that a tenant shares with, by tenant; empty for one that shares with nobody.
            default_group: group of all tenants that are not in `groups`.
        """
        self._key = key
        self._groups = groups
        self._default_group = default_group

    def of(self, tenant: str) -> str:
        """Return the salt of a tenant's prompts, in hexadecimal; empty if all tenants share."""
        if self._key is None:
            return ""
        group = self._groups.get(tenant, self._default_group)
        # A tenant that is called like a group is not in the group.
        name = f"group {group}" if group else f"tenant {tenant}"
        # Tenants may be any text, and half of a surrogate pair has no UTF-8.
        return hmac.new(self._key(), name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[
            : 2 * SALT_BYTES
        ]


NO_SALTS = CacheSalts(None, {})
"""The salts of a cluster whose tenants all share."""
