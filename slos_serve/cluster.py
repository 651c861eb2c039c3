"""The state of the cluster as a router sees it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from slos_serve.events import Phases, RateLimit, phases_from_wire, rate_limits_from_wire
from slos_serve.v1 import inference_pb2


class WorkerRole(enum.Enum):
    """The pool a worker belongs to."""

    UNKNOWN = inference_pb2.WORKER_ROLE_UNSPECIFIED
    PREFILL = inference_pb2.WORKER_ROLE_PREFILL
    DECODE = inference_pb2.WORKER_ROLE_DECODE


class WorkerHealth(enum.Enum):
    """Whether a worker takes work."""

    UNKNOWN = inference_pb2.WORKER_HEALTH_UNSPECIFIED
    CONNECTING = inference_pb2.WORKER_HEALTH_CONNECTING
    """The worker is registered, and its session is being opened."""
    READY = inference_pb2.WORKER_HEALTH_READY
    """The worker takes requests."""
    DRAINING = inference_pb2.WORKER_HEALTH_DRAINING
    """The worker finishes what it has and takes nothing new."""
    INCOMPATIBLE = inference_pb2.WORKER_HEALTH_INCOMPATIBLE
    """The worker does not match the model or the other pool, and is never used."""


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Figures of an engine's scheduler since the engine started, and how well it predicts its own steps."""

    prediction_error: float
    """Mean absolute error of the expected times of recent steps, relative to the observed ones."""
    bound_coverage: float
    """Share of steps that took no longer than they were composed for, which is meant to be 99 %."""
    compose_s: float
    """Seconds that it takes to compose a step."""
    preempted: int
    """Times that a request gave up its memory for another."""
    held: int
    """Times that a running request sat a step out."""
    contracts_missing: int
    """Requests treated as best effort because they reached the engine without a contract."""
    contracts_malformed: int
    """Requests treated as best effort because their contract makes no sense."""
    drafted: int
    """Draft tokens verified."""
    accepted: int
    """Draft tokens that were right, of those verified."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The state of one worker."""

    worker_id: str
    role: WorkerRole
    address: str
    engine_epoch: str
    health: WorkerHealth
    running_requests: int
    waiting_requests: int
    kv_blocks_total: int
    kv_blocks_used: int
    kv_blocks_leased: int
    """Blocks of finished prefills that wait to be pulled."""
    steps: int
    last_step_s: float
    step_time_scale: float
    """Ratio of recent step times to those of the performance profile that the worker brought along."""
    step_time_error: float
    """Mean absolute error of the predicted times of recent steps, relative to the observed ones."""
    step_time_bound: float
    """Multiple of the predicted time within which 99 % of recent steps ended."""
    emulated: bool
    detail: str
    """Reason why the worker is not used, in words; empty if it is."""
    scheduling: Scheduling | None = None
    """Figures of its engine's scheduler; None until the engine has reported some."""
    metrics_address: str = ""
    """host:port of its page for Prometheus (/metrics); empty if it has none."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts of what happened since the router started."""

    received: int
    guaranteed: int
    best_effort: int
    refused: int
    finished: int
    cancelled: int
    failed: int
    kept: int
    """Guaranteed requests whose contract was kept."""
    missed: int
    restarts: int
    kv_recomputes: int
    workers_lost: int
    rounds: int = 0
    """Number of planning rounds."""
    planning_s: float = 0.0
    """Seconds that planning rounds took."""


@dataclass(frozen=True, slots=True)
class ProfileState:
    """The requests of one profile that ended recently."""

    profile: str
    """Name of the profile, or "own contract", "no contract", "turned away"."""
    kept: int
    """Guaranteed requests whose contract was kept."""
    missed: int
    best_effort: int
    """Requests that ran without a guarantee to their end."""
    cancelled: int
    failed: int
    refused: Mapping[str, int]
    """Refused requests by the resource that was short, or else by the name of the error."""
    missed_in: Mapping[str, int]
    """Missed promises by the phase in which they were lost."""
    mean_phases: Phases
    """Mean time of each phase, over the requests that were admitted."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A request failed, or missed its contract although that was guaranteed."""

    request_id: str
    profile: str
    ended_before_s: float
    """Seconds since the request ended."""
    what: str
    """Target that was missed, or the error, in words."""
    phase: str
    """Phase in which the target was missed; empty for a failure."""
    prefill_worker_id: str
    decode_worker_id: str
    restarts: int


