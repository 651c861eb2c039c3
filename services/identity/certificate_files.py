"""The files of a process's certificate, which may be replaced while it runs."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.identity.certificates import CertificateError, ProcessCertificate, check_key, check_signed
from services.identity.peer import PeerIdentity, PeerIdentityError
from services.identity.regular_file import read_regular_file, stamp

LAST_PART = 0.2
"""Part of a certificate's validity, at its end, in which it should have been replaced: a fifth leaves 6 of 30 days."""

MAX_FILE_BYTES = 1024 * 1024
"""Size of the largest file that is read (chosen: hundreds of certificates fit)."""

_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, ...], ...]


class CertificateFileError(CertificateError):
    """A file cannot be used; the message names its option."""


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a process finds what it needs to show who it is and to check others, and what these files are called."""

    authorities: Path
    """PEM file of the authorities that sign for the cluster."""
    chain: Path
    """PEM file of the process's own certificate, with those between it and an authority."""
    key: Path
    """PEM file of the private key."""
    section: str = "tls"
    """Section of the configuration that names them, as `ca`, `certificate` and `key`."""

    def read(self, now: dt.datetime) -> Credentials:
        """Read and check all three.

        Raises:
            CertificateFileError: one cannot be read, does not fit the others, states no identity, or has expired.
        """
        authorities, chain, key = (
            self._content(option, path)
            for option, path in (("ca", self.authorities), ("certificate", self.chain), ("key", self.key))
        )
        try:
            certificate = ProcessCertificate.from_pem(chain)
        except (CertificateError, PeerIdentityError) as error:
            raise self._error("certificate", self.chain, error) from error
        try:
            check_key(chain, key)
        except CertificateError as error:
            raise self._error("key", self.key, error) from error
        try:
            check_signed(chain, authorities)
        except CertificateError as error:
            raise self._error("certificate", self.chain, f"{error} ({self.section}.ca: {self.authorities})") from error
        if certificate.remaining_s(now) <= 0:
            raise self._error("certificate", self.chain, f"it expired at {certificate.not_after:%Y-%m-%d %H:%M} UTC")
        if now < certificate.not_before:
            raise self._error(
                "certificate", self.chain, f"not valid before {certificate.not_before:%Y-%m-%d %H:%M} UTC"
            )
        return Credentials(authorities, chain, key, certificate)

    def stamp(self) -> _Stamp:
        """Return what changes whenever a file is replaced; empty while one is missing."""
        found = tuple(stamp(path) for path in (self.authorities, self.chain, self.key))
        return found if all(found) else ()

    def _content(self, option: str, path: Path) -> bytes:
        try:
            return read_regular_file(path, MAX_FILE_BYTES)
        except OSError as error:
            raise self._error(option, path, error.strerror or str(error)) from error

    def _error(self, option: str, path: Path, what: object) -> CertificateFileError:
        return CertificateFileError(f"{self.section}.{option}: {path}: {what}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process shows to others and checks them by. All bytes are PEM."""

    authorities: bytes
    chain: bytes
    key: bytes
    certificate: ProcessCertificate

    @property
    def identity(self) -> PeerIdentity:
        return self.certificate.identity


class WatchedCredentials:
    """The credentials of this process, read again when their files have changed.

    Files that cannot be used are logged once, and what was read before stays. gRPC asks from threads of its own.
    """

    def __init__(self, files: CertificateFiles, now: Callable[[], dt.datetime] = _utc_now) -> None:
        """Read the files.

        Raises:
            CertificateFileError: they cannot be used.
        """
        self.files = files
        self._now = now
        self._lock = threading.Lock()
        self._stamp = files.stamp()
        self._credentials = files.read(now())
        self.fault = ""
        """Why the files, as they are now, are not used; empty if they are."""

    @property
    def identity(self) -> PeerIdentity:
        """Identity of this process, which no replacement of its certificate changes."""
        return self._credentials.identity

    def current(self) -> Credentials:
        """Return what is in the files, or what was in them when they could last be used."""
        with self._lock:
            stamp = self.files.stamp()
            if stamp != self._stamp:
                self._stamp = stamp
                self._read_again()
            return self._credentials

    def warning(self) -> str:
        """Return what an operator should know of these credentials; empty if all is well."""
        certificate = self.current().certificate
        left_s = certificate.remaining_s(self._now())
        name = f"{self.files.section}.certificate"
        if left_s <= 0:
            return (
                f"{name} expired at {certificate.not_after:%Y-%m-%d %H:%M} UTC: nobody accepts new connections with it"
            )
        if self.fault:
            return f"the replaced certificate is not used: {self.fault}"
        if left_s < LAST_PART * certificate.lifetime_s:
            return f"{name} expires at {certificate.not_after:%Y-%m-%d %H:%M} UTC and has not been replaced yet"
        return ""

    def _read_again(self) -> None:
        try:
            found = self.files.read(self._now())
            if found.identity != self.identity:
                raise CertificateFileError(
                    f"{self.files.section}.certificate: {self.files.chain}: it is that of {found.identity}, "
                    f"and this process is {self.identity}"
                )
        except CertificateFileError as error:
            self.fault = str(error)
            _log.warning("the certificate that is in use stays: %s", error)
            return
        self.fault = ""
        self._credentials = found
        until = found.certificate.not_after
        _log.info("a new certificate of %s is in use, valid until %s UTC", found.identity, f"{until:%Y-%m-%d %H:%M}")
