"""Token buckets, which let through so much a second on average and so much at once.

A bucket is one number, the time at which it will be full again (the generic cell rate algorithm): nothing has to be
done as time passes, and a bucket that is full need not be kept at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_DEBT_S = 86_400.0
"""Longest time, in seconds, that a bucket in debt takes to come back to zero. A debt beyond a day's worth is forgiven,
so that no mistake shuts a tenant out for longer and no bucket must be remembered for longer."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate at which something may be used, and how much of it at once.

    Raises:
        ValueError: a figure is not positive and finite, or `largest` is below `burst`.
    """

    per_s: float
    """Amount per second."""
    burst: float
    """Amount that a full bucket holds."""
    largest: float = 0.0
    """Largest single amount that is ever let through. 0: `burst`. An amount above `burst` needs a full bucket, and
    leaves a debt."""

    def __post_init__(self) -> None:
        if not self.largest:
            object.__setattr__(self, "largest", self.burst)
        for name in ("per_s", "burst", "largest"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}")
        if self.largest < self.burst:
            raise ValueError(f"largest ({self.largest}) is below burst ({self.burst})")

    def share(self, sharers: int) -> Rate:
        """Return what each of so many has if all together have this rate; the largest amount stays the same."""
        return Rate(self.per_s / sharers, self.burst / sharers, self.largest)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The state of one bucket, without its rate."""

    full_at_s: float = -math.inf
    """Time at which the bucket is, or was, full again if nothing more is taken. Seconds on the caller's clock."""


FULL = Bucket()
"""A bucket of which nothing was ever taken."""


def remaining(rate: Rate, bucket: Bucket, now_s: float) -> float:
    """Return what is in a bucket; negative while it is in debt."""
    return rate.burst - max(0.0, bucket.full_at_s - now_s) * rate.per_s


def ready_at_s(rate: Rate, bucket: Bucket, amount: float) -> float:
    """Return the earliest time at which an amount may be taken; infinite if it is beyond the largest."""
    if amount > rate.largest:
        return math.inf
    return bucket.full_at_s - (rate.burst - min(amount, rate.burst)) / rate.per_s


def taken(rate: Rate, bucket: Bucket, amount: float, now_s: float) -> Bucket:
    """Return the bucket after an amount was taken, whether it was there or not; a negative amount is given back.

    What is given back undoes what was taken: nothing is gained by taking too much and giving the rest back, except
    that the time in between was not lost to a bucket that was full.
    """
    latest_s = now_s + rate.burst / rate.per_s + MAX_DEBT_S
    return Bucket(min(max(bucket.full_at_s, now_s) + amount / rate.per_s, latest_s))


def wait_s(ready_s: float, now_s: float) -> float:
    """Return the seconds from now to a time, rounded so that `now_s` plus them is never before that time."""
    wait = max(0.0, ready_s - now_s)
    if math.isfinite(wait) and now_s + wait < ready_s:
        wait += math.ulp(ready_s)
    return wait
