"""A development authority of one cluster, in a directory, and the certificates that it signs for processes."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.identity.certificates import CertificateError, ProcessCertificate
from services.identity.peer import NAME_SUFFIX, PeerIdentity, PeerIdentityError, PeerRole

AUTHORITY = "ca"
"""Name of the authority's files in its directory, without `.pem` and `.key`."""
ORGANIZATION = "slos-serve cluster"
CLOCK_SKEW = dt.timedelta(minutes=5)
"""Time before its making from which a certificate is valid, for hosts whose clocks are behind."""
SERVERS = frozenset({PeerRole.ROUTER, PeerRole.WORKER, PeerRole.GATEWAY, PeerRole.REDIS})
CLIENTS = frozenset(PeerRole) - {PeerRole.REDIS}
HOST_NAME = re.compile(
    r"(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class AuthorityError(Exception):
    """The directory of an authority cannot be used."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that lies in the directory of an authority."""

    path: Path
    """PEM file of the certificate; the key lies beside it, as `.key`."""
    certificate: ProcessCertificate
    hosts: tuple[str, ...]
    """DNS names and addresses at which clients reach the process."""

    @property
    def key(self) -> Path:
        return self.path.with_suffix(".key")


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates for the processes of one cluster, with a key on the curve P-256."""

    directory: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, directory: Path, cluster: str, lifetime: dt.timedelta, now: dt.datetime) -> Authority:
        """Make the authority of a cluster in a directory, which is made too and which only its owner can read.

        Raises:
            AuthorityError: the directory has one already.
            PeerIdentityError: the cluster's name cannot stand in a certificate.
        """
        PeerIdentity(cluster, PeerRole.ROUTER)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _file(directory).exists():
            raise AuthorityError(f"{directory} holds an authority already; `certs renew` renews what it has signed")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
                x509.NameAttribute(NameOID.COMMON_NAME, cluster),
            ]
        )
        certificate = (
            _builder(subject, subject, key.public_key(), now, now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(directory, AUTHORITY, certificate, key)
        return cls(directory, certificate, key)

    @classmethod
    def read(cls, directory: Path) -> Authority:
        """Read the authority of a directory.

        Raises:
            AuthorityError: there is none that can be read.
        """
        path = _file(directory)
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            key = load_pem_private_key(path.with_suffix(".key").read_bytes(), password=None)
        except FileNotFoundError as error:
            raise AuthorityError(f"{directory} holds no authority; `certs create` makes one") from error
        except (OSError, ValueError, TypeError) as error:
            raise AuthorityError(f"{path}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not _cluster(certificate):
            raise AuthorityError(f"{path} is no authority that `certs create` made")
        return cls(directory, certificate, key)

    @property
    def file(self) -> Path:
        """PEM file of the authority's own certificate, which every process of the cluster trusts."""
        return _file(self.directory)

    @property
    def cluster(self) -> str:
        return _cluster(self.certificate)

    def issue(self, identity: PeerIdentity, hosts: Sequence[str], lifetime: dt.timedelta, now: dt.datetime) -> Issued:
        """Sign a certificate for a process and write it with a new key; an older one of the same identity is replaced.

        Args:
            hosts: DNS names and IP addresses by which clients reach it.
            lifetime: time for which it is valid, cut at the end of the authority's own validity.

        Raises:
            AuthorityError: a host is neither a name nor an address, or has a name that stands for an identity.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        # The name that a Valkey which maps certificates to users takes for the user.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.role.value)])
        expires = min(now + lifetime, self.certificate.not_valid_after_utc)
        names = [
            x509.UniformResourceIdentifier(identity.uri),
            *map(x509.DNSName, identity.names),
            *map(_host_name, hosts),
        ]
        purposes = [
            *([ExtendedKeyUsageOID.SERVER_AUTH] if identity.role in SERVERS else ()),
            *([ExtendedKeyUsageOID.CLIENT_AUTH] if identity.role in CLIENTS else ()),
        ]
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), now, expires)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        return _issued(_write(self.directory, "-".join(filter(None, (identity.role, identity.id))), certificate, key))

    def issued(self) -> Iterator[Issued]:
        """Yield the certificates of processes in the directory, ordered by name.

        Raises:
            AuthorityError: a file is none.
        """
        for path in sorted(self.directory.glob("*.pem")):
            if path != self.file:
                yield _issued(path)

    def renew(self, lifetime: dt.timedelta | None, now: dt.datetime) -> list[Issued]:
        """Sign every certificate in the directory anew, for the same identity and hosts and with a new key.

        Args:
            lifetime: time for which they are valid; None: as long as the old ones were.

        Raises:
            AuthorityError: the authority itself has expired, or a file in the directory is no certificate.
        """
        if now >= self.certificate.not_valid_after_utc:
            raise AuthorityError(f"the authority in {self.directory} has expired; make another one in a new directory")
        return [
            self.issue(
                old.certificate.identity,
                old.hosts,
                lifetime or dt.timedelta(seconds=old.certificate.lifetime_s) - CLOCK_SKEW,
                now,
            )
            for old in self.issued()
        ]


def machine_hosts() -> tuple[str, ...]:
    """Return the names by which this machine is reached: its loopback, and its own name."""
    return tuple(dict.fromkeys((*LOCAL_HOSTS, socket.gethostname())))


def _file(directory: Path) -> Path:
    return directory / f"{AUTHORITY}.pem"


def _cluster(authority: x509.Certificate) -> str:
    """Return the cluster that an authority signs for; empty if it is not one of ours."""
    subject = authority.subject
    organizations = [entry.value for entry in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    names = [str(entry.value) for entry in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return names[0] if organizations == [ORGANIZATION] and len(names) == 1 else ""


def _issued(path: Path) -> Issued:
    try:
        content = path.read_bytes()
        leaf = x509.load_pem_x509_certificate(content)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        certificate = ProcessCertificate.from_pem(content)
    except (OSError, ValueError, x509.ExtensionNotFound, CertificateError, PeerIdentityError) as error:
        raise AuthorityError(f"{path} is no certificate of a process: {error}") from error
    hosts = [name for name in names.get_values_for_type(x509.DNSName) if not name.endswith(f".{NAME_SUFFIX}")]
    hosts += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return Issued(path, certificate, tuple(hosts))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, expires: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(expires)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        if not HOST_NAME.fullmatch(host) or f".{host}".lower().endswith(f".{NAME_SUFFIX}"):
            raise AuthorityError(f"{host!r} is neither an address nor a DNS name that a host may have") from None
        return x509.DNSName(host)


def _write(directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Path:
    """Write a certificate and its key, each whole at once and readable by the owner only, and return the former's file.

    A process that reads between the two finds a key that does not fit, and keeps what it has until it looks again.
    """
    path = directory / f"{name}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for target, content in ((path.with_suffix(".key"), private), (path, certificate.public_bytes(Encoding.PEM))):
        # `mkstemp` makes files of mode 0600.
        descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name}")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).replace(target)
    return path
