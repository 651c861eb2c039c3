"""The options of encryption between the processes of a cluster."""

from __future__ import annotations

from pathlib import Path

from services.config.section import Section


class TlsSettings(Section):
    """Mutual TLS between routers, workers, gateways and Redis. All or none; each process has its own certificate."""

    ca: Path | None = None
    """PEM file of the authorities that sign the certificates of this cluster, and nothing else. Unset: processes of the
    cluster talk to each other unencrypted."""
    certificate: Path | None = None
    """PEM file of the certificate chain of this process, whose first certificate states its role; `slos-serve certs`
    makes them. It is read again when it changes."""
    key: Path | None = None
    """PEM file of the private key, without a password."""
