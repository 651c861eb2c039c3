"""Encryption of a gRPC server."""

from __future__ import annotations

from dataclasses import dataclass

import grpc


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The certificate that a server shows and the clients that it accepts. All fields are PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None
    """Authorities of which one must have signed a client's certificate; None: clients need no certificate."""

    def credentials(self) -> grpc.ServerCredentials:
        """Return gRPC's form of these credentials."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], self.client_ca, require_client_auth=self.client_ca is not None
        )
