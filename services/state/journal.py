"""The journal of all requests: one entry each, written in batches by the router that serves the request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from itertools import islice
from typing import Unpack, cast

from redis.asyncio import Redis

from services.state.connection import StateConnection, StateTypeError, StateUnavailableError
from services.state.delivery_progress import PROGRESS_INTERVAL_S, DeliveryProgress
from services.state.journal_entry import JournalChanges, JournalEntry, JournalEntryError, reservation_of
from services.state.unique_keys import UniqueKeys

FLUSH_INTERVAL_S = 0.1
"""Seconds between two batches. A crash of the router loses what is younger."""
MOST_TOGETHER = 128
"""Number of entries that one round trip to Redis writes, at most. While they are encoded no token goes out: a thousand
entries took 20 ms."""
RETRY_INTERVAL_S = 0.5
"""Seconds between two attempts to write while Redis does not answer."""
MAX_BUFFERED_ENTRIES = 10_000
"""Number of entries that wait at most while Redis does not answer: a chosen bound on memory."""

_log = logging.getLogger(__name__)

_WRITE = "for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i + 1], 'PX', ARGV[1]) end"
"""Lua script that writes entries. KEYS are their keys; ARGV are the time to live in ms and then one entry for each
key."""


class UnknownEntryError(KeyError):
    """The request is neither reserved nor tracked here, or has ended."""


class RequestJournal:
    """The part of the journal that one router writes.

    `update` changes memory only. A background task writes the entries that changed, each once, every
    `flush_interval_s`. The number of delivered tokens goes along, or is written alone every `PROGRESS_INTERVAL_S`.
    Entries are written whole, so that a Redis that comes back empty is filled again by later changes. While Redis is
    away at most `max_buffered` entries wait; the oldest are dropped and counted.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped_entries = 0
        self.flushes = 0
        """Number of round trips to Redis that wrote or freed entries."""
        self._connection = connection
        self._prefix = prefix
        self._ttl_ms = round(ttl_s * 1000)
        self._refresh_s = ttl_s / 3
        self._flush_interval_s = flush_interval_s
        self._retry_interval_s = retry_interval_s
        self._max_buffered = max_buffered
        self._clock = clock
        self._live: dict[str, JournalEntry] = {}
        self._dirty: dict[str, JournalEntry] = {}
        self._abandoned: set[str] = set()
        self._progress = DeliveryProgress(clock())
        self._changed = asyncio.Event()
        self._reservation = secrets.token_hex(8)
        self._unique_keys = UniqueKeys(connection, self._ttl_ms)
        self._task: asyncio.Task[None] | None = None

    def _key(self, request_id: str) -> str:
        return f"{self._prefix}:request:{request_id}"

    def start(self) -> None:
        """Begin to write changes in the background."""
        self._task = asyncio.create_task(self._run(), name="journal")

    async def close(self) -> None:
        """Stop, and try once to write what has not been written."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            await self._flush()
        except StateUnavailableError as error:
            _log.warning("%d journal entries are lost: %s", len(self._dirty), error)

    async def reserve(self, request_id: str, router_id: str) -> bool:
        """Reserve a request id in the whole cluster and open its entry. Return False if the id is in use.

        Raises:
            StateUnavailableError: Redis cannot say whether the id is free. `track` opens the entry all the same.
        """
        if request_id in self._live:
            return False
        if request_id in self._abandoned:
            # The key has not been deleted yet, so that the id still is this router's.
            self._abandoned.discard(request_id)
            return self.track(request_id, router_id)
        entry = JournalEntry(request_id, router_id)
        # The connection may send this twice when an answer is lost; the mark tells our own first try from a stranger's.
        mark = f"{self._reservation}-{secrets.token_hex(4)}"
        taking = asyncio.create_task(self._unique_keys.take(self._key(request_id), entry.to_json(mark)))
        try:
            held = await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The client has left, but the key may be set by now: the id must be free again.
            taking.add_done_callback(lambda done: self._free_if_taken(request_id, mark, done))
            raise
        if held is not None and reservation_of(held) != mark:
            return False
        if request_id in self._live:
            return False
        self._live[request_id] = entry
        return True

    def track(self, request_id: str, router_id: str) -> bool:
        """Open an entry without a reservation: while Redis is away, or for an id that this router made unique.

        Return False if this router has the id already.
        """
        if request_id in self._live:
            return False
        self._live[request_id] = JournalEntry(request_id, router_id)
        self._mark_dirty(self._live[request_id])
        return True

    def update(self, request_id: str, **changes: Unpack[JournalChanges]) -> None:
        """Note changes, which the next batch writes. A final state ends the entry.

        Raises:
            UnknownEntryError: neither reserved nor tracked, or ended before.
        """
        entry = self._live.get(request_id)
        if entry is None:
            raise UnknownEntryError(request_id)
        for name, value in changes.items():
            setattr(entry, name, value)
        self._progress.forget(request_id)
        if entry.state.final:
            del self._live[request_id]
        self._mark_dirty(entry)

    def delivered(self, request_id: str, tokens: int) -> None:
        """Note how many tokens a stream was handed in all. A later `update` of the request replaces this."""
        self._progress.note(request_id, tokens)

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
        """Read an entry as it was written last; None if there is none, it has expired, or it makes no sense.

        Raises:
            StateUnavailableError
        """

        async def get(redis: Redis) -> str | None:
            return cast("str | None", await redis.get(self._key(request_id)))

        try:
            text = await self._connection.run(get)
            return None if text is None else JournalEntry.from_json(text)
        except (StateTypeError, JournalEntryError) as error:
            _log.warning("the journal entry of request %s cannot be read: %s", request_id, error)
            return None

    @property
    def live_entries(self) -> int:
        """Number of requests that this router has reserved or tracks and that have not ended."""
        return len(self._live)

    def _free_if_taken(self, request_id: str, mark: str, taking: asyncio.Task[str | None]) -> None:
        """Free the id of a client that left while its id was reserved, if the reservation was made."""
        if taking.cancelled() or taking.exception() is not None or request_id in self._live:
            return
        held = taking.result()
        if held is None or reservation_of(held) == mark:
            self._abandoned.add(request_id)
            self._changed.set()

    def _mark_dirty(self, entry: JournalEntry) -> None:
        self._dirty[entry.request_id] = entry
        while len(self._dirty) > self._max_buffered:
            self._dirty.pop(next(iter(self._dirty)))
            self.dropped_entries += 1
        self._changed.set()

    async def _run(self) -> None:
        refreshed_s = self._clock()
        while True:
            patience_s = self._flush_interval_s if self._progress else min(self._refresh_s, PROGRESS_INTERVAL_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._changed.wait()
            self._note_progress()
            if self._clock() - refreshed_s >= self._refresh_s:
                # A request may wait longer than entries live, and its id must stay reserved.
                refreshed_s = self._clock()
                for entry in self._live.values():
                    self._dirty.setdefault(entry.request_id, entry)
            try:
                await self._flush()
            except StateUnavailableError:
                await asyncio.sleep(self._retry_interval_s)
                continue
            await asyncio.sleep(self._flush_interval_s)

    def _note_progress(self) -> None:
        for request_id, tokens in self._progress.due(self._clock(), len(self._live)):
            if request_id in self._live:
                self.update(request_id, tokens_delivered=tokens)

    async def _flush(self) -> None:
        """Write all changes, in batches, and free abandoned ids.

        Raises:
            StateUnavailableError: Redis does not answer. What was not written waits for the next flush.
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
            # Cancelled or failed: entries without a newer state wait for the next flush, the oldest first.
            newer, self._dirty = self._dirty, {}
            for entry in {**unsent, **newer}.values():
                self._mark_dirty(entry)
            raise
        await self._free()

    async def _free(self) -> None:
        """Delete the keys of abandoned requests, so that their ids are free again."""
        abandoned, self._abandoned = self._abandoned, set()
        if not abandoned:
            return
        try:
            await self._connection.run(lambda redis: redis.delete(*map(self._key, abandoned)))
        except BaseException:
            self._abandoned |= abandoned - self._live.keys()
            raise
        self.flushes += 1
