"""Certificates and keys that the configuration names, read from their files."""

from __future__ import annotations

import re
from pathlib import Path

from services.config.cluster_tls import TlsSettings
from services.config.settings import GatewaySettings, RouterSettings
from services.identity.certificate_files import CertificateFileError, CertificateFiles, WatchedCredentials
from services.identity.peer import LABEL, MAX_LABEL, PeerIdentity, PeerRole
from services.rpc.tls import ClusterTls, ServerTls
from slos_serve import Tls

NOT_IN_LABELS = re.compile(r"[^a-z0-9-]")


class TlsError(Exception):
    """A certificate or key cannot be used; the message names the option."""


def cluster_tls(options: TlsSettings, *roles: PeerRole) -> ClusterTls | None:
    """Read the certificate with which this process talks to others of the cluster; None: it talks unencrypted.

    Args:
        roles: those of which the certificate must state one.

    Raises:
        TlsError: only some of the files are named, or one cannot be used, or the certificate states another role.
    """
    named = {"tls.ca": options.ca, "tls.certificate": options.certificate, "tls.key": options.key}
    missing = [name for name, path in named.items() if path is None]
    if len(missing) == len(named):
        return None
    if options.ca is None or options.certificate is None or options.key is None:
        raise TlsError(f"tls.ca, tls.certificate and tls.key belong together; missing: {', '.join(missing)}")
    try:
        watched = WatchedCredentials(CertificateFiles(options.ca, options.certificate, options.key))
    except CertificateFileError as error:
        raise TlsError(str(error)) from error
    if watched.identity.role not in roles:
        wanted = " or ".join(roles)
        raise TlsError(
            f"tls.certificate: {options.certificate}: it is that of {watched.identity}; wanted is one of role {wanted}"
        )
    return ClusterTls(watched)


def process_id(tls: ClusterTls | None, option: str, configured: str, default: str) -> str:
    """Return the id by which a process calls itself: as configured, else that of its certificate, else the default.

    Args:
        option: name of the option that sets the id.

    Raises:
        TlsError: the certificate is bound to another id, or no certificate can state the one that is configured.
    """
    if tls is None:
        return configured or default
    chosen = configured or tls.identity.id or NOT_IN_LABELS.sub("-", default.lower())[-MAX_LABEL:].strip("-")
    if not LABEL.fullmatch(chosen):
        raise TlsError(f"{option}: {chosen!r} cannot stand in a certificate: 1 to 63 of a-z, 0-9 and inner hyphens")
    if not tls.identity.covers(chosen):
        raise TlsError(f"{option} is {chosen}, and tls.certificate is that of {tls.identity}")
    return chosen


def server_tls(options: RouterSettings, cluster: ClusterTls | None = None) -> ServerTls | ClusterTls | None:
    """Read the certificate that a router shows to clients; None: they connect unencrypted.

    Args:
        cluster: what the router shows, and demands, if it has no certificate for clients in particular.

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
        return cluster
    return ServerTls(certificate, key, client_ca)


def shows_cluster_certificate(router: RouterSettings) -> bool:
    """Return whether routers have no certificate for clients in particular, so that `[tls]` is what counts."""
    return router.tls_certificate is None and router.tls_trust is None


def client_tls(
    router: RouterSettings, own: GatewaySettings | None = None, cluster: ClusterTls | None = None
) -> Tls | None:
    """Read how gateways and the command line call this cluster's routers; None: unencrypted.

    Args:
        own: the gateway's options; it shows its certificate to routers that ask for one.
        cluster: what is shown to routers, and demanded of them, that have no certificate for clients in particular.

    Raises:
        TlsError: a file is missing, is no PEM, or lacks its counterpart.
    """
    if shows_cluster_certificate(router):
        return None if cluster is None else member_tls(cluster)
    trust = _pem("router.tls_trust", router.tls_trust)
    certificate, key = _pair("gateway", own.tls_certificate, own.tls_key) if own is not None else (None, None)
    return Tls(root_certificates=trust, private_key=key, certificate_chain=certificate)


def member_tls(cluster: ClusterTls) -> Tls:
    """Return how a member of a cluster calls its routers with the certificate that it has now."""
    shown = cluster.watched.current()
    return Tls(
        root_certificates=shown.authorities,
        private_key=shown.key,
        certificate_chain=shown.chain,
        server_name=PeerIdentity(cluster.identity.cluster, PeerRole.ROUTER).server_name,
    )


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
