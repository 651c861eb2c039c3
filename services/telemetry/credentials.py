"""Metrics of the check of credentials, which routers and gateways share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.telemetry.catalogue.router import CREDENTIAL_FAULTS, CREDENTIALS_REFUSED, REASON

if TYPE_CHECKING:
    from services.identity.authenticator import Authenticator
    from services.telemetry.meters import Meters


def observe_credentials(meters: Meters, credentials: Authenticator) -> None:
    """Let metrics show what an authenticator counts."""
    meters.observe(
        CREDENTIALS_REFUSED,
        lambda: [(count, {REASON: cause.value}) for cause, count in list(credentials.refused.items())],
    )
    meters.observe_one(CREDENTIAL_FAULTS, lambda: credentials.faults)
