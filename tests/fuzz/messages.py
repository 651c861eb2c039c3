"""Protobuf messages that are valid but for a few fields, and bytes that are nearly messages."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.fuzz import values

DEEPEST = 6
"""Levels of messages that a made-up message has at most."""
ENUMS = (0, 1, 2, 3, 7, -1, 2**31 - 1)
UNKNOWN_FIELDS = (b"\xf8\xff\x7f\x01", b"\xfa\xff\x7f\x03abc", b"\x9b\x06" * 60, b"\xfd\xff\x7f\x00\x00\x80\x7f")
"""Fields that no message has: a number, a text, groups that nest and do not end, and a float."""


def mutated(message: Message, rng: Random) -> bytes:
    """Return the bytes of a message of which up to four fields were changed, and which may be damaged after that."""
    changed = type(message)()
    changed.CopyFrom(message)
    for _ in range(rng.randrange(5)):
        _edit(changed, rng, DEEPEST)
    content = changed.SerializeToString()
    chance = rng.random()
    if chance < 0.15:
        return values.damaged(content, rng, message.SerializeToString())
    if chance < 0.2:
        return content + rng.choice(UNKNOWN_FIELDS)
    return content


def _edit(message: Any, rng: Random, depth: int) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    present = [field for field, _ in message.ListFields()]
    field: FieldDescriptor = rng.choice(present if present and rng.random() < 0.5 else fields)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        _put_entries(getattr(message, field.name), kind, rng)
    elif field.is_repeated:
        _edit_list(getattr(message, field.name), field, rng, depth)
    elif kind is None:
        if rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, scalar(field, rng))
    elif rng.random() < 0.1:
        message.ClearField(field.name)
    else:
        child = getattr(message, field.name)
        child.SetInParent()
        if depth:
            _edit(child, rng, depth - 1)


def _edit_list(elements: Any, field: FieldDescriptor, rng: Random, depth: int) -> None:
    if len(elements) and rng.random() < 0.5:
        if field.message_type is not None:
            _edit(rng.choice(elements), rng, depth - 1 if depth else 0)
        else:
            elements[rng.randrange(len(elements))] = scalar(field, rng)
        return
    if rng.random() < 0.1:
        del elements[:]
    number = values.count(rng)
    if field.message_type is None:
        one = [scalar(field, rng) for _ in range(min(number, 3))]
        elements.extend((one * (number // 3 + 1))[:number])
        return
    for _ in range(min(number, 3)):
        added = elements.add()
        if depth:
            _edit(added, rng, depth - 1)
    if len(elements):
        last = type(elements[-1])()
        last.CopyFrom(elements[-1])
        size = max(1, last.ByteSize())
        # A few megabytes are enough: what is longer, gRPC itself refuses.
        elements.extend([last] * min(max(0, number - 3), 4_000_000 // size))


def _put_entries(entries: Any, kind: Any, rng: Random) -> None:
    key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
    for _ in range(rng.choice((1, 2, 5, 300))):
        if value.message_type is None:
            entries[scalar(key, rng)] = scalar(value, rng)
        else:
            entries[scalar(key, rng)].SetInParent()


def scalar(field: FieldDescriptor, rng: Random) -> Any:
    """Return a value that a field can hold, more often odd than not."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice(values.INT32)
        case FieldDescriptor.CPPTYPE_INT64:
            return rng.choice(values.INT64)
        case FieldDescriptor.CPPTYPE_UINT32:
            return rng.choice(values.UINT32)
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice(values.UINT64)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice(ENUMS)
        case FieldDescriptor.CPPTYPE_STRING:
            text = values.text(rng)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case _:
            return rng.choice(values.FLOATS)
