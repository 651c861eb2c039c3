"""Cancellation of requests by their id, whichever router of the cluster serves them."""

from __future__ import annotations

import re
from collections.abc import Callable

from router.requests.scope import scope_of
from services.audit import EventKind, Outcome, note
from services.identity.principal import ANYBODY, Principal, Right
from services.network.address import peer_host
from services.rpc.caller import caller
from services.rpc.errors import REQUEST_ID, InvalidRequestError, RequestError, UnknownRequestError
from services.state.cancellations import Cancellations
from services.state.connection import StateUnavailableError
from services.state.journal import RequestJournal

NOT_RUNNING = "no request with this id is running"
SCOPED_ID = re.compile(r"[\x21-\x7e]{1,256}")
"""Ids as the whole cluster knows them: the longest name of a tenant and the longest id of a client fit."""


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
            await self.anywhere(request_id, caller())
        except RequestError as error:
            _audit(request_id, peer, Outcome.REFUSED, str(error))
            raise
        _audit(request_id, peer, Outcome.DONE)

    async def anywhere(self, request_id: str, principal: Principal = ANYBODY) -> None:
        """End a request here, or ask the router that serves it to end it.

        Args:
            request_id: the id as the caller knows it. Operators may name any request by the id that the console shows.
            principal: whoever asks. A request of another tenant is as unknown to it as one that is not there, so that
                nobody can ask which ids there are.

        Raises:
            InvalidRequestError: no request can have this id.
            UnknownRequestError: no router serves the request, or the one that does cannot be asked.
        """
        meant = _meant(request_id, principal)
        if any(self.here(one) for one in meant):
            return
        for one in meant:
            if await self._elsewhere(one, principal):
                return
        raise UnknownRequestError(NOT_RUNNING, field="request_id")

    async def _elsewhere(self, request_id: str, principal: Principal) -> bool:
        """Ask the router that serves a request to end it; return False if the journal knows of none.

        Raises:
            UnknownRequestError: the router is gone, or cannot be asked.
        """
        try:
            entry = await self._journal.read(request_id)
            if entry is None or entry.state.final or entry.router_id == self._router_id:
                return False
            if await self._cancellations.send(entry.router_id, request_id):
                return True
        except StateUnavailableError as error:
            detail = "not running on this router; others cannot be asked without Redis"
            raise UnknownRequestError(detail, field="request_id") from error
        router = f"router {entry.router_id}" if principal.may(Right.OPERATE) else "the router"
        raise UnknownRequestError(f"{router}, which served it, is gone", field="request_id")

    async def listen(self) -> None:
        """End the requests that other routers ask this one to end, until the task is cancelled."""
        await self._cancellations.listen(self._router_id, self.here)


def _meant(request_id: str, principal: Principal) -> tuple[str, ...]:
    """Return the ids, as the whole cluster knows them, that a caller may mean by an id.

    Raises:
        InvalidRequestError: no request can have this id.
    """
    everybodys = principal.checked and principal.may(Right.OPERATE)
    if not (SCOPED_ID if everybodys else REQUEST_ID).fullmatch(request_id):
        raise InvalidRequestError("is no request id", field="request_id")
    own = (f"{scope_of(principal)}{request_id}",) if principal.may(Right.GENERATE) else ()
    return (*own, request_id) if everybodys else own


def _audit(request_id: str, peer: str, outcome: Outcome, detail: str = "") -> None:
    note(EventKind.CANCEL, outcome, request_id, who=caller(), peer=peer_host(peer), detail=detail)
