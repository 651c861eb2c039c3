"""The entry point that the programs of both worker roles share."""

from __future__ import annotations

import logging

from services.audit import HOST, EventKind, Outcome, note
from services.config.exposure import ExposedError, check_worker_exposure
from services.config.logging import configure_logging
from services.config.redis import redis_options
from services.config.settings import Settings, WorkerSettings
from services.config.tls import TlsError, cluster_tls, process_id
from services.engine.protocol import EngineStartError
from services.identity.desk_tls import WorkerDeskTls
from services.identity.peer import PeerRole
from services.worker.engine_factory import create_engine, stated_kv_host
from services.worker.identity import default_worker_id
from services.worker.policy import RolePolicy
from services.worker.process import WorkerProcess
from services.worker.signals import StopSignals

_log = logging.getLogger(__name__)


async def run_worker(settings: Settings, worker: WorkerSettings, policy: RolePolicy) -> int:
    """Run one worker of a role until it ends, and return the exit code of its process."""
    worker_id = worker.id or default_worker_id(policy.role)
    configure_logging(settings.log, worker_id)
    try:
        tls = cluster_tls(settings.tls, PeerRole.WORKER)
        section = f"{policy.role.value}_worker"
        worker_id = process_id(tls, f"{section}.id", worker.id, worker_id)
        for option, host in ((f"{section}.host", worker.host), *stated_kv_host(settings)):
            check_worker_exposure(settings.auth, option, host, shows_certificate=tls is not None)
    except (TlsError, ExposedError) as error:
        _log.error("worker %s cannot start: %s", worker_id, error)
        return 2
    if not settings.redis.url:
        _log.error(
            "worker %s cannot start: redis.url is empty, and routers find workers through Redis; "
            "`slos-serve up` starts one for a whole cluster",
            worker_id,
        )
        return 1
    try:
        engine = create_engine(settings, worker_id, worker.host, None if tls is None else WorkerDeskTls(tls.watched))
    except EngineStartError as error:
        _log.error("worker %s cannot start: %s", worker_id, error)
        return 1
    process = WorkerProcess(
        worker_id, worker, redis_options(settings), policy, engine, settings.telemetry, settings.model.name, tls
    )

    def stop() -> None:
        note(EventKind.DRAIN, Outcome.DONE, worker_id, who=HOST)
        process.request_drain()

    with StopSignals(stop):
        return await process.run()
