"""The check that nobody serves strangers by accident: without credentials, servers listen on loopback only."""

from __future__ import annotations

from services.config.auth import AuthSettings
from services.network.address import is_loopback


class ExposedError(Exception):
    """A server would let everybody in who reaches this machine; the message says what to set."""


def check_exposure(auth: AuthSettings, option: str, host: str) -> None:
    """Refuse to listen where strangers may call if no credentials are checked and nobody said that this is intended.

    Args:
        option: name of the option that holds the address, such as `router.host`.
        host: address to listen on.

    Raises:
        ExposedError: strangers could call.
    """
    if auth.on or auth.insecure or is_loopback(host):
        return
    raise ExposedError(
        f"{option} = {host}: whoever reaches this machine could use the cluster, for no credentials are checked; set "
        "auth.keys_file, auth.keys_in_redis or auth.jwt_jwks, or auth.insecure = true if only trusted programs reach it"
    )


def check_worker_exposure(auth: AuthSettings, option: str, host: str, *, shows_certificate: bool) -> None:
    """Refuse to let a worker listen where strangers may call it if it does not look at the certificates of its callers.

    Args:
        option: name of the option that holds the address: `decode_worker.host`, or `engine.vllm.side_channel_host`, at
            which KV caches are claimed.
        host: address to listen on.
        shows_certificate: whether it and its callers show each other certificates.

    Raises:
        ExposedError: strangers could call.
    """
    if shows_certificate or auth.insecure or is_loopback(host):
        return
    raise ExposedError(
        f"{option} = {host}: whoever reaches this machine could give this worker work, claim its KV "
        "caches and read what it answers; set "
        "tls.ca, tls.certificate and tls.key, or auth.insecure = true if only trusted programs reach it"
    )
