"""The secret of a lease, which proves that whoever claims it was given its handle."""

from __future__ import annotations

import hmac
import secrets

SECRET_BYTES = 32
"""Number of random bytes in a secret: 256 bits, twice what cannot be guessed."""


def new_secret() -> str:
    """Return a secret that nobody can guess, in letters that need no escaping."""
    return secrets.token_urlsafe(SECRET_BYTES)


def proves(shown: str, secret: str) -> bool:
    """Return whether the secret that was shown is the lease's, in a time that does not depend on where they differ.

    An empty secret proves nothing.
    """
    # Strings may hold anything a stranger can put into JSON, and `compare_digest` takes no strings beyond ASCII.
    same = hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), secret.encode("utf-8", "surrogatepass"))
    return same and bool(secret)
