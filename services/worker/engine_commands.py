"""The queue of commands that an engine has yet to be given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.engine.protocol import Engine, EngineDeadError, EngineRequest, RequestRejected

_log = logging.getLogger(__name__)


class EngineCommands:
    """Gives commands to an engine one after the other, in the order in which they came.

    All commands share one queue, so that an abort never overtakes the submission of its request, whatever happens to
    the session that they came from. The requests that the hub lets in bound the length of the queue.
    """

    def __init__(self, engine: Engine, failed: Callable[[RequestRejected], None]) -> None:
        """
        Args:
            failed: called with the rejection of a request whose submission made the engine raise.
        """
        self._engine = engine
        self._failed = failed
        self._queue: asyncio.Queue[tuple[str, Callable[[], Awaitable[None]]]] = asyncio.Queue()
        """Pairs of the id of the request that a command submits, empty for other commands, and the command."""

    def submit(self, request: EngineRequest) -> None:
        """Queue the submission of a request."""
        self._queue.put_nowait((request.request_id, lambda: self._engine.submit(request)))

    def abort(self, engine_request_id: str) -> None:
        """Queue the abort of a request."""
        self._queue.put_nowait(("", lambda: self._engine.abort(engine_request_id)))

    def release_kv(self, lease_id: str) -> None:
        """Queue the release of a KV lease."""
        self._queue.put_nowait(("", lambda: self._engine.release_kv(lease_id)))

    async def run(self) -> None:
        """Give commands to the engine until cancelled.

        Raises:
            EngineDeadError: the engine is gone.
        """
        while True:
            submitted, command = await self._queue.get()
            try:
                await command()
            except EngineDeadError:
                raise
            except Exception as error:  # noqa: BLE001 -- a fault of an adapter must not take all requests along
                _log.exception("the engine failed on a command")
                if submitted:
                    self._failed(RequestRejected(submitted, invalid=False, detail=repr(error)))
