"""Certificates and keys that the configuration names, read from their files."""

from __future__ import annotations

from pathlib import Path

from services.config.settings import GatewaySettings, RouterSettings
from services.rpc.tls import ServerTls
from slos_serve import Tls


class TlsError(Exception):
    """A certificate or key cannot be used; the message names the option."""


def server_tls(options: RouterSettings) -> ServerTls | None:
    """Read the certificate that a router shows; None: clients connect unencrypted.

    Raises:
        TlsError: a file is missing, is no PEM, or lacks its counterpart.
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
    """Read how gateways and the command line call this cluster's routers; None: unencrypted.

    Args:
        own: the gateway's options; it shows its certificate to routers that ask for one.

    Raises:
        TlsError: a file is missing, is no PEM, or lacks its counterpart.
    """
    if router.tls_certificate is None and router.tls_trust is None:
        return None
    trust = _pem("router.tls_trust", router.tls_trust)
    certificate, key = _pair("gateway", own.tls_certificate, own.tls_key) if own is not None else (None, None)
    return Tls(root_certificates=trust, private_key=key, certificate_chain=certificate)


def check_gateway(options: GatewaySettings) -> None:
    """Check the certificate and the key that a gateway shows.

    Raises:
        TlsError: a file is missing, is no PEM, or lacks its counterpart.
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
