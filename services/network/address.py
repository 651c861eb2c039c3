"""Addresses at which servers listen and are reached: host and port."""

from __future__ import annotations

import errno
import ipaddress
import socket

LOOPBACK = "127.0.0.1"
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

    A wildcard host is replaced by `advertise_host` or, without one, by the name of this machine; by its loopback
    address if not even the machine itself can resolve that name.
    """
    if advertise_host or host not in WILDCARD_HOSTS:
        return join_address(advertise_host or host, port)
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, port)
    except OSError:
        return local_address(host, port)
    return join_address(name, port)


def local_address(host: str, port: int) -> str:
    """Return the host:port at which programs on this machine reach a server that listens on `host`."""
    if host not in WILDCARD_HOSTS:
        return join_address(host, port)
    return join_address("::1" if ":" in host and _has_ipv6() else LOOPBACK, port)


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine reach a server that listens on `host`. A name must say so itself."""
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Other names are not looked up: what they stand for may change.
        return host == "localhost"


def peer_host(peer: str) -> str:
    """Return the host of a gRPC peer such as `ipv4:127.0.0.1:40000`: a client may open any number of ports."""
    return peer.rpartition(":")[0] if peer.startswith("ip") else peer


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
            return LOOPBACK
        return str(probe.getsockname()[0])


def check_address(host: str, port: int) -> None:
    """Fail early, and with the reason, if no server could listen at this address now.

    Raises:
        AddressInUseError: another process listens there.
        BindError: the address is not one of this machine, or not allowed.
    """
    listening_socket(host, port, backlog=1).close()


def listening_socket(host: str, port: int, backlog: int) -> socket.socket:
    """Return a socket that listens at an address; `::` takes IPv4 as well, and port 0 is a free one.

    A host name with several addresses is listened to at the first that can be had, unless another process listens at
    one of them.

    Raises:
        AddressInUseError: another process listens there.
        BindError: the address is not one of this machine, or not allowed.
    """
    address = join_address(host, port)
    failure = OSError("the host has no address")
    listening: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BindError(address, error.strerror or str(error)) from error
    for family, kind, protocol, _, target in found:
        try:
            another = _listening(socket.socket(family, kind, protocol), target, backlog)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                if listening is not None:
                    listening.close()
                raise AddressInUseError(address) from error
            failure = error
            continue
        if listening is None:
            listening = another
        else:
            another.close()
    if listening is None:
        raise BindError(address, failure.strerror or str(failure)) from failure
    return listening


def _listening(made: socket.socket, target: tuple[object, ...], backlog: int) -> socket.socket:
    """Make a socket listen, and return it. It is closed if it cannot."""
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(target)
        # When both sockets allow reuse, Linux reports only here that another one listens.
        made.listen(backlog)
    except OSError:
        made.close()
        raise
    return made


def _has_ipv6() -> bool:
    """Return whether this machine has an IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
