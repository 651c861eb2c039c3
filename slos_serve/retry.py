"""The decisions which router is asked, and whether and when once more; both clients carry them out."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slos_serve.errors import PermissionDeniedError, SlosServeError, UnauthenticatedError, UnavailableError

REST_S = 5.0
"""Seconds for which a router that could not be reached is asked after all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Decides whether a call is sent again: never without the router's RetryInfo, nor once an event has arrived."""

    max_attempts: int = 4
    """Number of times that a request is sent at most, to routers that answer; 1 never retries."""
    max_wait_s: float = 30.0
    """Seconds to wait between the attempts of one call, all together; a refusal that needs more is raised at once."""
    min_wait_s: float = 0.05
    """Seconds to wait between two attempts at least, even if the router names none: no client asks in a tight loop."""
    jitter: float = 0.2
    """Share by which a wait may be longer, at random, so that requests refused together do not come back together."""

    def wait_s(self, error: SlosServeError, sent: int, waited_s: float, left_s: float | None) -> float | None:
        """Return the seconds to wait before the next attempt; None: do not retry.

        Args:
            sent: number of attempts so far.
            waited_s: seconds waited between them.
            left_s: seconds until the call's deadline; None without one.
        """
        refused_credential = isinstance(error, UnauthenticatedError | PermissionDeniedError)
        if error.retry_after_s is None or refused_credential or sent >= self.max_attempts:
            return None
        wait_s = max(self.min_wait_s, error.retry_after_s) * (1 + self.jitter * random.random())
        if waited_s + wait_s > self.max_wait_s or (left_s is not None and wait_s >= left_s):
            return None
        return wait_s


class RouterBook:
    """Decides which of several routers is asked first. Thread-safe."""

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        if not addresses:
            raise ValueError("at least one router address is needed")
        self.addresses = tuple(addresses)
        self._clock = clock
        self._next = random.randrange(len(addresses))
        self._rests_until_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def order(self, pin: str = "") -> list[str]:
        """Return all routers, the one to ask first at the front: in turn, or always the same one for the same `pin`."""
        with self._lock:
            if pin:
                ranked = sorted(
                    self.addresses, key=lambda address: hashlib.sha256(f"{pin}\n{address}".encode()).digest()
                )
            else:
                ranked = [*self.addresses[self._next :], *self.addresses[: self._next]]
                self._next = (self._next + 1) % len(self.addresses)
            now_s = self._clock()
            return sorted(ranked, key=lambda address: self._rests_until_s.get(address, 0.0) > now_s)

    def failed(self, address: str) -> None:
        """Note that a router could not be reached or is leaving."""
        with self._lock:
            self._rests_until_s[address] = self._clock() + REST_S

    def answered(self, address: str) -> None:
        """Note that a router answered."""
        with self._lock:
            self._rests_until_s.pop(address, None)


class Attempts:
    """Counts the attempts of one call, and decides about the next."""

    def __init__(
        self,
        policy: RetryPolicy,
        routers: RouterBook,
        timeout_s: float | None,
        pin: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._routers = routers
        self._pin = pin
        self._clock = clock
        self._due_s = None if timeout_s is None else clock() + timeout_s
        self._order = routers.order(pin)
        self._answers = 0
        self._waited_s = 0.0

    @property
    def router(self) -> str:
        """Return the address of the router to ask now."""
        return self._order[0]

    @property
    def left_s(self) -> float | None:
        """Return the seconds until the call's deadline; None without one."""
        return None if self._due_s is None else max(0.0, self._due_s - self._clock())

    def succeeded(self) -> None:
        """Note that the router accepted the call."""
        self._routers.answered(self.router)

    def failed(self, error: SlosServeError) -> float:
        """Note a failed attempt, and return the seconds to wait before asking `router`, which may be another one now.

        Raises:
            SlosServeError: `error` itself, if nothing is left to try.
        """
        if isinstance(error, UnavailableError) and len(self._order) > 1:
            # Out of reach or shutting down: another one may serve it at once.
            self._routers.failed(self._order.pop(0))
            return 0.0
        self._answers += 1
        wait_s = self._policy.wait_s(error, self._answers, self._waited_s, self.left_s)
        if wait_s is None:
            raise error
        self._waited_s += wait_s
        self._order = self._routers.order(self._pin)
        return wait_s
