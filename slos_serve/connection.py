"""The connection from a client to a router: encryption, keep-alive and limits."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
INITIAL_RECONNECT_S = 0.1
MAX_RECONNECT_S = 2.0
CONNECT_S = 3.0
"""Seconds for a connection with its TLS handshake, over long distances or to a busy router, until another is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """An encrypted connection. All certificates and keys are PEM."""

    root_certificates: bytes | None = None
    """Certificates of the authorities to trust. None: those that the machine trusts."""
    private_key: bytes | None = None
    """Key of `certificate_chain`, which together show who the client is, to routers that ask for it."""
    certificate_chain: bytes | None = None
    """Certificate that shows who the client is, to routers that ask for it."""
    server_name: str = ""
    """The name the router's certificate must carry. Empty: the host of its address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """Probing of a connection: calls to a router that is gone without a word fail after `interval_s` + `timeout_s`."""

    interval_s: float = 10.0
    """Seconds between two probes of an idle connection."""
    timeout_s: float = 5.0
    """Seconds that the answer to a probe may take."""


Options = tuple[tuple[str, int | str], ...]

_SCHEME = re.compile(r"^(dns:(//[^/]*/)?|ipv4:|ipv6:)")
"""What gRPC allows before host:port."""
_NEARBY_DOMAINS = (".localhost", ".local", ".internal", ".svc")


def is_nearby(address: str) -> bool:
    """Return whether a router is on this machine or in its own network, where a proxy for the outside has no place.

    These are loopback, private and link-local addresses, names without a dot, such as containers have, and names in
    domains that exist in private networks only.
    """
    host = _host(address)
    try:
        known = ipaddress.ip_address(host)
    except ValueError:
        host = host.rstrip(".").lower()
        return "." not in host or host.endswith(_NEARBY_DOMAINS)
    return known.is_private or known.is_link_local or known.is_unspecified


def is_loopback(address: str) -> bool:
    """Return whether a router is on this machine, so that nobody else can listen on the way to it."""
    address = address.strip()
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    # gRPC may be told to ask a name server of its own (`dns://server/name`), which can say anything of `localhost`.
    asks_elsewhere = re.match(r"dns://[^/]", address) is not None
    host = _host(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        name = host.rstrip(".").lower()
        return not asks_elsewhere and (name == "localhost" or name.endswith(".localhost"))


def _host(address: str) -> str:
    """Return the host of an address as gRPC takes it, without brackets and port."""
    host = _SCHEME.sub("", address.strip())
    return host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host


def channel_options(address: str, keepalive: Keepalive, tls: Tls | None) -> Options:
    """Return the options of gRPC for a channel to the router at `address`."""
    name: Options = (("grpc.ssl_target_name_override", tls.server_name),) if tls is not None and tls.server_name else ()
    return (
        ("grpc.keepalive_time_ms", round(keepalive.interval_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(keepalive.timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", round(INITIAL_RECONNECT_S * 1000)),
        # Of gRPC's options it is this one that bounds how long an attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", round(CONNECT_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(MAX_RECONNECT_S * 1000)),
        *((("grpc.enable_http_proxy", 0),) if is_nearby(address) else ()),
        *name,
    )
