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
    listening_socket,
    local_address,
)


def test_an_ipv6_host_is_written_in_brackets_once() -> None:
    assert join_address("127.0.0.1", 5) == "127.0.0.1:5"
    assert join_address("::1", 5) == join_address("[::1]", 5) == "[::1]:5"


def test_advertised_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [])
    assert advertised_address("127.0.0.1", 5) == "127.0.0.1:5"
    assert (
        advertised_address("0.0.0.0", 5) == advertised_address("::", 5) == advertised_address("[::]", 5) == "node-7:5"
    )
    assert advertised_address("0.0.0.0", 5, "10.0.0.1") == "10.0.0.1:5"
    assert advertised_address("::1", 5) == "[::1]:5"
    assert advertised_address("127.0.0.1", 5, "fd00::7") == "[fd00::7]:5"


def test_a_name_that_not_even_this_machine_knows_is_not_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "no.such.host.invalid")
    assert advertised_address("0.0.0.0", 5) == "127.0.0.1:5"
    assert advertised_address("0.0.0.0", 5, "10.0.0.1") == "10.0.0.1:5"


def test_how_this_machine_reaches_its_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_address("0.0.0.0", 5) == "127.0.0.1:5"
    assert local_address("127.0.0.2", 5) == "127.0.0.2:5"
    assert local_address("localhost", 5) == "localhost:5"
    assert local_address("::1", 5) == local_address("[::1]", 5) == "[::1]:5"
    monkeypatch.setattr("services.network.address._has_ipv6", lambda: True)
    assert local_address("::", 5) == local_address("[::]", 5) == "[::1]:5"
    monkeypatch.setattr("services.network.address._has_ipv6", lambda: False)
    assert local_address("::", 5) == "127.0.0.1:5"


def test_a_server_on_every_address_is_reached_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening_socket("::", 0, 1) as listening:
        port = listening.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), timeout=5):
                pass


def test_a_name_is_listened_to_at_the_first_of_its_addresses_that_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(_host: str, port: int, **_: object) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)),
        ]

    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr("socket.getaddrinfo", two)
        with listening_socket("router-name", 0, 1) as listening:
            assert listening.getsockname()[0] == "127.0.0.1"
        with pytest.raises(AddressInUseError, match="router-name"):
            check_address("router-name", other.getsockname()[1])


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
