"""Orders on their way to the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.engine.protocol import Engine, EngineDeadError, EngineRequest, RequestRejected

_log = logging.getLogger(__name__)


class EngineOrders:
    """One queue for all orders, so that an abort never overtakes its submission, whatever becomes of the session.

    Its length is bounded by the requests that the hub lets in.
    """

    def __init__(self, engine: Engine, failed: Callable[[RequestRejected], None]) -> None:
        """
        Args:
            failed: told of a submission on which the engine raised.
        """
        self._engine = engine
        self._failed = failed
        self._queue: asyncio.Queue[tuple[str, Callable[[], Awaitable[None]]]] = asyncio.Queue()

    def submit(self, request: EngineRequest) -> None:
        self._queue.put_nowait((request.request_id, lambda: self._engine.submit(request)))

    def abort(self, engine_request_id: str) -> None:
        self._queue.put_nowait(("", lambda: self._engine.abort(engine_request_id)))

    def release_kv(self, lease_id: str) -> None:
        self._queue.put_nowait(("", lambda: self._engine.release_kv(lease_id)))

    async def carry_out(self) -> None:
        """Until cancelled.

        Raises:
            EngineDeadError
        """
        while True:
            submitted, order = await self._queue.get()
            try:
                await order()
            except EngineDeadError:
                raise
            except Exception as error:  # noqa: BLE001 -- a fault of an adapter must not take all requests along
                _log.exception("the engine failed on an order")
                if submitted:
                    self._failed(RequestRejected(submitted, invalid=False, detail=repr(error)))
