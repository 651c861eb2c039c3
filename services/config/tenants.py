"""The options of tenants: what each may use of the cluster."""

from __future__ import annotations

from pydantic import PositiveFloat

from services.config.section import Section


class TenantSettings(Section):
    """What one tenant may use of the cluster; the tenant `default` stands for every tenant that is not named."""

    weight: PositiveFloat = 1.0
    """Share of the capacity for promises that this tenant gets under overload, relative to the weights of others."""
