"""Addresses of servers: how they are written, checked and advertised."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from services.network.address import (
    AddressInUseError,
    BindError,
    advertised_address,
    check_address,
    join_address,
    listening_host,
)


def test_an_ipv6_host_is_written_in_brackets_once() -> None:
    assert join_address("127.0.0.1", 5) == "127.0.0.1:5"
    assert join_address("::1", 5) == join_address("[::1]", 5) == "[::1]:5"


def test_advertised_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    assert advertised_address("127.0.0.1", 5) == "127.0.0.1:5"
    assert (
        advertised_address("0.0.0.0", 5) == advertised_address("::", 5) == advertised_address("[::]", 5) == "node-7:5"
    )
    assert advertised_address("0.0.0.0", 5, "10.0.0.1") == "10.0.0.1:5"
    assert advertised_address("::1", 5) == "[::1]:5"
    assert advertised_address("127.0.0.1", 5, "fd00::7") == "[fd00::7]:5"


def test_a_server_beside_one_on_every_interface_listens_where_others_find_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Routed(socket.socket):
        def connect(self, address: Any) -> None:
            pass

        def getsockname(self) -> tuple[str, int]:
            return ("10.1.2.3", 40000)

    class Unrouted(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.socket", Routed)
    assert [listening_host(host) for host in ("0.0.0.0", "::")] == ["10.1.2.3"] * 2
    assert [listening_host(host) for host in ("127.0.0.1", "10.9.9.9", "worker-7")] == [
        "127.0.0.1",
        "10.9.9.9",
        "worker-7",
    ]
    monkeypatch.setattr("socket.socket", Unrouted)
    assert listening_host("0.0.0.0") == "127.0.0.1"


@pytest.mark.parametrize("reuse", [False, True])
def test_an_address_is_free_until_somebody_listens_there(reuse: bool) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(AddressInUseError, match=rf"127\.0\.0\.1:{port}: the address is in use"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def test_a_host_that_is_not_ours() -> None:
    with pytest.raises(BindError, match=r"cannot listen on 192\.0\.2\.1:5: ") as raised:
        check_address("192.0.2.1", 5)
    assert not isinstance(raised.value, AddressInUseError)
    with pytest.raises(BindError, match=r"no\.such\.host\.invalid"):
        check_address("no.such.host.invalid", 5)
