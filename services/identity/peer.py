"""The identity of a process of the cluster, as its certificate states it: cluster, role and, if bound to one, an id."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

TRUST_DOMAIN = "slos-serve"
"""Host of the URIs that identify processes."""
NAME_SUFFIX = "slos-serve.internal"
"""End of the DNS names that certificates carry beside the URI. `internal` is kept for private use, so that no public
authority signs such a name."""
MAX_LABEL = 63
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A cluster's name or a process's id in a certificate: one label of a DNS name, in lower case."""
ANY_ID = "*"


class PeerRole(enum.StrEnum):
    """The part that a process or a person plays in a cluster."""

    ROUTER = "router"
    WORKER = "worker"
    GATEWAY = "gateway"
    REDIS = "redis"
    OPERATOR = "operator"
    CLIENT = "client"


class PeerIdentityError(ValueError):
    """A certificate or a name states no identity of this form."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A role in one cluster, and the id of the process or person that has it."""

    cluster: str
    role: PeerRole
    id: str = ""
    """Id that the holder is bound to; empty: the certificate serves every process of the role."""

    def __post_init__(self) -> None:
        if not LABEL.fullmatch(self.cluster):
            raise PeerIdentityError(f"the cluster's name {self.cluster!r} {_WANTED}")
        if self.id and not LABEL.fullmatch(self.id):
            raise PeerIdentityError(f"the id {self.id!r} {_WANTED}")

    @classmethod
    def from_uris(cls, uris: Iterable[str]) -> PeerIdentity:
        """Read the identity from the URIs of a certificate, of which there must be exactly one.

        Raises:
            PeerIdentityError: there is none or another one, or it is not of the form that `uri` writes.
        """
        found = tuple(uris)
        if len(found) != 1:
            raise PeerIdentityError(f"a certificate of a cluster has one URI, not {len(found)}")
        prefix = f"spiffe://{TRUST_DOMAIN}/"
        uri = found[0]
        steps = uri.removeprefix(prefix).split("/")
        if not uri.startswith(prefix) or len(steps) not in (2, 3) or "" in steps:
            raise PeerIdentityError(f"the URI is not {prefix}CLUSTER/ROLE or {prefix}CLUSTER/ROLE/ID")
        try:
            role = PeerRole(steps[1])
        except ValueError as error:
            raise PeerIdentityError("the URI names no role that there is") from error
        return cls(steps[0], role, *steps[2:])

    @property
    def uri(self) -> str:
        """SPIFFE id that the certificate carries."""
        return f"spiffe://{TRUST_DOMAIN}/" + "/".join(filter(None, (self.cluster, self.role.value, self.id)))

    @property
    def names(self) -> tuple[str, str]:
        """DNS names that the certificate carries, which callers check: of the process, then of its role.

        A certificate that is bound to no id carries a wildcard, and so is taken for every id of its role.
        """
        return f"{self.id or ANY_ID}.{self._role_name}", self._role_name

    @property
    def server_name(self) -> str:
        """DNS name that a caller demands of this process, or of any process of the role if it has no id."""
        return self.names[0] if self.id else self._role_name

    def covers(self, process_id: str) -> bool:
        """Return whether the holder may call itself by an id.

        A router that is bound to an id may have several processes, called by that id, a hyphen and a number.
        """
        several = "(-[0-9]+)?" if self.role is PeerRole.ROUTER else ""
        return not self.id or re.fullmatch(re.escape(self.id) + several, process_id) is not None

    @property
    def _role_name(self) -> str:
        return f"{self.role.value}.{self.cluster}.{NAME_SUFFIX}"

    def __str__(self) -> str:
        named = f"{self.role.value} {self.id}" if self.id else f"any {self.role.value}"
        return f"{named} of cluster {self.cluster}"


_WANTED = "is no DNS label: 1 to 63 of a-z, 0-9 and hyphens, with no hyphen at either end"