@dataclass(frozen=True, slots=True)
class TenantState:
    """The use that one tenant makes of its quotas."""

    tenant: str
    """Name of the tenant; `default` stands for all whose names are only claimed."""
    limits: tuple[RateLimit, ...]
    """Quotas of the tenant. Rates are the cluster's, as the router last heard; counts are those of the router alone."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """One router and the workers connected to it, at one moment."""

    router_id: str
    model: str
    uptime_s: float
    workers: tuple[WorkerState, ...]
    queued_requests: int
    """Requests that wait in the router for room on a worker."""
    running_requests: int
    counters: Counters
    redis_connected: bool
    warnings: tuple[str, ...]
    """Messages that an operator should know."""
    held_requests: int = 0
    """Requests held without a verdict, because room for them is in sight."""
    console_url: str = ""
    """URL of the router's console for a browser; empty if it has none."""
    recent_s: float = 0.0
    """Seconds of the past that `profiles` sums up."""
    profiles: tuple[ProfileState, ...] = ()
    trouble: tuple[Trouble, ...] = ()
    """Last requests that failed or missed their contract, newest first, however long ago."""
    metrics_address: str = ""
    """host:port of the router's page for Prometheus (/metrics); empty if it has none."""
    ready: bool = False
    """Whether workers are connected that can serve a request between them."""
    process: int = 1
    """Number, from 1, of the process that answered among those that share one port. Counters, profiles, queue and
    trouble are those of this process alone."""
    processes: int = 1
    """Number of router processes that share the port."""
    tenants: tuple[TenantState, ...] = ()
    """Tenants with quotas that the router has lately let something through for, at most 100 of them."""

    @property
    def partial(self) -> bool:
        """Return whether the caller's credential is a client's: then only `ready`, `model` and `warnings` are told."""
        return not self.router_id


def cluster_state_from_wire(message: inference_pb2.ClusterState) -> ClusterState:
    counters = message.counters
    return ClusterState(
        router_id=message.router_id,
        model=message.model,
        uptime_s=message.uptime_s,
        workers=tuple(_worker(worker) for worker in message.workers),
        queued_requests=message.queued_requests,
        running_requests=message.running_requests,
        counters=Counters(
            received=counters.received,
            guaranteed=counters.guaranteed,
            best_effort=counters.best_effort,
            refused=counters.refused,
            finished=counters.finished,
            cancelled=counters.cancelled,
            failed=counters.failed,
            kept=counters.kept,
            missed=counters.missed,
            restarts=counters.restarts,
            kv_recomputes=counters.kv_recomputes,
            workers_lost=counters.workers_lost,
            rounds=counters.rounds,
            planning_s=counters.planning_s,
        ),
        redis_connected=message.redis_connected,
        warnings=tuple(message.warnings),
        held_requests=message.held_requests,
        console_url=message.console_url,
        recent_s=message.recent_s,
        profiles=tuple(_profile(profile) for profile in message.profiles),
        trouble=tuple(_trouble(trouble) for trouble in message.trouble),
        metrics_address=message.metrics_address,
        ready=message.ready,
        # A router that does not know these fields is alone.
        process=max(1, message.process),
        processes=max(1, message.processes),
        tenants=tuple(TenantState(each.tenant, rate_limits_from_wire(each.limits)) for each in message.tenants),
    )


_ROLES: dict[int, WorkerRole] = {role.value: role for role in WorkerRole}
_HEALTHS: dict[int, WorkerHealth] = {health.value: health for health in WorkerHealth}


def _worker(worker: inference_pb2.WorkerState) -> WorkerState:
    return WorkerState(
        worker_id=worker.worker_id,
        role=_ROLES.get(worker.role, WorkerRole.UNKNOWN),
        address=worker.address,
        engine_epoch=worker.engine_epoch,
        health=_HEALTHS.get(worker.health, WorkerHealth.UNKNOWN),
        running_requests=worker.running_requests,
        waiting_requests=worker.waiting_requests,
        kv_blocks_total=worker.kv_blocks_total,
        kv_blocks_used=worker.kv_blocks_used,
        kv_blocks_leased=worker.kv_blocks_leased,
        steps=worker.steps,
        last_step_s=worker.last_step_s,
        step_time_scale=worker.step_time_scale,
        step_time_error=worker.step_time_error,
        step_time_bound=worker.step_time_bound,
        emulated=worker.emulated,
        detail=worker.detail,
        scheduling=_scheduling(worker.scheduling) if worker.HasField("scheduling") else None,
        metrics_address=worker.metrics_address,
    )


def _profile(state: inference_pb2.ProfileState) -> ProfileState:
    return ProfileState(
        profile=state.profile,
        kept=state.kept,
        missed=state.missed,
        best_effort=state.best_effort,
        cancelled=state.cancelled,
        failed=state.failed,
        refused=dict(state.refused),
        missed_in=dict(state.missed_in),
        mean_phases=phases_from_wire(state.mean_phases),
    )


def _trouble(trouble: inference_pb2.Trouble) -> Trouble:
    return Trouble(
        request_id=trouble.request_id,
        profile=trouble.profile,
        ended_before_s=trouble.ended_before_s,
        what=trouble.what,
        phase=trouble.phase,
        prefill_worker_id=trouble.prefill_worker_id,
        decode_worker_id=trouble.decode_worker_id,
        restarts=trouble.restarts,
    )


def _scheduling(state: inference_pb2.SchedulingState) -> Scheduling:
    return Scheduling(
        prediction_error=state.prediction_error,
        bound_coverage=state.bound_coverage,
        compose_s=state.compose_s,
        preempted=state.preempted,
        held=state.held,
        contracts_missing=state.contracts_missing,
        contracts_malformed=state.contracts_malformed,
        drafted=state.drafted,
        accepted=state.accepted,
    )
