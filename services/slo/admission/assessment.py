"""What would become of a request, were it taken now: the answer of an assessment."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.slo.contract import Contract, OnOverload
from services.slo.latency_forecast import Placement
from services.slo.planner import Binding


class Target(enum.Enum):
    """A target of a contract that not even an idle worker could keep."""

    TTFT = "TTFT"
    TPOT = "TPOT"


@dataclass(frozen=True, slots=True)
class Impossible:
    """A contract that no worker could keep, even with nothing else to do."""

    target: Target
    asked_s: float
    idle_s: float
    """What an idle worker needs, in seconds."""


class Unservable(enum.Enum):
    """Why a request cannot be served at all."""

    NO_WORKER = "there is no group of workers that could serve it"
    NEVER_FITS = "its context fits the KV cache of no worker"


@dataclass(frozen=True, slots=True)
class Held:
    """A request that finds no room now, but will within the time for which requests are held."""

    contract: Contract
    """The contract, resolved: slowdowns are seconds."""
    binding: Binding
    """What forbids a guarantee now."""
    earliest_guarantee_s: float
    """Seconds until it would be guaranteed if nothing else came."""
    replan_s: float | None
    """Seconds after which it should be planned again at the latest; None: when something changes."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What would become of a request, were it taken now."""

    contract: Contract
    """The contract, resolved: slowdowns are seconds."""
    placement: Placement
    binding: Binding
    """What forbids a guarantee; `Binding.NONE` if it is guaranteed."""
    impossible: Impossible | None = None
    """Set if not even an idle worker could keep the contract."""
    earliest_guarantee_s: float | None = None
    """Seconds until it would be guaranteed; None when it is already, or when that cannot be foreseen."""
    work_per_value: float | None = None
    """`Candidate.work_per_value` of the request; None if no room was looked for."""

    @property
    def guaranteed(self) -> bool:
        return self.binding is Binding.NONE

    @property
    def to_be_refused(self) -> bool:
        """Whether its contract asks for a refusal rather than for service without a guarantee, all that there is."""
        wants_refusal = self.contract.promises_anything and self.contract.on_overload is OnOverload.REFUSE
        return wants_refusal and not self.guaranteed
