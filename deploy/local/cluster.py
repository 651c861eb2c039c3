"""Start and stop of a cluster of processes on this machine."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from deploy.local import processes
from deploy.local.certificates import LocalCertificates
from deploy.local.cores import assign_cores
from deploy.local.errors import ClusterRunningError, ClusterStartError
from deploy.local.operator_key import check_operator_key
from deploy.local.ports import check_ports, free_port
from deploy.local.processes import RunningProcess
from deploy.local.readiness import Readiness, check_redis
from deploy.local.redis_server import guarded_redis_command
from deploy.local.run_directory import (
    RunningCluster,
    forget_state,
    read_state,
    run_directory,
    stop_command,
    write_state,
)
from deploy.local.start_times import Awaited, StartTimes, StartWatch
from deploy.redis_users import acl_lines, password_file
from services.config.cluster_tls import TlsSettings
from services.config.environment import variable
from services.config.own_credential import own_credential
from services.config.settings import Settings
from services.config.tls import TlsError, client_tls
from services.identity.peer import PeerRole
from services.model.directory import locate_model
from services.network.address import LOOPBACK, local_address
from services.network.credentials import without_credentials
from services.state.acl import AclError, RedisRole, user_name
from slos_serve import Client, CredentialError, RetryPolicy

POLL_S = 0.1


def _show_nothing(_awaited: Sequence[Awaited]) -> None:
    pass


@dataclass(slots=True)
class LocalCluster:
    """Starts and stops a cluster as the configuration says.

    Args:
        config: the TOML file behind the settings, handed on to every process.
        die_with_parent: all processes end when this one does, however it ends.
        report: called with a line whenever something is started or stopped.
        environment: more options for every process, as environment variables.
        waiting: called several times a second with what the start waits for, and at its end with nothing.
    """

    settings: Settings
    config: Path | None
    die_with_parent: bool
    report: Callable[[str], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    waiting: Callable[[Sequence[Awaited]], None] = _show_nothing
    _running: RunningCluster = field(default_factory=lambda: RunningCluster("", "", ()))
    _shared: dict[str, str] = field(default_factory=dict)
    _certificates: LocalCertificates | None = None
    _watch: StartWatch | None = None
    """Only while the cluster starts."""

    def start(self) -> RunningCluster:
        """Start all processes and wait until they are ready.

        Raises:
            ClusterRunningError: a cluster runs from the same run directory.
            ClusterStartError: the credential of this process is no operator's, an address is in use, Redis does not
                answer, a process ended, or not everything was ready in time.
            RunDirectoryError: the run directory cannot be used.
            ModelNotFoundError: the configured model cannot be found.
        """
        settings = self.settings
        run_dir = run_directory(settings.launcher)
        if (running := read_state(run_dir)) is not None:
            names = ", ".join(process.name for process in running.processes)
            raise ClusterRunningError(
                f"a cluster runs from {run_dir} already ({names}); `{stop_command(run_dir)}` stops it"
            )
        if settings.tls != TlsSettings():
            raise ClusterStartError(
                "tls.ca, tls.certificate and tls.key are those of one process; launcher.tls = true makes certificates "
                "for a whole cluster on this machine"
            )
        check_operator_key(settings.auth, own_credential(), datetime.now(UTC))
        check_ports(settings)
        if settings.redis.url:
            check_redis(settings.redis)
        port = settings.router.port or free_port(settings.router.host)
        self._running = RunningCluster(local_address(settings.router.host, port), settings.redis.url, ())
        write_state(run_dir, self._running)
        if settings.launcher.tls:
            self._certificates = LocalCertificates.create(run_dir / "certs")
            self._running = replace(self._running, certificates=str(self._certificates.directory))
        watch = self._watch = StartWatch(StartTimes(run_dir), self.waiting, time.monotonic)
        try:
            self.report(f"model {settings.model.path}")
            model = locate_model(settings.model, weights=settings.engine.kind == "vllm")
            redis_url = settings.redis.url or self._start_redis()
            self._shared = {
                **self.environment,
                variable(("redis", "url")): redis_url,
                variable(("model", "path")): str(model.path),
                variable(("model", "name")): model.name,
            }
            for role, count in (("prefill", self.settings.launcher.prefill), ("decode", self.settings.launcher.decode)):
                for index in range(count):
                    self.start_worker(role, index)
            own = {**self._redis_user(RedisRole.ROUTER), **self._tls(PeerRole.ROUTER)}
            environment = {**self._shared, **own}
            self._start("router", {**environment, variable(("router", "port")): str(port)})
            if self.settings.launcher.gateway:
                self._start_gateway()
            self._wait_ready(watch)
        except BaseException:
            watch.give_up()
            self.stop()
            raise
        finally:
            self._watch = None
        return self._running

    @property
    def redis_url(self) -> str:
        """URL of Redis, with the password of a router if it was started here."""
        url = self._running.redis_url
        if self.settings.redis.url or not url:
            return url
        user = user_name(self.settings.redis.prefix, RedisRole.ROUTER)
        password = password_file(self._redis_directory, RedisRole.ROUTER).read_text().strip()
        return url.replace("//", f"//{quote(user, safe='')}:{password}@")

    def stop(self) -> None:
        """Stop everything that was started, in order."""
        self._running.stop(self.report)
        forget_state(run_directory(self.settings.launcher))

    def _start_redis(self) -> str:
        port = free_port()
        directory = self._redis_directory
        try:
            command = guarded_redis_command(port, directory, acl_lines(self.settings.redis.prefix, directory))
        except (OSError, AclError) as error:
            raise ClusterStartError(f"the users of Redis cannot be made in {directory}: {error}") from error
        url = f"redis://{LOOPBACK}:{port}/0"
        self._running = replace(self._running, redis_url=url)
        self._keep(processes.start("redis", command, self._log("redis"), {}, die_with_parent=self.die_with_parent))
        return url

    @property
    def _redis_directory(self) -> Path:
        """Where passwords and configuration of the Redis that is started here are kept."""
        return run_directory(self.settings.launcher) / "redis"

    def _redis_user(self, role: RedisRole) -> dict[str, str]:
        """Return the options by which a process uses the Redis that was started here; another has its own."""
        if self.settings.redis.url:
            return {}
        return {
            variable(("redis", "username")): user_name(self.settings.redis.prefix, role),
            variable(("redis", "password_file")): str(password_file(self._redis_directory, role)),
        }

    def _tls(self, role: PeerRole, process_id: str = "") -> dict[str, str]:
        return {} if self._certificates is None else self._certificates.environment(role, process_id)

    def _start_gateway(self) -> None:
        port = self.settings.gateway.port or free_port(self.settings.gateway.host)
        address = local_address(self.settings.gateway.host, port)
        self._running = replace(self._running, gateway_address=address)
        environment = {
            **self._shared,
            **self._redis_user(RedisRole.GATEWAY),
            **self._tls(PeerRole.GATEWAY),
            variable(("gateway", "port")): str(port),
            variable(("gateway", "routers")): json.dumps([self._running.router_address]),
        }
        self._start("gateway", environment)

    def start_worker(self, role: str, index: int, extra: Mapping[str, str] | None = None) -> RunningProcess:
        """Start one worker of the pool `prefill` or `decode`, under a name that is unique in its pool.

        Args:
            extra: options of this worker alone, as environment variables.
        """
        launcher = self.settings.launcher
        who = {**self._redis_user(RedisRole.WORKER), **self._tls(PeerRole.WORKER, f"{role}-{index}")}
        environment = {**self._shared, **who, variable((f"{role}_worker", "id")): f"{role}-{index}", **(extra or {})}
        if not self.settings.engine.vllm.cpu_cores:
            cores = assign_cores(launcher.prefill + launcher.decode, sorted(os.sched_getaffinity(0)))
            own = cores[(index if role == "prefill" else launcher.prefill + index) % len(cores)]
            environment[variable(("engine", "vllm", "cpu_cores"))] = json.dumps(own)
        return self._start(f"{role}-worker", environment, name=f"{role}-{index}")

    def _start(self, command: str, environment: Mapping[str, str], name: str = "") -> RunningProcess:
        name = name or command
        environment = {**environment, **self._metrics(name)}
        line = [sys.executable, "-m", "cli", command]
        if self.config is not None:
            line += ["--config", str(self.config.resolve())]
        self.report(f"starting {name}")
        process = self._keep(
            processes.start(name, line, self._log(name), environment, die_with_parent=self.die_with_parent)
        )
        if self._watch is not None:
            self._watch.begin(name, *self._kind(command))
        return process

    def _kind(self, command: str) -> tuple[str, str]:
        """Return what decides how long a process takes to start, and what it does meanwhile."""
        if not command.endswith("-worker"):
            return command, "starts"
        model = self._shared[variable(("model", "name"))]
        if self.settings.engine.kind == "emulated":
            return f"{command} emulated", "starts an emulated engine"
        return f"{command} {self.settings.engine.kind} {model}", f"loads {model}"

    def _metrics(self, name: str) -> dict[str, str]:
        """Return the metrics port of a process, which it keeps when it is started again."""
        telemetry = self.settings.telemetry
        if not telemetry.metrics:
            return {}
        known = self._running.metrics
        if name not in known:
            port = telemetry.metrics_port + len(known) if telemetry.metrics_port else free_port(telemetry.metrics_host)
            address = local_address(telemetry.metrics_host, port)
            self._running = replace(self._running, metrics={**known, name: address})
        return {variable(("telemetry", "metrics_port")): self._running.metrics[name].rpartition(":")[2]}

    def _log(self, name: str) -> Path:
        return run_directory(self.settings.launcher) / f"{name}.log"

    def _keep(self, process: RunningProcess) -> RunningProcess:
        """Add a process to the run directory at once, so that `down` finds it whatever happens next."""
        self._running = replace(self._running, processes=(*self._running.processes, process))
        write_state(run_directory(self.settings.launcher), self._running)
        return process

    def _wait_ready(self, watch: StartWatch) -> None:
        """Wait until everything that was started serves.

        Raises:
            ClusterStartError
        """
        deadline_s = time.monotonic() + self.settings.launcher.start_timeout_s
        try:
            cluster = None if self._certificates is None else self._certificates.operator()
            tls = client_tls(self.settings.router, self.settings.gateway, cluster)
            once = RetryPolicy(max_attempts=1)
            client = Client(self._running.router_address, tls=tls, api_key=own_credential(), retry=once)
        except (TlsError, CredentialError) as error:
            raise ClusterStartError(str(error)) from error
        with client:
            readiness = Readiness(client, self._running, self.settings.gateway.tls_certificate)
            while not watch.look(readiness.look()):
                for process in self._running.processes:
                    if process.process() is None:
                        raise ClusterStartError(f"{process.name} ended; its log says:\n{process.log_tail()}")
                if time.monotonic() > deadline_s:
                    late = ", ".join(one.name for one in watch.awaited())
                    limit_s = self.settings.launcher.start_timeout_s
                    away = readiness.redis_is_away
                    why = f"; Redis at {without_credentials(self.redis_url)} is unreachable" if away else ""
                    raise ClusterStartError(f"not ready within {limit_s:.0f} s: {late}{why}")
                time.sleep(POLL_S)


@contextmanager
def running_cluster(cluster: LocalCluster) -> Iterator[RunningCluster]:
    """Start a cluster for the duration of a `with` block."""
    running = cluster.start()
    try:
        yield running
    finally:
        cluster.stop()
