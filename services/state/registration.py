"""The heartbeat that keeps one worker in the registry."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from services.audit import EventKind, Outcome, note
from services.state.connection import StateUnavailableError
from services.state.registry import WorkerIdTakenError, WorkerRecord, WorkerRegistry

_log = logging.getLogger(__name__)


class Registration:
    """Keeps one worker registered: it renews the record every `heartbeat_s`, or registers it again if Redis lost it.

    An id that is taken may belong to a process that was killed a moment ago, whose record has yet to expire. So `run`
    waits `patience_s`, a little more than the time to live, before it believes that the other one is alive.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        record: WorkerRecord,
        heartbeat_s: float,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._record = record
        self._heartbeat_s = heartbeat_s
        self._patience_s = patience_s
        self._clock = clock
        self._soon = asyncio.Event()
        self._taken_since_s: float | None = None
        self._seen = False

    @property
    def record(self) -> WorkerRecord:
        """Record that the next heartbeat sends."""
        return self._record

    def drain(self) -> None:
        """Tell the cluster, with a heartbeat sent at once, that the worker takes no new requests."""
        self._record = replace(self._record, draining=True)
        self._soon.set()

    async def run(self) -> None:
        """Send heartbeats until cancelled.

        Raises:
            WorkerIdTakenError: another worker lives under this id.
        """
        while True:
            await self._beat()
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._soon.wait()
            except TimeoutError:
                continue
            self._soon.clear()

    async def remove(self) -> None:
        """Remove the worker from the registry. If Redis is away, the record expires by itself."""
        try:
            await self._registry.remove(self._record)
        except StateUnavailableError as error:
            _log.info("could not deregister, the record will expire: %s", error)

    async def _beat(self) -> None:
        try:
            created = await self._registry.put(self._record)
        except StateUnavailableError as error:
            _log.debug("heartbeat not sent: %s", error)
            return
        except WorkerIdTakenError as error:
            now_s = self._clock()
            if self._taken_since_s is None:
                self._taken_since_s = now_s
                _log.warning("%s; waiting %.1f s in case its process is gone", error, self._patience_s)
            if now_s - self._taken_since_s >= self._patience_s:
                note(EventKind.REGISTRATION, Outcome.REFUSED, self._record.worker_id, detail=str(error))
                raise
            return
        self._taken_since_s = None
        if created:
            record = self._record
            how = "registered again, the record was gone" if self._seen else "registered"
            _log.info("%s: %s worker %s at %s", how, record.role.value, record.worker_id, record.address)
        self._seen = True
