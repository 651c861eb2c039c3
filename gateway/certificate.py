"""The certificate that a gateway shows to routers, followed while its files are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from services.config.tls import member_tls
from services.rpc.tls import WATCH_S, ClusterTls
from slos_serve import Tls


class ShowsCertificate(Protocol):
    """Something that calls routers over TLS."""

    async def replace_tls(self, tls: Tls) -> None:
        """Show another certificate from the next call on."""


async def follow_certificate(
    cluster: ClusterTls, callers: Sequence[ShowsCertificate], interval_s: float = WATCH_S
) -> None:
    """Hand a replaced certificate on to whoever calls routers, until cancelled."""
    shown = cluster.watched.current()
    while True:
        await asyncio.sleep(interval_s)
        latest = cluster.watched.current()
        if latest is not shown:
            shown = latest
            for caller in callers:
                await caller.replace_tls(member_tls(cluster))
