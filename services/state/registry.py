"""The registry of living workers in Redis. A worker that stops to renew its record is forgotten."""

from __future__ import annotations

import enum
import json
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass
from typing import cast

from pydantic import TypeAdapter
from redis.asyncio import Redis

from services.audit import EventKind, Outcome, note
from services.faults import read_json
from services.shown import clipped
from services.state.connection import StateConnection

_log = logging.getLogger(__name__)

_PUT = """
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' and held ~= ARGV[6] and redis.call('PTTL', KEYS[1]) >= 0 then
  local readable, record = pcall(cjson.decode, held)
  if readable and type(record) == 'table' and type(record.engine_epoch) == 'string'
    and record.engine_epoch ~= ARGV[2] and record.address ~= ARGV[5] then return held end
end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
local added = redis.pcall('SADD', KEYS[2], ARGV[1])
if type(added) == 'table' then
  redis.call('DEL', KEYS[2])
  redis.call('SADD', KEYS[2], ARGV[1])
end
if held then return 'renewed' end
return 'registered'
"""
"""Lua script that registers a worker or renews its record, atomically because two workers of one id may register at
once.

KEYS are the record's key and the set of ids. ARGV are the worker's id, its engine epoch, the record, the time to live
in ms, the worker's address, and a text under the key that is known to be no record. It answers `registered`, `renewed`,
or the record of the other worker that has the id. What no other living worker writes is replaced: a record without a
time to live, one that names this worker's own address, one without an engine epoch, and values of other types.
"""

_REMOVE = """
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' then
  local readable, record = pcall(cjson.decode, held)
  if readable and type(record) == 'table' and record.engine_epoch ~= ARGV[2] then return 0 end
end
redis.pcall('SREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
"""
"""Lua script that removes a worker's record unless another engine epoch wrote it.

KEYS are the record's key and the set of ids. ARGV are the worker's id and its engine epoch.
"""


class WorkerRole(enum.Enum):
    """Pool that a worker belongs to."""

    PREFILL = "prefill"
    DECODE = "decode"


class WorkerRecordError(ValueError):
    """A record in Redis that no worker of this version wrote."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """The facts that a router needs of a worker before it opens a session."""

    worker_id: str
    role: WorkerRole
    address: str
    """Address of the gRPC server as host:port."""
    engine_epoch: str
    compatibility: Mapping[str, str | int]
    """Facts in which two workers must agree to exchange KV caches, for people who read Redis; a router takes them from
    the worker's own description."""
    model: str
    emulated: bool
    draining: bool = False
    metrics_address: str = ""
    """Address of the page for Prometheus as host:port; empty if there is none."""

    def to_json(self) -> str:
        """Write the record as one JSON object."""
        return json.dumps({**asdict(self), "role": self.role.value}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> WorkerRecord:
        """Read a record. Unknown fields are ignored.

        Raises:
            WorkerRecordError: fields are missing or malformed.
        """
        return read_json(_READER, text, WorkerRecordError)


_READER = TypeAdapter(WorkerRecord)


class WorkerIdTakenError(Exception):
    """Another living worker is registered under the same id."""

    def __init__(self, worker_id: str, holder: WorkerRecord) -> None:
        super().__init__(
            f"worker id {worker_id!r} is taken by the {holder.role.value} worker at {holder.address} "
            f"(engine epoch {holder.engine_epoch}); give this one another id"
        )


class WorkerRegistry:
    """The records of all workers in Redis: one key each with a time to live, and a set of their ids to find them."""

    def __init__(self, connection: StateConnection, prefix: str, ttl_s: float) -> None:
        self._connection = connection
        self._prefix = prefix
        self._index = f"{prefix}:workers"
        self._ttl_s = ttl_s
        self._unreadable: set[str] = set()

    def _key(self, worker_id: str) -> str:
        return f"{self._prefix}:worker:{worker_id}"

    async def put(self, record: WorkerRecord) -> bool:
        """Register a worker, or renew its record. Return True if there was no record.

        Raises:
            WorkerIdTakenError: a worker with another engine epoch lives under this id.
            StateUnavailableError
        """
        answer = await self._put(record)
        if answer in ("registered", "renewed"):
            return answer == "registered"
        try:
            holder = WorkerRecord.from_json(answer)
        except WorkerRecordError as error:
            _log.warning("a record under the id of worker %s is replaced: %s", record.worker_id, error)
            await self._put(record, no_record=answer)
            return False
        raise WorkerIdTakenError(record.worker_id, holder)

    async def _put(self, record: WorkerRecord, no_record: str = "") -> str:
        return str(
            await self._script(
                _PUT,
                record,
                record.worker_id,
                record.engine_epoch,
                record.to_json(),
                str(round(self._ttl_s * 1000)),
                record.address,
                no_record,
            )
        )

    async def remove(self, record: WorkerRecord) -> None:
        """Remove the record of a worker. A record of another engine epoch stays.

        Raises:
            StateUnavailableError
        """
        await self._script(_REMOVE, record, record.worker_id, record.engine_epoch)

    async def workers(self) -> tuple[WorkerRecord, ...]:
        """Return the records of all living workers, ordered by id.

        Raises:
            StateUnavailableError
        """

        async def read(redis: Redis) -> list[tuple[str, str | None]]:
            ids = sorted(await cast("Awaitable[set[str]]", redis.smembers(self._index)))
            if not ids:
                return []
            texts = cast("list[str | None]", await redis.mget([self._key(worker_id) for worker_id in ids]))
            return list(zip(ids, texts, strict=True))

        found = await self._connection.run(read)
        expired = [worker_id for worker_id, text in found if text is None]
        if expired:
            # A worker that registers again meanwhile returns to the set with its next heartbeat.
            await self._connection.run(lambda redis: redis.srem(self._index, *expired))
        self._unreadable &= {worker_id for worker_id, _ in found}
        records = []
        for worker_id, text in found:
            if text is not None:
                record = self._read(worker_id, text)
                if record is not None:
                    records.append(record)
        return tuple(records)

    def _read(self, worker_id: str, text: str) -> WorkerRecord | None:
        try:
            record = WorkerRecord.from_json(text)
            if record.worker_id != worker_id:
                raise WorkerRecordError(f"it is the record of worker {clipped(record.worker_id)!r}")
        except WorkerRecordError as error:
            if worker_id not in self._unreadable:
                self._unreadable.add(worker_id)
                note(EventKind.REGISTRATION, Outcome.REFUSED, worker_id, detail=str(error))
                _log.warning(
                    "worker %s has a record that cannot be read and is left out: %s", clipped(worker_id), error
                )
            return None
        self._unreadable.discard(worker_id)
        return record

    async def _script(self, script: str, record: WorkerRecord, *arguments: str) -> object:
        keys = (self._key(record.worker_id), self._index)
        return await self._connection.evaluate(script, keys, arguments)
