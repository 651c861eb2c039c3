"""The use of quotas by the whole cluster, in Redis."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.slo.quotas import MAX_DEBT_S, Bucket, Granted, OverQuota, Quota, QuotaLimits, Use, Uses
from services.slo.quotas.decision import COUNT_RETRY_S
from services.state.connection import StateConnection, StateUnavailableError
from services.state.quota_script import CHARGE

LEASE_S = 10.0
"""Seconds after which the places of a router that gives no sign are free again."""
GATHER_S = 2e-3
"""Seconds from the beginning of one round trip to the next, at least. A round trip costs the router several times what
one charge in it costs."""
SETTLE_S = 0.05
"""Seconds after which what was settled is sent at the latest, if no charge goes out before."""
MOST_TOGETHER = 128
"""Number of charges that go out in one round trip, at most, so that Redis is not held for long."""


@dataclass(slots=True)
class Account:
    """An account of one tenant as one router charges it."""

    name: str
    limits: QuotaLimits
    held: Counter[Quota] = field(default_factory=Counter)
    """Places of each count that are held by requests of this router."""


@dataclass(slots=True)
class _Charge:
    account: Account
    use: Use
    answered: asyncio.Future[Granted | OverQuota]


class SharedQuotas:
    """Charges accounts that all routers share. Instances belong to one event loop.

    Charges that come while a round trip is under way share the next one. Whoever is granted places has them counted in
    `Account.held`; to give them back is to subtract them there, and to call `settle`.
    """

    def __init__(self, connection: StateConnection, prefix: str, router_id: str) -> None:
        self.routers = 0
        """Number of living routers that use quotas, this one included, at the last answer; 0 before the first."""
        self._connection = connection
        self._prefix = f"{prefix}:quota"
        self._router_id = router_id
        self._charges: list[_Charge] = []
        self._owed: dict[str, tuple[Account, Counter[Quota]]] = {}
        """Amounts to be charged in any case, by account."""
        self._sending: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._next_s = 0.0
        """Earliest beginning of the next round trip, on the event loop's clock."""

    async def charge(self, account: Account, use: Use) -> Granted | OverQuota:
        """Charge an account all of a use, or nothing of it. Times in the answer are from now, on a clock that is 0 now.

        If the caller is cancelled, the charge is undone.

        Raises:
            StateUnavailableError: Redis does not answer; the charge may have been made or not.
        """
        charge = _Charge(account, use, asyncio.get_running_loop().create_future())
        self._charges.append(charge)
        self._send_soon()
        try:
            return await charge.answered
        except asyncio.CancelledError:
            came = charge.answered.done() and not charge.answered.cancelled() and charge.answered.exception() is None
            if came and isinstance(charge.answered.result(), Granted):
                # The answer came in the very moment in which the caller was cancelled.
                account.held.subtract(_limited(account, use))
                self._undo(charge)
            raise

    def settle(self, account: Account, amounts: Mapping[Quota, float]) -> None:
        """Charge amounts in any case, or give negative ones back, soon; tell Redis of the places that are held now."""
        owed = self._owed.setdefault(account.name, (account, Counter()))[1]
        for quota, amount in amounts.items():
            owed[quota] += amount  # type: ignore[assignment]  # Counters count fractions too.
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(SETTLE_S, self._send_soon)

    async def beat(self) -> None:
        """Tell Redis that this router lives, with what is owed.

        Raises:
            StateUnavailableError: Redis does not answer.
        """
        await self._trip([], self._take_owed())

    async def close(self) -> None:
        """Send what is owed, and the places that are free now."""
        if self._owed:
            self._send_soon()
        if self._sending is not None:
            await self._sending

    def _send_soon(self) -> None:
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="quotas")

    async def _send(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            while self._charges or self._owed:
                if (wait_s := self._next_s - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                self._next_s = loop.time() + GATHER_S
                charges, self._charges = self._charges[:MOST_TOGETHER], self._charges[MOST_TOGETHER:]
                charges = [charge for charge in charges if not charge.answered.done()]
                try:
                    await self._trip(charges, self._take_owed())
                except StateUnavailableError as error:
                    for charge in charges:
                        if not charge.answered.done():
                            charge.answered.set_exception(error)
        finally:
            self._sending = None

    def _take_owed(self) -> list[tuple[Account, Counter[Quota]]]:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        owed, self._owed = list(self._owed.values()), {}
        return owed

    async def _trip(self, charges: list[_Charge], owed: list[tuple[Account, Counter[Quota]]]) -> None:
        keys = [f"{self._prefix}:routers"]
        numbers: dict[str, int] = {}
        asks = []
        for account, amounts in owed:
            asks.append(_ask(account, Use(amounts), _number(numbers, keys, self._key(account)), forced=True))
        for charge in charges:
            number = _number(numbers, keys, self._key(charge.account))
            asks.append(_ask(charge.account, charge.use, number, forced=False))
        constants = (self._router_id, str(round(LEASE_S * 1000)), str(COUNT_RETRY_S), str(MAX_DEBT_S))
        raw = await self._connection.evaluate(CHARGE, keys, (*constants, *asks))
        try:
            self.routers, answers = _read(raw, [account for account, _ in owed] + [each.account for each in charges])
        except ValueError as error:
            raise StateUnavailableError(
                self._connection.url, f"it answers what no script of ours does: {error}"
            ) from error
        for charge, answer in zip(charges, answers[len(owed) :], strict=True):
            self._answer(charge, answer)

    def _answer(self, charge: _Charge, answer: Granted | OverQuota) -> None:
        if not charge.answered.done():
            if isinstance(answer, Granted):
                charge.account.held.update(_limited(charge.account, charge.use))
            charge.answered.set_result(answer)
        elif isinstance(answer, Granted):
            self._undo(charge)

    def _undo(self, charge: _Charge) -> None:
        self.settle(charge.account, {quota: -amount for quota, amount in charge.use.amounts.items()})

    def _key(self, account: Account) -> str:
        return f"{self._prefix}:account:{account.name}"


def _limited(account: Account, use: Use) -> tuple[Quota, ...]:
    return tuple(quota for quota in account.limits.counts if quota in use.places)


def _number(numbers: dict[str, int], keys: list[str], key: str) -> int:
    """Return the place of a key in KEYS, from 1, and add it there if it is new."""
    if key not in numbers:
        keys.append(key)
        numbers[key] = len(keys)
    return numbers[key]


def _ask(account: Account, use: Use, number: int, *, forced: bool) -> str:
    return json.dumps(
        {
            "account": number,
            "held": {quota.value: count for quota, count in account.held.items() if count > 0},
            "places": [(quota.value, account.limits.counts[quota]) for quota in _limited(account, use)],
            "rates": [
                (quota.value, rate.per_s, rate.burst, rate.largest, use.amounts.get(quota))
                for quota, rate in account.limits.rates.items()
            ],
            "forced": forced,
        },
        allow_nan=False,
    )


def _read(raw: object, accounts: list[Account]) -> tuple[int, list[Granted | OverQuota]]:
    """Read what the script answers.

    Raises:
        ValueError: it is no answer to these charges.
    """
    if not isinstance(raw, list) or len(raw) != 1 + len(accounts) or not isinstance(raw[0], int):
        raise ValueError("the wrong number of answers")
    found: list[Granted | OverQuota] = []
    for account, answer in zip(accounts, raw[1:], strict=True):
        if not isinstance(answer, list) or len(answer) != 2 + len(account.limits.rates):
            raise ValueError("an answer of the wrong length")
        quota, *texts = answer
        wait_s, *full_in_s = (float(text) for text in texts)
        if not all(seconds >= 0 for seconds in (wait_s, *full_in_s)) or not all(map(math.isfinite, full_in_s)):
            raise ValueError("seconds that are none")
        uses = Uses(dict(zip(account.limits.rates, map(Bucket, full_in_s), strict=True)))
        found.append(OverQuota(Quota(quota), wait_s, uses) if quota else Granted(uses))
    return max(1, raw[0]), found
