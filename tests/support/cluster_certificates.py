"""Certificates of a cluster's processes, made as `slos-serve certs` makes them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from deploy.certificates import Authority, Issued
from services.identity.certificate_files import CertificateFiles, WatchedCredentials
from services.identity.peer import PeerIdentity, PeerRole
from services.rpc.tls import ClusterTls

LIFETIME = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ClusterCertificates:
    """One authority, and whatever it is asked for."""

    authority: Authority

    @classmethod
    def create(cls, directory: Path, cluster: str = "blue") -> ClusterCertificates:
        return cls(Authority.create(directory, cluster, 100 * LIFETIME, dt.datetime.now(dt.UTC) - 10 * LIFETIME))

    def issue(self, role: PeerRole, process_id: str = "", *, expired: bool = False) -> Issued:
        """A certificate for loopback; an expired one expired a day ago."""
        now = dt.datetime.now(dt.UTC) - (2 * LIFETIME if expired else dt.timedelta())
        identity = PeerIdentity(self.authority.cluster, role, process_id)
        return self.authority.issue(identity, ["localhost", "127.0.0.1"], LIFETIME, now)

    def files(self, issued: Issued) -> CertificateFiles:
        return CertificateFiles(self.authority.file, issued.path, issued.key)

    def tls(self, role: PeerRole, process_id: str = "", *, expired: bool = False) -> ClusterTls:
        """What a process of the role has read; of an expired one, while it was valid."""
        files = self.files(self.issue(role, process_id, expired=expired))
        then = dt.datetime.now(dt.UTC) - (1.5 * LIFETIME if expired else dt.timedelta())
        return ClusterTls(WatchedCredentials(files, lambda: then))
