"""Mutual TLS at the desks where workers claim leases of each other, with the role checked on both sides."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from typing import Any

from services.identity.certificate_files import Credentials, WatchedCredentials
from services.identity.peer import PeerIdentity, PeerIdentityError, PeerRole

_log = logging.getLogger(__name__)


class WorkerDeskTls:
    """Lets workers of one cluster claim leases of each other, and nobody else. See `DeskTls` of the KV port.

    Replaced certificates hold for the next connection.
    """

    def __init__(self, watched: WatchedCredentials) -> None:
        self._watched = watched
        self._made: dict[int, tuple[Credentials, ssl.SSLContext]] = {}

    def server(self) -> ssl.SSLContext:
        """See `DeskTls.server`. The context of the moment is chosen at each handshake, because servers keep theirs."""
        first = self._context(ssl.PROTOCOL_TLS_SERVER)

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, _name: str, _context: ssl.SSLContext) -> None:
            connection.context = self._context(ssl.PROTOCOL_TLS_SERVER)

        first.sni_callback = choose
        return first

    def client(self) -> ssl.SSLContext:
        """See `DeskTls.client`."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def server_name(self, worker_id: str) -> str:
        """See `DeskTls.server_name`. It stands for role and id and not for a host, at whatever address that was found.

        Raises:
            PeerIdentityError: no certificate can carry the id.
        """
        return PeerIdentity(self._watched.identity.cluster, PeerRole.WORKER, worker_id).server_name

    def refusal(self, certificate: Mapping[str, Any] | None) -> str:
        """See `DeskTls.refusal`."""
        names = () if certificate is None else certificate.get("subjectAltName", ())
        try:
            peer = PeerIdentity.from_uris(value for kind, value in names if kind == "URI")
        except PeerIdentityError as error:
            return f"the certificate does not say who claims: {error}"
        cluster = self._watched.identity.cluster
        if (peer.cluster, peer.role) == (cluster, PeerRole.WORKER):
            return ""
        return f"leases are for workers of cluster {cluster}; the certificate is that of {peer}"

    def _context(self, protocol: ssl._SSLMethod) -> ssl.SSLContext:
        """Return a context with the credentials of the moment, the same until they change."""
        credentials = self._watched.current()
        made = self._made.get(protocol)
        if made is not None and made[0] is credentials:
            return made[1]
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            # Python takes a chain from files only; they were read and checked a moment ago.
            context.load_cert_chain(self._watched.files.chain, self._watched.files.key)
            context.load_verify_locations(self._watched.files.authorities)
        except (OSError, ValueError) as error:
            if made is None:
                raise
            _log.warning("the certificate that is in use at the lease desk stays: %s", error)
            return made[1]
        self._made[protocol] = (credentials, context)
        return context
