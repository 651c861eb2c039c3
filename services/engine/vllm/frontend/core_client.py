"""The orders that the front end gives EngineCore."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from services.engine.protocol import EngineFacts, EngineRequest
from services.engine.vllm.frontend.core_request import core_request
from services.engine.vllm.shared.control_channel import CORE_CALL, PREPARE_FOR_DRAFTS

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest

    from services.engine.vllm.frontend.launched_engine import LaunchedEngine

T = TypeVar("T")


class CoreDeadError(Exception):
    """EngineCore is gone."""


class CoreClient:
    """One running EngineCore.

    Raises:
        CoreDeadError: in every coroutine, once EngineCore is gone.
    """

    def __init__(self, launched: LaunchedEngine) -> None:
        self._client = launched.client
        self._inputs = launched.inputs

    def request(self, request: EngineRequest, core_id: str, facts: EngineFacts) -> EngineCoreRequest:
        """Return a request as EngineCore takes it, under the name `core_id`.

        Raises:
            UnservableRequestError: no engine would take it.
        """
        return core_request(request, core_id, facts, self._inputs)

    async def add(self, work: EngineCoreRequest) -> None:
        """Queue a request."""
        await _from_living(self._client.add_request_async(work))

    async def abort(self, core_id: str) -> None:
        """End a request with the next step."""
        await _from_living(self._client.abort_requests_async([core_id]))

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a remote method of the scheduler, and return what it returns."""
        return await _from_living(self._client.call_utility_async(CORE_CALL, method, list(arguments)))

    async def prepare_for_drafts(self) -> None:
        """Extend every worker for speculation; to be called before the first request."""
        await _from_living(self._client.collective_rpc_async(PREPARE_FOR_DRAFTS))

    async def next_message(self) -> EngineCoreOutputs:
        """Wait for the message of the next step."""
        return await _from_living(self._client.get_output_async())


async def _from_living(order: Awaitable[T]) -> T:
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        return await order
    except EngineDeadError as error:
        raise CoreDeadError(str(error) or "EngineCore ended") from error
