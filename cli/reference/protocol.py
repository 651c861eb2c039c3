"""The description of the gRPC protocol, made from the comments in `proto/`."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from cli.reference.page import table

PROTOS = Path(__file__).resolve().parents[2] / "proto"
PACKAGE = ".slos_serve.v1."
SERVICE, MESSAGE, ENUM = 6, 4, 5
"""Numbers of these lists in FileDescriptorProto, which begin the path of a comment."""
MEMBER = 2
"""Number of the list of methods, fields or values in the descriptor of a service, message or enumeration."""


class MissingCommentError(Exception):
    """Something in the protocol has no comment."""


def protocol_tables(file: str) -> str:
    """Write all services, messages and enumerations of one file of `proto/slos_serve/v1`.

    Raises:
        MissingCommentError: something has no comment.
    """
    return FilePage(_descriptors()[file]).text()


def field_comments(message: str) -> dict[str, str]:
    """Return the comment of every field of a message, by the field's name; nothing if there is no such message."""
    for descriptor in _descriptors().values():
        for index, found in enumerate(descriptor.message_type):
            if found.name == message:
                page = FilePage(descriptor)
                return {
                    field.name: page.comment(MESSAGE, index, MEMBER, number, name=field.name)
                    for number, field in enumerate(found.field)
                }
    return {}


@cache
def _descriptors() -> dict[str, FileDescriptorProto]:
    """Compile the protocol, and return its files with their comments by the last part of their names."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "set")
        sources = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_source_info"]
        subprocess.run([*command, f"--descriptor_set_out={out}", *sources], check=True)
        files = FileDescriptorSet.FromString(out.read_bytes()).file
    return {Path(file.name).stem: file for file in files}


class FilePage:
    """Writes one file of the protocol in Markdown."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self._comments = {
            tuple(location.path): location.leading_comments for location in file.source_code_info.location
        }

    def text(self) -> str:
        parts = [self._service(index, service) for index, service in enumerate(self.file.service)]
        parts += [self._message(index, message) for index, message in enumerate(self.file.message_type)]
        parts += [self._enum(index, enum) for index, enum in enumerate(self.file.enum_type)]
        return "\n".join(parts)

    def comment(self, *path: int, name: str) -> str:
        text = " ".join(self._comments.get(path, "").split())
        if not text:
            raise MissingCommentError(f"{self.file.name}: {name} has no comment")
        return text

    def _service(self, index: int, service: ServiceDescriptorProto) -> str:
        rows = [
            (
                f"`{method.name}`",
                _message_link(method.input_type, streams=method.client_streaming),
                _message_link(method.output_type, streams=method.server_streaming),
                self.comment(SERVICE, index, MEMBER, number, name=f"{service.name}.{method.name}"),
            )
            for number, method in enumerate(service.method)
        ]
        about = self.comment(SERVICE, index, name=service.name)
        return f"### Service {service.name}\n\n{about}\n\n" + table(("call", "request", "answer", "meaning"), rows)

    def _message(self, index: int, message: DescriptorProto) -> str:
        about = self.comment(MESSAGE, index, name=message.name)
        rows = [
            (
                f"`{field.name}`",
                _type(message, field),
                str(field.number),
                self.comment(MESSAGE, index, MEMBER, number, name=f"{message.name}.{field.name}"),
            )
            for number, field in enumerate(message.field)
        ]
        listed = table(("field", "type", "no.", "meaning"), rows) if rows else "It has no fields.\n"
        return f"### {message.name}\n\n{about}\n\n{listed}"

    def _enum(self, index: int, enum: EnumDescriptorProto) -> str:
        rows = [
            (
                f"`{value.name}`",
                str(value.number),
                self.comment(ENUM, index, MEMBER, number, name=value.name),
            )
            for number, value in enumerate(enum.value)
        ]
        about = self.comment(ENUM, index, name=enum.name)
        return f"### {enum.name}\n\n{about}\n\n" + table(("value", "no.", "meaning"), rows)


def _message_link(name: str, *, streams: bool) -> str:
    return ("stream of " if streams else "") + _link(name)


def _link(name: str) -> str:
    short = name.removeprefix(PACKAGE)
    return f"[{short}](#{short.lower()})"


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    if field.type in (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM):
        entry = next((inner for inner in message.nested_type if field.type_name.endswith(f".{inner.name}")), None)
        if entry is not None:
            key, value = entry.field
            return f"map from {_scalar(key)} to {_scalar(value)}"
        name = _link(field.type_name)
    else:
        name = _scalar(field)
    if repeated:
        return f"list of {name}"
    if field.proto3_optional:
        return f"{name}, optional"
    if field.HasField("oneof_index"):
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return name


def _scalar(field: FieldDescriptorProto) -> str:
    return re.sub("^type_", "", FieldDescriptorProto.Type.Name(field.type).lower())
