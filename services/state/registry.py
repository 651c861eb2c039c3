"""The registry of living workers in Redis. A worker that stops to renew its record is forgotten."""

from __future__ import annotations

import enum
import json
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from redis.asyncio import Redis

from services.state.connection import StateConnection

_log = logging.getLogger(__name__)

_PUT = """
local held = redis.call('GET', KEYS[1])
if held then
  local readable, record = pcall(cjson.decode, held)
  if readable and record.engine_epoch ~= ARGV[2] then return held end
end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
redis.call('SADD', KEYS[2], ARGV[1])
if held then return 'renewed' end
return 'registered'
"""
"""Lua script that registers a worker or renews its record, atomically because two workers of one id may register at
once.

KEYS are the record's key and the set of ids. ARGV are the worker's id, its engine epoch, the record and the time to
live in ms. It answers `registered`, `renewed`, or the record of the other worker that has the id.
"""

_REMOVE = """
local held = redis.call('GET', KEYS[1])
if held then
  local readable, record = pcall(cjson.decode, held)
  if readable and record.engine_epoch ~= ARGV[2] then return 0 end
end
redis.call('SREM', KEYS[2], ARGV[1])
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
        try:
            raw: dict[str, Any] = json.loads(text)
            return cls(
                worker_id=raw["worker_id"],
                role=WorkerRole(raw["role"]),
                address=raw["address"],
                engine_epoch=raw["engine_epoch"],
                compatibility=dict(raw["compatibility"]),
                model=raw["model"],
                emulated=raw["emulated"],
                draining=raw["draining"],
                metrics_address=raw.get("metrics_address", ""),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise WorkerRecordError(f"{type(error).__name__}: {error}") from error


class WorkerIdTakenError(Exception):
    """Another living worker is registered under the same id."""

    def __init__(self, worker_id: str, holder: WorkerRecord) -> None:
        super().__init__(
            f"worker id {worker_id!r} is taken by the {holder.role.value} worker at {holder.address} "
            f"(engine epoch {holder.engine_epoch}); give this one another id"
        )
        self.worker_id = worker_id
        self.holder = holder


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
        answer = await self._script(
            _PUT, record, record.worker_id, record.engine_epoch, record.to_json(), str(round(self._ttl_s * 1000))
        )
        if answer in ("registered", "renewed"):
            return answer == "registered"
        raise WorkerIdTakenError(record.worker_id, WorkerRecord.from_json(str(answer)))

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
        records = []
        for worker_id, text in found:
            if text is not None:
                record = self._read(worker_id, text)
                if record is not None:
                    records.append(record)
        return tuple(records)

    def _read(self, worker_id: str, text: str) -> WorkerRecord | None:
        try:
            return WorkerRecord.from_json(text)
        except WorkerRecordError as error:
            if worker_id not in self._unreadable:
                self._unreadable.add(worker_id)
                _log.warning("worker %s has a record that cannot be read and is left out: %s", worker_id, error)
            return None

    async def _script(self, script: str, record: WorkerRecord, *arguments: str) -> object:
        keys = (self._key(record.worker_id), self._index)
        return await self._connection.evaluate(script, keys, arguments)
