"""The port through which the dispatcher speaks to whoever plans."""

from __future__ import annotations

from typing import Protocol

from router.requests.live_request import LiveRequest
from services.slo.latency_forecast import Placement


class Planning(Protocol):
    """The planner, as far as the dispatcher needs it. It is called on the router's event loop."""

    def place_again(self, request: LiveRequest, now_s: float) -> Placement:
        """Return where a request goes whose worker is gone.

        Raises:
            NoWorkerError: no worker could take the request now.
            InvalidRequestError: no worker there is can ever take it.
        """
        ...

    def changed(self) -> None:
        """Note that something on a worker changed, so that a request held back may now find room."""
        ...
