"""Texts that must not be found again anywhere, and a search that knows in how many ways they may be written."""

from __future__ import annotations

import base64
import gzip
import pickle
import secrets
import struct
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from tests.support.tiny_model import FIRST_BYTE

SHORTEST_BYTES = 10
"""Bytes of a form at least: shorter ones would be found by chance."""
_ALPHABET = "".join(sorted(ByteLevel.alphabet()))


@dataclass(frozen=True, slots=True)
class Canary:
    """Something secret, as text or as token ids, and what it was used as."""

    name: str
    text: str = ""
    token_ids: tuple[int, ...] = ()

    def forms(self) -> dict[bytes, str]:
        """Every way in which it may be written, with what the way is called."""
        written = (*_of_text(self.text), *_of_token_ids(self.token_ids))
        return {content: how for how, content in written if len(content) >= SHORTEST_BYTES}


@dataclass(slots=True)
class Flock:
    """All canaries of a test. Each is known by a word that occurs nowhere else."""

    canaries: list[Canary] = field(default_factory=list)

    def text(self, name: str) -> str:
        """A new text. It is so short that a message which shows only the beginning of a value shows it whole."""
        text = f"zq{secrets.token_hex(9)}"
        self.know(name, text)
        return text

    def token_ids(self, name: str, count: int = 16) -> list[int]:
        """A new prompt in token ids of the tiny model."""
        ids = [300 + secrets.randbelow(700) for _ in range(count)]
        self.canaries.append(Canary(name, token_ids=tuple(ids)))
        return ids

    def know(self, name: str, text: str) -> None:
        """Look for a text that somebody else made up."""
        self.canaries.append(Canary(name, text))

    def know_output(self, name: str, text: str, token_ids: Sequence[int]) -> None:
        """Look for what an engine wrote. Pieces of it count too: a stream is told piece by piece."""
        assert len(token_ids) >= 8
        self.canaries.append(Canary(name, text, tuple(token_ids[:8])))

    def found_in(self, places: Iterable[tuple[str, bytes]]) -> list[str]:
        """Where canaries are, and how they are written there."""
        forms = [(canary.name, how, form) for canary in self.canaries for form, how in canary.forms().items()]
        return [
            f"{name} as {how} in {place}" for place, content in places for name, how, form in forms if form in content
        ]


def files_below(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Every file, also what is compressed in it, by its path and its content."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            yield str(path), content
            yield from ((f"{path} ({how})", unpacked) for how, unpacked in _unpacked(content))


def _unpacked(content: bytes) -> Iterator[tuple[str, bytes]]:
    if content[:2] == b"\x1f\x8b":
        yield "gunzipped", gzip.decompress(content)
    elif content[:1] == b"\x78":
        try:
            yield "inflated", zlib.decompress(content)
        except zlib.error:
            return


def _of_text(text: str) -> Iterator[tuple[str, bytes]]:
    if not text:
        return
    plain = text.encode()
    yield "text", plain
    yield "UTF-16", text.encode("utf-16-le")
    yield from _of_bytes("text", plain)
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in text).encode()
    yield "JSON escapes", escaped
    yield "JSON escapes in capitals", escaped.upper().replace(b"\\U", b"\\u")
    yield "per cent escapes", "".join(f"%{byte:02x}" for byte in plain).encode()
    yield "per cent escapes in capitals", "".join(f"%{byte:02X}" for byte in plain).encode()
    yield "quoted for a URL", urllib.parse.quote(text).encode()
    yield "Python escapes", repr(text)[1:-1].encode()
    yield "backwards", text[::-1].encode()
    if text.isascii() and text.isalnum():
        yield from _of_token_ids(tuple(_token_id(byte) for byte in plain))


def _of_token_ids(token_ids: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    if not token_ids:
        return
    for separator in (", ", ",", " ", "\n", " ,", "_", "-", "\\n"):
        yield f"token ids by {separator!r}", separator.join(map(str, token_ids)).encode()
    for name, letter in (("int16", "h"), ("int32", "i"), ("int64", "q"), ("float32", "f"), ("float64", "d")):
        packed = struct.pack(f"<{len(token_ids)}{letter}", *token_ids)
        yield f"token ids in {name}", packed
        yield from _of_bytes(f"token ids in {name}", packed)
    varints = b"".join(map(_varint, token_ids))
    yield "token ids in protobuf", varints
    yield from _of_bytes("token ids in protobuf", varints)
    # Between the opcode that begins a list and those that end it stand the items, as they do in every pickle.
    pickled = b"".join(pickle.dumps(token_id, protocol=2)[2:-1] for token_id in token_ids)
    yield "pickled token ids", pickled
    yield from _of_bytes("pickled token ids", pickled)


def _of_bytes(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield f"{name} in hexadecimal", content.hex().encode()
    yield f"{name} in HEXADECIMAL", content.hex().upper().encode()
    for offset in range(3):
        # What stands before moves the groups of three; the first and the last group mix with what is beside.
        for how, encode in (("base64", base64.b64encode), ("base64 for URLs", base64.urlsafe_b64encode)):
            encoded = encode(b"\0" * offset + content)
            yield f"{name} in {how}", encoded[4 if offset else 0 : len(encoded) // 4 * 4 - 4]


def _token_id(byte: int) -> int:
    return FIRST_BYTE + _ALPHABET.index(chr(byte))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
