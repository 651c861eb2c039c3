"""The refusal of a credential, and why, for logs and metrics but never for the caller."""

from __future__ import annotations

import enum


class Cause(enum.StrEnum):
    """Why a credential was refused."""

    MISSING = "missing"
    """The call carries none."""
    MALFORMED = "malformed"
    """It is written as no credential is."""
    UNKNOWN = "unknown"
    """No such API key exists, or its secret is another."""
    EXPIRED = "expired"
    """It was valid once."""
    UNTRUSTED = "untrusted"
    """The token's signature, key, algorithm, issuer or audience is not what is configured."""
    INCOMPLETE = "incomplete"
    """The token lacks a claim that it needs, or the claim holds what it must not."""


class CredentialError(Exception):
    """A credential is not valid. The cause is for operators: told to the caller, it would help to guess."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause
