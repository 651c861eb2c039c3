"""API keys of a client, an operator and others, and the authenticator that knows them."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from services.identity.api_key import ApiKey, make_key
from services.identity.authenticator import Authenticator
from services.identity.principal import Role


class Keys:
    """The API keys of a test, as a source of an authenticator."""

    def __init__(self) -> None:
        self.faults = 0
        self._known: dict[str, ApiKey] = {}
        self.client = self.add("acme", Role.CLIENT)
        self.operator = self.add("operations", Role.OPERATOR)
        self.admin = self.add("operations", Role.ADMIN)
        self.expired = self.add("acme", Role.ADMIN, expires=datetime.now(UTC) - timedelta(seconds=1))
        self.unknown, _ = make_key("acme", frozenset({Role.ADMIN}))
        self.authenticator = Authenticator([self], None, time.time)

    def add(self, tenant: str, role: Role, expires: datetime | None = None) -> str:
        """Make a key, and return it as its owner has it."""
        written, kept = make_key(tenant, frozenset({role}), f"{tenant}-{role}", expires)
        self._known[kept.id] = kept
        return written

    def revoke(self, written: str) -> None:
        """Forget a key."""
        del self._known[written.split("_")[1]]

    def find(self, key_id: str) -> ApiKey | None:
        return self._known.get(key_id)

    async def run(self) -> None:
        await asyncio.Event().wait()
