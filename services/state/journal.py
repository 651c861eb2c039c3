"""What became of every request: one entry each, written in batches by the router that serves it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import secrets
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypedDict, Unpack, cast

from redis.asyncio import Redis

from services.state.connection import StateConnection, StateUnavailableError
from services.state.unique_keys import UniqueKeys

FLUSH_INTERVAL_S = 0.1
PROGRESS_INTERVAL_S = 1.0
"""How far a stream is is sent so often, if nothing else is to be said of it."""
MOST_TOGETHER = 128
"""Entries in one trip to Redis. While one is put together no token goes out; a thousand took 20 ms."""
RETRY_INTERVAL_S = 0.5
MAX_BUFFERED_ENTRIES = 10_000

_log = logging.getLogger(__name__)

_WRITE = "for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i + 1], 'PX', ARGV[1]) end"
"""KEYS: of entries. ARGV: time to live in ms, an entry for each key."""


class RequestState(enum.Enum):
    """Where a request stands."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    HANDOVER = "handover"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (RequestState.DONE, RequestState.FAILED, RequestState.CANCELLED)


@dataclass(slots=True)
class JournalEntry:
    """One request, as its router knows it; what is sent is what it says then."""

    request_id: str
    router_id: str
    state: RequestState = RequestState.QUEUED
    attempt: int = 0
    """Grows with every restart."""
    prefill_worker_id: str = ""
    prefill_engine_epoch: str = ""
    decode_worker_id: str = ""
    decode_engine_epoch: str = ""
    tokens_delivered: int = 0
    """Tokens handed to the client's stream."""

    def to_json(self, reservation: str) -> str:
        raw = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return _ENCODER.encode({**raw, "state": self.state.value, "reservation": reservation})

    @classmethod
    def from_json(cls, text: str) -> JournalEntry:
        raw: dict[str, Any] = json.loads(text)
        known = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        return cls(**{**known, "state": RequestState(raw["state"])})


_ENCODER = json.JSONEncoder(separators=(",", ":"))


class JournalChanges(TypedDict, total=False):
    """Fields of an entry that change while its request lives."""

    state: RequestState
    attempt: int
    prefill_worker_id: str
    prefill_engine_epoch: str
    decode_worker_id: str
    decode_engine_epoch: str
    tokens_delivered: int


class UnknownEntryError(KeyError):
    """An update of a request that is neither reserved nor tracked here."""


