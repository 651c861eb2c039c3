"""One request as it is remembered after its end."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.requests.lateness import Course, Lateness
from router.requests.live_request import LiveRequest
from router.requests.parsed_request import ParsedRequest
from router.requests.phases import Phase, broken_by
from router.requests.planning_log import PlanningLog
from services.slo.attainment import Attainment
from services.slo.contract import Contract
from services.state.journal_entry import RequestState
from slos_serve.v1 import inference_pb2

OWN_CONTRACT, NO_CONTRACT = "own contract", "no contract"
"""Names under which requests are counted that name no profile: those with targets of their own, and those without."""
KEPT_CHARACTERS = 128
"""Number of characters that are kept of a tenant's or an application's name."""


class Ending(enum.Enum):
    """The ending of a request, or that it is running."""

    RUNNING = "running"
    KEPT = "kept"
    MISSED = "missed"
    UNPROMISED = "no promise"
    """The request ran to its end without a guarantee."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Targets:
    """The latency targets of a contract, without the texts in it."""

    ttft_s: float | None
    max_slowdown: float | None
    """Allowed slowdown of the first token; it stands in for `ttft_s` if the request was refused before its contract was
    resolved.
    """
    tpot_s: tuple[float, ...]
    """Seconds per output token of each decode stage."""

    @classmethod
    def of(cls, contract: Contract) -> Targets:
        """Return the targets of a contract."""
        prefill = contract.prefill
        return cls(
            ttft_s=None if prefill is None else prefill.ttft_s,
            max_slowdown=None if prefill is None else prefill.max_slowdown,
            tpot_s=tuple(stage.tpot_s for stage in contract.decode),
        )


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """The record of one request. Times are on the router's clock, in seconds.

    Neither prompt nor output is kept, and no more than `KEPT_CHARACTERS` of each text that the client chose.
    """

    request_id: str
    tenant: str
    application: str
    profile: str
    """The profile that the contract names, `OWN_CONTRACT` or `NO_CONTRACT`."""
    targets: Targets
    guaranteed: bool
    ending: Ending
    arrival_s: float
    ended_s: float
    """When the request ended; the moment of the record if it is running."""
    prompt_tokens: int
    planning: PlanningLog
    completion_tokens: int = 0
    cached_tokens: int = 0
    restarts: int = 0
    kv_recomputes: int = 0
    prefill_worker_id: str = ""
    decode_worker_id: str = ""
    attainment: Attainment | None = None
    phases_s: Mapping[Phase, float] | None = None
    changes: tuple[tuple[Phase, float], ...] = ()
    """The phases in the order in which they ended, each with its end."""
    phase: Phase | None = None
    """The phase in which the request ended, or is."""
    broken_by: Phase | None = None
    """The phase in which a guarantee was missed; None if none was."""
    kv_pull: inference_pb2.KvPull | None = None
    detail: str = ""
    """Why the request failed or was refused, in words."""
    trace_id: str = ""
    """The id of the trace; empty without one."""
    latenesses: tuple[Lateness, ...] | None = None
    """Who made it late; None if that was not looked up as it ended, which is done for broken guarantees only."""

    @property
    def course(self) -> Course | None:
        """What decides whether the request was late; None if it was never admitted."""
        if self.attainment is None:
            return None
        return Course(
            self.request_id,
            self.arrival_s,
            self.ended_s,
            self.prefill_worker_id,
            self.decode_worker_id,
            self.attainment,
        )


def profile_of(contract: Contract) -> str:
    """Return the name under which requests with this contract are counted: a profile's, or one of two others."""
    if contract.profile:
        return contract.profile
    return OWN_CONTRACT if contract.promises_anything else NO_CONTRACT


def record_of(
    request: LiveRequest, now_s: float, idle_prefill_s: Callable[[LiveRequest], float], detail: str = ""
) -> RequestRecord:
    """Return the record of a request as it is at this moment.

    Args:
        idle_prefill_s: the seconds that a prompt would take on an idle worker; asked for only when a guarantee was
            missed.
        detail: why the request failed, in words.
    """
    attainment = request.meter.attainment()
    phases_s = request.clock.spent_s(now_s)
    broken = None
    if request.guaranteed and not attainment.kept:
        broken = broken_by(attainment, phases_s, idle_prefill_s(request))
    return RequestRecord(
        request_id=request.request_id,
        tenant=request.parsed.tenant[:KEPT_CHARACTERS],
        application=request.parsed.application[:KEPT_CHARACTERS],
        profile=profile_of(request.contract),
        targets=Targets.of(request.contract),
        guaranteed=request.guaranteed,
        ending=_ending(request, attainment),
        arrival_s=request.meter.arrival_s,
        ended_s=now_s,
        prompt_tokens=len(request.parsed.prompt),
        planning=request.planning,
        completion_tokens=len(request.generated),
        cached_tokens=request.cached_tokens,
        restarts=request.restarts,
        kv_recomputes=request.kv_recomputes,
        prefill_worker_id=request.prefill_worker_id,
        decode_worker_id=request.decode_worker_id,
        attainment=attainment,
        phases_s=phases_s,
        changes=tuple(request.clock.changes),
        phase=request.clock.phase,
        broken_by=broken,
        kv_pull=request.kv_pull,
        detail=detail,
        trace_id=request.trace_id,
    )


def refusal_record(
    parsed: ParsedRequest, planning: PlanningLog, arrival_s: float, now_s: float, detail: str, trace_id: str = ""
) -> RequestRecord:
    """Return the record of a request that was understood but not admitted."""
    return RequestRecord(
        request_id=parsed.request_id,
        tenant=parsed.tenant[:KEPT_CHARACTERS],
        application=parsed.application[:KEPT_CHARACTERS],
        profile=profile_of(parsed.contract),
        targets=Targets.of(parsed.contract),
        guaranteed=False,
        ending=Ending.REFUSED,
        arrival_s=arrival_s,
        ended_s=now_s,
        prompt_tokens=len(parsed.prompt),
        planning=planning,
        detail=detail,
        trace_id=trace_id,
    )


def _ending(request: LiveRequest, attainment: Attainment) -> Ending:
    match request.state:
        case RequestState.DONE if not request.guaranteed:
            return Ending.UNPROMISED
        case RequestState.DONE:
            return Ending.KEPT if attainment.kept else Ending.MISSED
        case RequestState.FAILED:
            return Ending.FAILED
        case RequestState.CANCELLED:
            return Ending.CANCELLED
        case _:
            return Ending.RUNNING
