"""HTTP proxies that the environment names, and who is reached past them."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
"""Hosts on this machine, as libraries compare them with `no_proxy`: gRPC reads networks, others only names."""
EXCEPTIONS = ("no_proxy", "NO_PROXY")
GRPC_EXCEPTIONS = "no_grpc_proxy"
"""Variable that gRPC reads in place of `no_proxy` where it is set."""


def reach_directly(environment: MutableMapping[str, str], hosts: Iterable[str] = ()) -> None:
    """Have this process and its children reach this machine, and the given hosts too, past any proxy.

    On company machines `http_proxy` is set for everything, and gRPC then asks the proxy even for 127.0.0.1.
    """
    if not any(name.lower().endswith("_proxy") and value for name, value in environment.items()):
        return
    wanted = (*LOOPBACK_HOSTS, *(host.strip("[]") for host in hosts))
    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    for name in EXCEPTIONS:
        environment[name] = _with(exceptions, wanted)
    if GRPC_EXCEPTIONS in environment:
        environment[GRPC_EXCEPTIONS] = _with(environment[GRPC_EXCEPTIONS], wanted)


def _with(exceptions: str, hosts: Iterable[str]) -> str:
    known = [host.strip() for host in exceptions.split(",") if host.strip()]
    return ",".join(dict.fromkeys((*known, *hosts)))
