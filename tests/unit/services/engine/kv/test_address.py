"""Addresses in handles: every TCP port there is, and nothing that is no address."""

from __future__ import annotations

import json

import pytest

from services.engine.kv.address import ClaimAddress


@pytest.mark.parametrize("port", [1, 65535])
def test_every_port_there_is_can_be_claimed_at(port: int) -> None:
    assert ClaimAddress.from_json(json.dumps({"host": "h", "port": port})) == ClaimAddress(host="h", port=port)


def test_a_host_may_be_as_long_as_a_name_in_dns() -> None:
    host = "h" * 253
    assert ClaimAddress.from_json(json.dumps({"host": host, "port": 80})).host == host


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ({"host": "h", "port": 0}, "port: Input should be greater than or equal to 1"),
        ({"host": "h", "port": 65536}, "port: Input should be less than or equal to 65535"),
        ({"host": "h", "port": "80"}, "port: Input should be a valid integer"),
        ({"host": "", "port": 80}, "host: String should have at least 1 character"),
        ({"host": "h" * 254, "port": 80}, "host: String should have at most 253 characters"),
        ({"host": "h", "port": 80, "path": "/"}, "path: Extra inputs are not permitted"),
        ({}, "host: Field required; port: Field required"),
    ],
)
def test_what_is_no_address_is_said_in_one_line(address: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=f"^{fault}$"):
        ClaimAddress.from_json(json.dumps(address))
