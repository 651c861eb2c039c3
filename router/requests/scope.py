"""The scope of a request's id: ids that two tenants chose are never one and the same in the cluster.

Routers, workers, the journal and cancellations know a request by its scope and the id that its client chose; only the
endpoints tell the client its own id.
"""

from __future__ import annotations

from services.identity.principal import Principal

SEPARATOR = "/"
"""Character that ends a scope. No tenant's name holds it, so that no tenant's id begins with another tenant's scope."""


def scope_of(principal: Principal) -> str:
    """Return what the cluster puts before every id that a caller chooses; nothing where no credentials are checked."""
    return f"{principal.tenant}{SEPARATOR}" if principal.checked else ""
