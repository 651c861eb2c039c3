"""Certificates of processes: read from PEM, and checked before anything depends on them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from services.identity.peer import PeerIdentity


class CertificateError(ValueError):
    """A certificate, a key or an authority cannot be used; the message goes on after the name of its option."""


@dataclass(frozen=True, slots=True)
class ProcessCertificate:
    """The certificate with which a process shows who it is."""

    identity: PeerIdentity
    not_before: dt.datetime
    """Time from which it is valid."""
    not_after: dt.datetime
    """Time at which it expires."""

    @classmethod
    def from_pem(cls, chain: bytes) -> ProcessCertificate:
        """Read the first certificate of a chain.

        Raises:
            CertificateError: it is no certificate.
            PeerIdentityError: it states no identity.
        """
        leaf = _certificates(chain)[0]
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        except ValueError as error:
            raise CertificateError(f"its extensions cannot be read: {error}") from error
        return cls(PeerIdentity.from_uris(uris), leaf.not_valid_before_utc, leaf.not_valid_after_utc)

    def remaining_s(self, now: dt.datetime) -> float:
        """Return the seconds until it expires; negative once it has."""
        return (self.not_after - now).total_seconds()

    @property
    def lifetime_s(self) -> float:
        """Seconds from the first to the last moment of its validity."""
        return (self.not_after - self.not_before).total_seconds()


def check_key(chain: bytes, key: bytes) -> None:
    """Check that a private key is that of the first certificate of a chain.

    Raises:
        CertificateError: it is not, or cannot be read without a password.
    """
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError("it is no private key in PEM, or needs a password") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != _certificates(chain)[0].public_key().public_bytes(*form):
        raise CertificateError("it is not the key of the certificate")


def check_signed(chain: bytes, authorities: bytes) -> None:
    """Check that one of several authorities has signed a chain's first certificate, by way of the others in the chain.

    Raises:
        CertificateError: none has.
    """
    leaf, *between = _certificates(chain)
    trusted = _certificates(authorities)
    seen = [leaf]
    while not any(_signed(seen[-1], authority) for authority in trusted):
        above = next((one for one in between if one not in seen and _signed(seen[-1], one)), None)
        if above is None:
            raise CertificateError("none of the authorities that are trusted has signed it")
        seen.append(above)


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _certificates(pem: bytes) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateError("it holds no certificate in PEM") from error
