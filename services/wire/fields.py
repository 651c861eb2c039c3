"""Conversion of enum members, and of dataclasses whose fields stand in a message under the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from google.protobuf.message import Message

from services.wire.error import WireError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Member = TypeVar("Member")
Value = TypeVar("Value", bound=int)
Instance = TypeVar("Instance", bound="DataclassInstance")


class WireEnum(Generic[Member, Value]):
    """The members of an enum, each with the number that stands for it in messages."""

    def __init__(
        self, field: str, noun: str, values: Mapping[Member, Value], also_read: Mapping[Value, Member] | None = None
    ) -> None:
        """Make the conversion of one enum.

        Args:
            field: field that an unknown number is reported in.
            noun: noun for a member in that report.
            values: the number of each member.
            also_read: further numbers that are read as a member and never written.
        """
        self._field = field
        self._noun = noun
        self._values = dict(values)
        self._members: dict[int, Member] = dict((also_read or {}).items())
        self._members.update((value, member) for member, value in values.items())

    def to_wire(self, member: Member) -> Value:
        """Return the number that stands for a member."""
        return self._values[member]

    def from_wire(self, value: int) -> Member:
        """Return the member that a number stands for.

        Raises:
            WireError: this version knows no such number.
        """
        try:
            return self._members[value]
        except KeyError:
            raise WireError(self._field, f"unknown {self._noun} {value}") from None


def dataclass_from_wire(kind: type[Instance], message: Message) -> Instance:
    """Return a dataclass with the values that a message has in the fields of the same names."""
    return kind(**{name: getattr(message, name) for name in kind.__dataclass_fields__})
