"""The client side of gRPC over one socket, as far as a load generator needs it.

A generator on a gRPC library costs more for each message than the router that it is to measure. This one reads frames
in bulk; it knows neither compression nor trailers, so a stream has succeeded only if its last message says so.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
MAX_FRAME = 16384
WINDOW = 2**31 - 1
REPLENISH = 2**29
INITIAL_WINDOW = 65535
RECEIVE_BYTES = 1 << 20


class ConnectionLostError(Exception):
    """The server has closed the connection."""


@dataclass(slots=True)
class Stream:
    """One call."""

    number: int
    on_message: Callable[[bytes, float], None]
    """Called with a message and the time at which it was read."""
    on_end: Callable[[], None]
    partial: bytes = b""


@dataclass(slots=True)
class Connection:
    """One HTTP/2 connection with many calls. Non-blocking once open; `receive` when its socket is readable."""

    authority: str
    clock: Callable[[], float]
    streams: dict[int, Stream] = field(default_factory=dict)
    _socket: socket.socket = field(init=False)
    _next: int = 1
    _buffer: bytes = b""
    _consumed: int = 0
    _window: int = INITIAL_WINDOW
    _unsent: bytearray = field(default_factory=bytearray)
    _held: list[bytes] = field(default_factory=list)
    """DATA frames that the server's flow control holds back."""

    def __post_init__(self) -> None:
        host, _, port = self.authority.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # No header table, no push, all windows wide open.
        settings = struct.pack("!HIHIHI", 1, 0, 2, 0, 4, WINDOW)
        update = struct.pack("!I", WINDOW - INITIAL_WINDOW)
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, update))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def call(
        self,
        path: str,
        message: bytes,
        on_message: Callable[[bytes, float], None],
        on_end: Callable[[], None],
        *,
        last: bool = True,
    ) -> Stream:
        """Begin a call with its first message.

        Args:
            last: there will be no other.
        """
        stream = Stream(self._next, on_message, on_end)
        self._next += 2
        self.streams[stream.number] = stream
        self._unsent += _frame(HEADERS, END_HEADERS, stream.number, _headers(path, self.authority))
        self.send(stream, message, last=last)
        return stream

    def send(self, stream: Stream, message: bytes, *, last: bool = False) -> None:
        body = struct.pack("!BI", 0, len(message)) + message
        for start in range(0, len(body), MAX_FRAME):
            piece = body[start : start + MAX_FRAME]
            flags = END_STREAM if last and start + MAX_FRAME >= len(body) else 0
            self._held.append(_frame(DATA, flags, stream.number, piece))
        self.flush()

    def flush(self) -> None:
        """Send what the socket and the server's window take."""
        while self._held and len(self._held[0]) - 9 <= self._window:
            frame = self._held.pop(0)
            self._window -= len(frame) - 9
            self._unsent += frame
        if self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            del self._unsent[:sent]

    def receive(self) -> None:
        """Read what is there and hand it to its streams.

        Raises:
            ConnectionLostError
        """
        try:
            read = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not read:
            raise ConnectionLostError(self.authority)
        now_s = self.clock()
        self._buffer += read
        buffer, at, end = self._buffer, 0, len(self._buffer)
        while end - at >= 9:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if end - at < 9 + length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            number = int.from_bytes(buffer[at + 5 : at + 9], "big")
            at += 9 + length
            self._take(kind, flags, number, buffer[at - length : at], now_s)
        self._buffer = buffer[at:]
        if self._consumed > REPLENISH:
            self._unsent += _frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", self._consumed))
            self._consumed = 0
        self.flush()

    def close(self) -> None:
        self._socket.close()

    def _take(self, kind: int, flags: int, number: int, payload: bytes, now_s: float) -> None:
        match kind:
            case 0:  # DATA
                self._consumed += len(payload)
                stream = self.streams.get(number)
                if stream is not None:
                    for message in _messages(stream, payload):
                        stream.on_message(message, now_s)
            case 4 if not flags & ACK:  # SETTINGS
                self._unsent += _frame(SETTINGS, ACK, 0, b"")
            case 6 if not flags & ACK:  # PING
                self._unsent += _frame(PING, ACK, 0, payload)
            case 8 if number == 0:  # WINDOW_UPDATE
                self._window += int.from_bytes(payload, "big")
            case 7:  # GOAWAY
                raise ConnectionLostError(f"{self.authority}: {payload[8:]!r}")
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            ended = self.streams.pop(number, None)
            if ended is not None:
                ended.on_end()


def _messages(stream: Stream, payload: bytes) -> Iterator[bytes]:
    data = stream.partial + payload if stream.partial else payload
    at = 0
    while len(data) - at >= 5:
        length = int.from_bytes(data[at + 1 : at + 5], "big")
        if len(data) - at < 5 + length:
            break
        yield data[at + 5 : at + 5 + length]
        at += 5 + length
    stream.partial = data[at:]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _headers(path: str, authority: str) -> bytes:
    """HPACK without tables: indexed names where the static table has them, plain values."""

    def text(value: str) -> bytes:
        return bytes((len(value),)) + value.encode()

    return b"".join(
        (
            b"\x83\x86",  # POST, http
            b"\x04" + text(path),
            b"\x01" + text(authority),
            b"\x0f\x10" + text("application/grpc"),
            b"\x00" + text("te") + text("trailers"),
        )
    )
