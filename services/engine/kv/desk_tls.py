"""The encryption of claims, as the two ends of the claim protocol see it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Protocol


class DeskTls(Protocol):
    """Makes both ends of a claim show who they are, and says whom to accept."""

    def server(self) -> ssl.SSLContext:
        """Return the context of an exporter, which demands a certificate of each claimant."""
        ...

    def client(self) -> ssl.SSLContext:
        """Return the context of a claimant for one connection."""
        ...

    def server_name(self, worker_id: str) -> str:
        """Return the name that the certificate of an exporter must carry.

        Raises:
            ValueError: no certificate can carry the id of this worker.
        """
        ...

    def refusal(self, certificate: Mapping[str, Any] | None) -> str:
        """Return why the owner of a certificate has no business at the desk; empty if it has.

        Args:
            certificate: what `ssl.SSLObject.getpeercert` returns.
        """
        ...
