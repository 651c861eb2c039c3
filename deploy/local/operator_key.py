"""Whether the credential of a launcher lets it see which workers are ready, told before anything is started."""

from __future__ import annotations

from datetime import datetime

from deploy.local.errors import ClusterStartError
from services.config.auth import AuthSettings
from services.config.environment import API_KEY_VARIABLE
from services.identity.api_key import WRITTEN
from services.identity.key_file import KeyFileError, read_keys
from services.identity.principal import Right
from services.identity.refusal import CredentialError

WANTED = f"set {API_KEY_VARIABLE} to the API key of an operator"
"""What whoever starts a cluster is told to do, if its router does not say to them which workers are ready."""


def check_operator_key(auth: AuthSettings, credential: str | None, now: datetime) -> None:
    """Check that a router with these options will tell its state to the holder of a credential.

    A credential whose validity only a running router can tell (a token, or a key that may be in Redis) is let through.

    Args:
        credential: API key or token; None: there is none.

    Raises:
        ClusterStartError: there is no credential, or it does not carry the right, or the file of keys cannot be read.
    """
    if not auth.on:
        return
    if credential is None:
        raise ClusterStartError(f"routers with [auth] do not say to strangers which workers are ready; {WANTED}")
    if auth.keys_file is None or auth.keys_in_redis or auth.jwt_jwks:
        return
    try:
        keys = read_keys(auth.keys_file)
    except KeyFileError as error:
        raise ClusterStartError(f"auth.keys_file: {error}") from error
    written = WRITTEN.fullmatch(credential)
    key = None if written is None else keys.get(written["id"])
    try:
        may = key is not None and key.check(credential, now).may(Right.OBSERVE)
    except CredentialError:
        may = False
    if not may:
        whose = "not a valid key" if key is None else f"that of a {', '.join(sorted(key.roles))}, or not valid"
        raise ClusterStartError(f"{API_KEY_VARIABLE} is {whose}, by {auth.keys_file}; {WANTED}")
