"""Addresses at which servers listen and are reached: host and port."""

from __future__ import annotations

import errno
import socket

WILDCARD_HOSTS = ("0.0.0.0", "::", "[::]")  # noqa: S104 -- recognised here, chosen by the operator


class BindError(Exception):
    """A server cannot listen at the address that it was told to use."""

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(f"cannot listen on {address}: {detail}")
        self.address = address
        self.detail = detail


class AddressInUseError(BindError):
    """Another process listens at the address already."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "the address is in use; choose another port, or 0 for a free one")


def join_address(host: str, port: int) -> str:
    """Write host:port, with the brackets that an IPv6 host needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def advertised_address(host: str, port: int, advertise_host: str = "") -> str:
    """Return the host:port at which others reach a server that listens on `host`.

    A wildcard host is replaced by `advertise_host` or, without one, by the name of this machine.
    """
    return join_address(advertise_host or (socket.gethostname() if host in WILDCARD_HOSTS else host), port)


def listening_host(host: str) -> str:
    """Return one address, of this machine, at which a server is reached that listens on `host`.

    A wildcard host is replaced by the address from which this machine reaches others, and by the loopback address if
    it has no route to any.
    """
    if host not in WILDCARD_HOSTS:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # An address that nobody has (RFC 5737). Connecting a datagram socket picks a route and sends nothing.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def check_address(host: str, port: int) -> None:
    """Fail early, and with the reason, if no server could listen at this address now.

    Raises:
        AddressInUseError: another process listens there.
        BindError: the address is not one of this machine, or not allowed.
    """
    address = join_address(host, port)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            # When both sockets allow reuse, Linux reports only here that another one listens.
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(address) from error
        raise BindError(address, error.strerror or str(error)) from error
