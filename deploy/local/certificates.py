"""The certificates of a local cluster, made anew whenever it starts."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import dataclass
from pathlib import Path

from deploy.certificates import Authority, machine_hosts
from services.config.cluster_tls import TlsSettings
from services.config.environment import variable
from services.config.tls import cluster_tls
from services.identity.peer import PeerIdentity, PeerRole
from services.rpc.tls import ClusterTls

CLUSTER = "local"
LIFETIME = dt.timedelta(days=30)
"""Validity of a local cluster's certificates, as that of `slos-serve certs`; `certs renew` renews them as well."""


@dataclass(frozen=True, slots=True)
class LocalCertificates:
    """A directory with an authority, and a certificate for each process that was asked for."""

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> LocalCertificates:
        """Make an authority, in place of one that an earlier cluster left, and the certificate of the commands here."""
        shutil.rmtree(directory, ignore_errors=True)
        Authority.create(directory, CLUSTER, LIFETIME, dt.datetime.now(dt.UTC))
        made = cls(directory)
        made._options(PeerRole.OPERATOR)
        return made

    def environment(self, role: PeerRole, process_id: str = "") -> dict[str, str]:
        """Return the options by which a process finds its certificate, as environment variables."""
        named = self._options(role, process_id).model_dump()
        return {variable(("tls", name)): str(path) for name, path in named.items()}

    def operator(self) -> ClusterTls:
        """Return what the commands on this machine show to the cluster's routers.

        Raises:
            TlsError: the files are gone or cannot be read.
        """
        files = self.directory / "operator.pem"
        options = TlsSettings(ca=self.directory / "ca.pem", certificate=files, key=files.with_suffix(".key"))
        found = cluster_tls(options, PeerRole.OPERATOR)
        assert found is not None, "all files are named"
        return found

    def _options(self, role: PeerRole, process_id: str = "") -> TlsSettings:
        authority = Authority.read(self.directory)
        identity = PeerIdentity(CLUSTER, role, process_id)
        issued = authority.issue(identity, machine_hosts(), LIFETIME, dt.datetime.now(dt.UTC))
        return TlsSettings(ca=authority.file, certificate=issued.path, key=issued.key)
