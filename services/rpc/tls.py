"""Encrypted doors: what routers and gateways show, and whom those trust who call them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from services.config.settings import GatewaySettings, RouterSettings
from slos_serve import Tls


class TlsError(Exception):
    """A certificate or key that cannot be used; the message names the option."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server shows. All PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None
    """Clients must show a certificate that one of these signed; None: they need none."""

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], self.client_ca, require_client_auth=self.client_ca is not None
        )


def server_tls(options: RouterSettings) -> ServerTls | None:
    """None: unencrypted.

    Raises:
        TlsError
    """
    certificate, key = _pair("router", options.tls_certificate, options.tls_key)
    client_ca = _pem("router.tls_client_ca", options.tls_client_ca)
    if certificate is None or key is None:
        if client_ca is not None:
            raise TlsError(
                "router.tls_client_ca: clients can only show certificates over TLS; set router.tls_certificate"
            )
        return None
    return ServerTls(certificate, key, client_ca)


def client_tls(router: RouterSettings, own: GatewaySettings | None = None) -> Tls | None:
    """How this cluster's own clients call its routers; None: unencrypted.

    Args:
        own: shows its certificate to routers that ask for one.

    Raises:
        TlsError
    """
    if router.tls_certificate is None and router.tls_trust is None:
        return None
    trust = _pem("router.tls_trust", router.tls_trust)
    certificate, key = _pair("gateway", own.tls_certificate, own.tls_key) if own is not None else (None, None)
    return Tls(root_certificates=trust, private_key=key, certificate_chain=certificate)


def check_gateway(options: GatewaySettings) -> None:
    """
    Raises:
        TlsError
    """
    _pair("gateway", options.tls_certificate, options.tls_key)


def _pair(section: str, certificate: Path | None, key: Path | None) -> tuple[bytes | None, bytes | None]:
    if (certificate is None) != (key is None):
        raise TlsError(f"{section}.tls_certificate and {section}.tls_key belong together; one of them is missing")
    return _pem(f"{section}.tls_certificate", certificate), _pem(f"{section}.tls_key", key)


def _pem(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsError(f"{option}: {path}: {error.strerror or error}") from error
    if b"-----BEGIN " not in content:
        raise TlsError(f"{option}: {path} holds no PEM")
    return content
