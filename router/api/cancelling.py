"""Cancellation of requests by their id, whichever router of the cluster serves them."""

from __future__ import annotations

from collections.abc import Callable

from services.audit import EventKind, Outcome, note
from services.network.address import peer_host
from services.rpc.caller import caller
from services.rpc.errors import REQUEST_ID, InvalidRequestError, RequestError, UnknownRequestError
from services.state.cancellations import Cancellations
from services.state.connection import StateUnavailableError
from services.state.journal import RequestJournal


class Cancelling:
    """Ends requests for every endpoint that can be told their ids."""

    def __init__(
        self,
        router_id: str,
        places: tuple[Callable[[str], bool], ...],
        journal: RequestJournal,
        cancellations: Cancellations,
    ) -> None:
        """Cancel requests of this router through `places`, and those of others through Redis.

        Args:
            places: each ends a request that waits or runs in one part of this router; False if none there has this id.
        """
        self._router_id = router_id
        self._places = places
        self._journal = journal
        self._cancellations = cancellations

    def here(self, request_id: str) -> bool:
        """End a request of this router, whatever it waits for; return False if no request here has this id."""
        return any(cancel(request_id) for cancel in self._places)

    async def on_call(self, request_id: str, peer: str) -> None:
        """End a request because a call asks for it, and tell the audit log.

        Args:
            peer: where the call came from, as gRPC names it.

        Raises:
            RequestError: as for `anywhere`.
        """
        try:
            await self.anywhere(request_id)
        except RequestError as error:
            _audit(request_id, peer, Outcome.REFUSED, str(error))
            raise
        _audit(request_id, peer, Outcome.DONE)

    async def anywhere(self, request_id: str) -> None:
        """End a request here, or ask the router that serves it to end it.

        Raises:
            InvalidRequestError: no request can have this id.
            UnknownRequestError: no router serves the request, or the one that does cannot be asked.
        """
        if not REQUEST_ID.fullmatch(request_id):
            raise InvalidRequestError("is no request id", field="request_id")
        if self.here(request_id):
            return
        try:
            entry = await self._journal.read(request_id)
            if entry is None or entry.state.final or entry.router_id == self._router_id:
                raise UnknownRequestError("no request with this id is running", field="request_id")
            if not await self._cancellations.send(entry.router_id, request_id):
                raise UnknownRequestError(f"router {entry.router_id}, which served it, is gone", field="request_id")
        except StateUnavailableError as error:
            detail = "not running on this router; others cannot be asked without Redis"
            raise UnknownRequestError(detail, field="request_id") from error

    async def listen(self) -> None:
        """End the requests that other routers ask this one to end, until the task is cancelled."""
        await self._cancellations.listen(self._router_id, self.here)


def _audit(request_id: str, peer: str, outcome: Outcome, detail: str = "") -> None:
    note(EventKind.CANCEL, outcome, request_id, who=caller(), peer=peer_host(peer), detail=detail)
