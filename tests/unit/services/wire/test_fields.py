"""Enum members and dataclasses on their way into messages and out of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pytest

from services.wire.error import WireError
from services.wire.fields import WireEnum, dataclass_from_wire
from slos_serve.v1 import worker_pb2


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


COLOURS = WireEnum("paint.colour", "colour", {Colour.RED: 3, Colour.BLUE: 5}, also_read={0: Colour.BLUE})


def test_every_member_comes_back() -> None:
    assert [COLOURS.from_wire(COLOURS.to_wire(colour)) for colour in Colour] == list(Colour)
    assert COLOURS.to_wire(Colour.RED) == 3


def test_a_number_that_is_only_read_is_never_written() -> None:
    assert COLOURS.from_wire(0) is Colour.BLUE
    assert COLOURS.to_wire(Colour.BLUE) == 5


def test_an_unknown_number_names_its_field() -> None:
    with pytest.raises(WireError, match="unknown colour 4") as raised:
        COLOURS.from_wire(4)
    assert raised.value.field == "paint.colour"


def test_a_dataclass_takes_the_fields_that_it_has() -> None:
    @dataclass(frozen=True)
    class Blocks:
        kv_blocks_total: int
        kv_blocks_leased: int

    message = worker_pb2.WorkerLoad(kv_blocks_total=40, kv_blocks_leased=7, running_requests=2)
    assert dataclass_from_wire(Blocks, message) == Blocks(40, 7)
