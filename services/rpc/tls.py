"""Encryption of gRPC connections, and what each end demands of the other's certificate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import grpc
import grpc.aio

from services.audit import HOST, EventKind, Outcome, note
from services.identity.certificate_files import Credentials, WatchedCredentials
from services.identity.peer import PeerIdentity, PeerRole

WATCH_S = 10.0
"""Seconds between two looks at the certificate's files and its validity."""

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class SecureTarget:
    """What a channel shows to a server, and the name that the server's certificate must carry."""

    credentials: grpc.ChannelCredentials
    server_name: str


class ClusterTls:
    """Mutual TLS between the processes of one cluster: both ends show a certificate of the cluster's authority.

    A server reads its files at every handshake, a channel when it is opened, so that replaced files hold for the next
    connection. Connections that stand are left alone.
    """

    def __init__(self, watched: WatchedCredentials) -> None:
        self.watched = watched

    @property
    def identity(self) -> PeerIdentity:
        return self.watched.identity

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of a server, which demands a certificate of the cluster's authority of its callers."""
        shown = self.watched.current()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            latest = self.watched.current()
            if latest is shown:
                return None
            shown = latest
            return _configuration(latest)

        # None stands for no change, which the types do not know.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", changed)
        return grpc.dynamic_ssl_server_credentials(_configuration(shown), fetch, require_client_authentication=True)

    async def watch(self) -> None:
        """Log what an operator should know of the certificate, whenever that changes, until cancelled."""
        said, known = "", self.watched.current()
        path = str(self.watched.files.chain)
        while True:
            warning, latest = self.watched.warning(), self.watched.current()
            if latest is not known:
                known = latest
                note(EventKind.CERTIFICATE, Outcome.DONE, path, who=HOST, detail="read again")
            if warning and warning != said and self.watched.fault:
                note(EventKind.CERTIFICATE, Outcome.REFUSED, path, who=HOST, detail=warning)
            if warning and warning != said:
                _log.warning("%s", warning)
            said = warning
            await asyncio.sleep(WATCH_S)

    def target(self, role: PeerRole, process_id: str = "") -> SecureTarget:
        """Return how to call one process of this cluster, or any of a role.

        The name that is demanded stands for role and id and not for a host, so that TLS itself ends the handshake with
        anybody else, before a word is said, at whatever address it was found.

        Raises:
            PeerIdentityError: no certificate can carry this id.
        """
        own = self.watched.current()
        peer = PeerIdentity(self.identity.cluster, role, process_id)
        credentials = grpc.ssl_channel_credentials(own.authorities, own.key, own.chain)
        return SecureTarget(credentials, peer.server_name)


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(credentials.key, credentials.chain)], credentials.authorities)


HANDSHAKE_PROBLEMS = (
    ("Hostname Verification Check failed", "its certificate is that of somebody else"),
    ("certificate has expired", "its certificate has expired"),
    ("certificate is not yet valid", "its certificate is not valid yet"),
    ("CERTIFICATE_VERIFY_FAILED", "none of the authorities in tls.ca has signed its certificate"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
    ("Socket closed", "it closed the connection; if it runs, it does not accept the certificate of this process"),
    ("Connection reset", "it closed the connection; if it runs, it does not accept the certificate of this process"),
)
"""Parts of what gRPC says of a handshake that failed, with what they mean. The first that occurs counts."""


def handshake_problem(error: grpc.aio.AioRpcError) -> str:
    """Return in words why the two ends of a connection with mutual TLS do not accept each other.

    Empty if the call failed for another reason.
    """
    said = error.details() or ""
    match error.code():
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return said
        case grpc.StatusCode.UNAVAILABLE:
            return next((meaning for sign, meaning in HANDSHAKE_PROBLEMS if sign in said), "")
    return ""
