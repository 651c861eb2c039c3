"""Which workers there are. A worker that stops renewing its record is forgotten."""

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

# Atomic, because two workers of one id may register at the same moment. Answers the record in the way, or nothing.
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

_REMOVE = """
local held = redis.call('GET', KEYS[1])
if held then
  local readable, record = pcall(cjson.decode, held)
  if readable and record.engine_epoch ~= ARGV[2] then return 0 end
end
redis.call('SREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
"""


class WorkerRole(enum.Enum):
    """The pool a worker belongs to."""

    PREFILL = "prefill"
    DECODE = "decode"


class WorkerRecordError(ValueError):
    """A record that no worker of this version wrote."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a router has to know of a worker before it opens a session."""

    worker_id: str
    role: WorkerRole
    address: str
    """host:port of its gRPC server."""
    engine_epoch: str
    compatibility: Mapping[str, str | int]
    """Facts in which two workers must agree to exchange KV caches, for people who read Redis; a router takes them from
    the worker's own description."""
    model: str
    emulated: bool
    draining: bool = False
    metrics_address: str = ""
    """host:port of its page for Prometheus; empty if it has none."""

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "role": self.role.value}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> WorkerRecord:
        """
        Raises:
            WorkerRecordError: fields are missing or malformed; unknown ones are ignored.
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
    """Another living worker is registered under this id."""

    def __init__(self, worker_id: str, holder: WorkerRecord) -> None:
        super().__init__(
            f"worker id {worker_id!r} is taken by the {holder.role.value} worker at {holder.address} "
            f"(engine epoch {holder.engine_epoch}); give this one another id"
        )
        self.worker_id = worker_id
        self.holder = holder


class WorkerRegistry:
    """The records of all workers: one key each with a time to live, and a set of their ids to find them by."""

    def __init__(self, connection: StateConnection, prefix: str, ttl_s: float) -> None:
        self._connection = connection
        self._prefix = prefix
        self._index = f"{prefix}:workers"
        self._ttl_s = ttl_s
        self._unreadable: set[str] = set()

    def _key(self, worker_id: str) -> str:
        return f"{self._prefix}:worker:{worker_id}"

    async def put(self, record: WorkerRecord) -> bool:
        """Register a worker, or renew its record. True if there was none.

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
        """Forget a worker at once. A record of another epoch stays.

        Raises:
            StateUnavailableError
        """
        await self._script(_REMOVE, record, record.worker_id, record.engine_epoch)

    async def workers(self) -> tuple[WorkerRecord, ...]:
        """All living workers, by id.

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
            # A worker that registers again at this very moment returns to the set with its next heartbeat.
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
