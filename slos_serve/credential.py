"""The credential that a client sends with its calls: an API key or a token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from slos_serve.connection import Tls, is_loopback

Credential = str | Callable[[], str]
"""A credential is an API key or a JSON Web Token (JWT), or a function that returns the one to send now."""
Metadata = tuple[tuple[str, str], ...]

AUTHORIZATION = "authorization"
_SENDABLE = re.compile(r"[\x21-\x7e]+")


class CredentialError(ValueError):
    """A credential cannot be sent, or must not be sent where it would go. The message never holds the credential."""


class Bearer:
    """Adds a client's credential to the metadata of its calls, and keeps it from everybody who could overhear it."""

    def __init__(
        self, credential: Credential | None, addresses: Iterable[str], tls: Tls | None, *, insecure: bool
    ) -> None:
        """
        Args:
            credential: None: calls carry none but those that are given with a call.
            insecure: send credentials unencrypted to any address.

        Raises:
            CredentialError: the credential cannot be a header, or would be sent unencrypted over a network.
        """
        self._credential = credential
        safe = tls is not None or insecure
        self._overheard_at = "" if safe else next((each for each in addresses if not is_loopback(each)), "")
        if credential is not None:
            self._check_way()
        if isinstance(credential, str):
            _checked(credential)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'without' if self._credential is None else 'with'} a credential>"

    def signed(self, metadata: Metadata) -> Metadata:
        """Return the metadata of a call with the credential; one that is given with the call goes before the client's.

        Raises:
            CredentialError: the credential cannot be a header, or would be sent unencrypted over a network.
        """
        if any(name == AUTHORIZATION for name, _ in metadata):
            self._check_way()
            return metadata
        if self._credential is None:
            return metadata
        found = self._credential if isinstance(self._credential, str) else self._credential()
        return (*metadata, (AUTHORIZATION, f"Bearer {_checked(found)}"))

    def _check_way(self) -> None:
        if self._overheard_at:
            raise CredentialError(
                f"a credential would go unencrypted to {self._overheard_at}, which is not on this machine: "
                "use TLS, or say insecure_credentials=True if nobody can listen on the way"
            )


def _checked(credential: object) -> str:
    """Return a credential that a header can carry.

    Raises:
        CredentialError: it is no such text.
    """
    if not isinstance(credential, str) or not _SENDABLE.fullmatch(credential):
        raise CredentialError(
            "a credential is printable ASCII without blanks; this one is empty or holds something else"
        )
    return credential