class RequestJournal:
    """The journal as one router writes it.

    `update` only touches memory. A background task sends what changed every `flush_interval_s`, the newest state of
    each request once; how many tokens a stream was given is sent along, or every `PROGRESS_INTERVAL_S`.
    Entries are written whole, so a Redis that comes back empty is filled again by the next change. While Redis is away
    at most `max_buffered` entries wait; the oldest are dropped and counted.
    """

    def __init__(
        self,
        connection: StateConnection,
        prefix: str,
        ttl_s: float,
        *,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        retry_interval_s: float = RETRY_INTERVAL_S,
        max_buffered: int = MAX_BUFFERED_ENTRIES,
    ) -> None:
        self.dropped_entries = 0
        self.flushes = 0
        """Trips to Redis, whatever is in them."""
        self._connection = connection
        self._prefix = prefix
        self._ttl_ms = round(ttl_s * 1000)
        self._refresh_s = ttl_s / 3
        self._flush_interval_s = flush_interval_s
        self._retry_interval_s = retry_interval_s
        self._max_buffered = max_buffered
        self._live: dict[str, JournalEntry] = {}
        self._dirty: dict[str, JournalEntry] = {}
        self._abandoned: set[str] = set()
        self._delivered: dict[str, int] = {}
        """Tokens handed to streams since their entries were marked last; the one marked longest ago comes first."""
        self._progress_s = time.monotonic()
        self._changed = asyncio.Event()
        self._reservation = secrets.token_hex(8)
        self._unique_keys = UniqueKeys(connection, self._ttl_ms)
        self._task: asyncio.Task[None] | None = None

    def _key(self, request_id: str) -> str:
        return f"{self._prefix}:request:{request_id}"

    def start(self) -> None:
        """Begin to flush in the background."""
        self._task = asyncio.create_task(self._run(), name="journal")

    async def close(self) -> None:
        """Send what is buffered, once, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            await self._flush()
        except StateUnavailableError as error:
            _log.warning("%d journal entries are lost: %s", len(self._dirty), error)

    async def reserve(self, request_id: str, router_id: str) -> bool:
        """Take a request id for the whole cluster and open its entry in QUEUED; False if the id is known already.

        Raises:
            StateUnavailableError: it cannot be told whether the id is free; `track` serves the request all the same.
        """
        if request_id in self._live:
            return False
        if request_id in self._abandoned:
            # Not given back yet: it still is this router's.
            self._abandoned.discard(request_id)
            return self.track(request_id, router_id)
        entry = JournalEntry(request_id, router_id)
        # The connection may send this twice when an answer is lost; the mark tells our own first try from a stranger's.
        mark = f"{self._reservation}-{secrets.token_hex(4)}"
        held = await self._unique_keys.take(self._key(request_id), entry.to_json(mark))
        if held is not None and json.loads(held).get("reservation") != mark:
            return False
        if request_id in self._live:
            return False
        self._live[request_id] = entry
        return True

    def track(self, request_id: str, router_id: str) -> bool:
        """Open an entry without a reservation: while Redis is away, or because the id was made here and is unique.

        False if this router has the id already.
        """
        if request_id in self._live:
            return False
        self._live[request_id] = JournalEntry(request_id, router_id)
        self._mark_dirty(self._live[request_id])
        return True

    def update(self, request_id: str, **changes: Unpack[JournalChanges]) -> None:
        """Note a change, to be sent with the next batch. A final state ends the entry.

        Raises:
            UnknownEntryError: neither reserved nor tracked, or ended before.
        """
        entry = self._live.get(request_id)
        if entry is None:
            raise UnknownEntryError(request_id)
        for name, value in changes.items():
            setattr(entry, name, value)
        self._delivered.pop(request_id, None)
        if entry.state.final:
            del self._live[request_id]
        self._mark_dirty(entry)

    def delivered(self, request_id: str, tokens: int) -> None:
        """So many tokens were handed to its stream in all; `update` knows better."""
        self._delivered[request_id] = tokens

    def abandon(self, request_id: str) -> None:
        """Forget a request that was never accepted; its id is free again with the next batch.

        Raises:
            UnknownEntryError: neither reserved nor tracked, or ended before.
        """
        if self._live.pop(request_id, None) is None:
            raise UnknownEntryError(request_id)
        self._dirty.pop(request_id, None)
        self._abandoned.add(request_id)
        self._changed.set()

    async def read(self, request_id: str) -> JournalEntry | None:
        """The entry as last written; None if there is none, or it has expired.

        Raises:
            StateUnavailableError
        """

        async def get(redis: Redis) -> str | None:
            return cast("str | None", await redis.get(self._key(request_id)))

        text = await self._connection.run(get)
        return None if text is None else JournalEntry.from_json(text)

    @property
    def live_entries(self) -> int:
        return len(self._live)

    def _mark_dirty(self, entry: JournalEntry) -> None:
        self._dirty[entry.request_id] = entry
        while len(self._dirty) > self._max_buffered:
            self._dirty.pop(next(iter(self._dirty)))
            self.dropped_entries += 1
        self._changed.set()

    async def _run(self) -> None:
        refreshed_s = time.monotonic()
        while True:
            patience_s = self._flush_interval_s if self._delivered else min(self._refresh_s, PROGRESS_INTERVAL_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._changed.wait()
            self._note_progress(time.monotonic())
            if time.monotonic() - refreshed_s >= self._refresh_s:
                # A request may wait longer than entries live; its id must stay taken.
                refreshed_s = time.monotonic()
                for entry in self._live.values():
                    self._dirty.setdefault(entry.request_id, entry)
            try:
                await self._flush()
            except StateUnavailableError:
                await asyncio.sleep(self._retry_interval_s)
                continue
            await asyncio.sleep(self._flush_interval_s)

    def _note_progress(self, now_s: float) -> None:
        """Of as many streams as are due since the last time, those first that were not spoken of for longest."""
        share = min(1.0, (now_s - self._progress_s) / PROGRESS_INTERVAL_S)
        due = list(islice(self._delivered.items(), int(share * max(1, len(self._live)))))
        if due or not self._delivered:
            self._progress_s = now_s
        for request_id, tokens in due:
            if request_id in self._live:
                self.update(request_id, tokens_delivered=tokens)
            else:
                del self._delivered[request_id]

    async def _flush(self) -> None:
        """Send what has changed, a part at a time.

        Raises:
            StateUnavailableError: what was not sent waits for the next try.
        """
        self._changed.clear()
        unsent, self._dirty = self._dirty, {}
        try:
            while unsent:
                batch = list(islice(unsent.values(), MOST_TOGETHER))
                await self._connection.evaluate(
                    _WRITE,
                    [self._key(entry.request_id) for entry in batch],
                    [str(self._ttl_ms), *(entry.to_json(self._reservation) for entry in batch)],
                )
                for entry in batch:
                    del unsent[entry.request_id]
                self.flushes += 1
        except BaseException:
            # Cancelled or failed: what was not overtaken by a newer state waits for the next try, oldest first.
            newer, self._dirty = self._dirty, {}
            for entry in {**unsent, **newer}.values():
                self._mark_dirty(entry)
            raise
        await self._free()

    async def _free(self) -> None:
        """Give back the ids of what was abandoned."""
        abandoned, self._abandoned = self._abandoned, set()
        if not abandoned:
            return
        try:
            await self._connection.run(lambda redis: redis.delete(*map(self._key, abandoned)))
        except BaseException:
            self._abandoned |= abandoned - self._live.keys()
            raise
        self.flushes += 1
