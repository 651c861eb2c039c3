"""A principal: somebody who calls, with the tenant it belongs to and what it may do."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Right(enum.Enum):
    """Something that a caller may be allowed to do."""

    GENERATE = "generate"
    """Send requests of its own tenant, ask for quotes, and cancel its own requests."""
    OBSERVE = "observe"
    """See the state of the cluster, the console, metrics and channelz."""
    OPERATE = "operate"
    """Cancel requests of every tenant. Workers are drained by certificate, not by right."""
    MANAGE_KEYS = "manage keys"
    """Make and revoke API keys."""


class Role(enum.StrEnum):
    """A name under which credentials carry rights."""

    CLIENT = "client"
    OPERATOR = "operator"
    ADMIN = "admin"


RIGHTS_OF = {
    Role.CLIENT: frozenset({Right.GENERATE}),
    Role.OPERATOR: frozenset({Right.OBSERVE, Right.OPERATE}),
    Role.ADMIN: frozenset(Right),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential was checked, or anybody where nothing is checked."""

    name: str
    """Name for the audit log: that of the API key, the subject of the token, or the name in the certificate."""
    tenant: str
    """Tenant that the caller's requests belong to; empty for a caller without one."""
    roles: frozenset[Role]
    checked: bool = True
    """Whether a credential was checked. Otherwise the tenant of a request is what the request says."""

    def may(self, right: Right) -> bool:
        """Return whether one of the roles carries a right."""
        return any(right in RIGHTS_OF[role] for role in self.roles)

    def owns(self, tenant: str) -> bool:
        """Return whether what belongs to `tenant` is this caller's own, or it may act for every tenant."""
        return not self.checked or tenant == self.tenant or self.may(Right.OPERATE)


ANYBODY = Principal("anybody", "", frozenset(Role), checked=False)
"""The caller of a process that checks no credentials."""
