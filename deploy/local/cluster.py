"""Start and stop of a cluster of processes on this machine."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from deploy.local import processes
from deploy.local.cores import assign_cores
from deploy.local.processes import RunningProcess
from deploy.local.redis_server import LOOPBACK, free_port, redis_command
from deploy.local.start_times import Awaited, StartTimes, StartWatch
from services.config.settings import ENVIRONMENT_PREFIX, Settings
from services.config.tls import TlsError, client_tls
from services.model.directory import locate_model
from services.network.address import join_address
from slos_serve import Client, RetryPolicy, SlosServeError, WorkerHealth

STATE_FILE = "cluster.json"
TARGETS_FILE = "prometheus-targets.json"
"""File in the run directory that tells a Prometheus on this machine (`file_sd_configs`) what to scrape."""
POLL_S = 0.1
CONNECT_S = 1.0
"""Seconds after which a port on this machine that does not take a connection is one on which nobody listens."""
STOP_GRACE_S = 15.0


class ClusterStartError(Exception):
    """The cluster did not start; the message has what the failing process wrote last."""


class ClusterRunningError(Exception):
    """A cluster runs already from the same run directory."""


class NoClusterError(Exception):
    """No cluster runs from the run directory."""


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """The processes of a running cluster, as written to the run directory."""

    router_address: str
    redis_url: str
    processes: tuple[RunningProcess, ...]
    gateway_address: str = ""
    """Address of the gateway as host:port; empty if none was started."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Addresses of the metrics of each process as host:port, by the name of the process."""

    def stop(self, report: Callable[[str], None]) -> None:
        """Stop all processes: gateway and router first, so that no requests come; Redis last, as workers deregister."""
        for prefix in ("gateway", "router", "prefill", "decode", "redis"):
            group = [process for process in self.processes if process.name.startswith(prefix)]
            if group:
                report(f"stopping {', '.join(process.name for process in group)}")
                processes.stop(group, STOP_GRACE_S, report)


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
    _watch: StartWatch | None = None
    """Only while the cluster starts."""

    def start(self) -> RunningCluster:
        """Start all processes and wait until they are ready.

        Raises:
            ClusterRunningError: a cluster runs from the same run directory.
            ClusterStartError: a process ended, or not everything was ready in time.
            ModelNotFoundError: the configured model cannot be found.
        """
        run_dir = self.settings.launcher.run_dir.resolve()
        if (running := read_state(run_dir)) is not None:
            names = ", ".join(process.name for process in running.processes)
            raise ClusterRunningError(f"a cluster runs from {run_dir} already ({names}); `slos-serve down` stops it")
        run_dir.mkdir(parents=True, exist_ok=True)
        self.report(f"model {self.settings.model.path}")
        model = locate_model(self.settings.model, weights=self.settings.engine.kind == "vllm")
        port = self.settings.router.port or free_port()
        self._running = RunningCluster(f"{LOOPBACK}:{port}", self.settings.redis.url, ())
        watch = self._watch = StartWatch(StartTimes(run_dir), self.waiting, time.monotonic)
        try:
            redis_url = self.settings.redis.url or self._start_redis()
            self._shared = {
                **self.environment,
                _variable("redis", "url"): redis_url,
                _variable("model", "path"): str(model.path),
                _variable("model", "name"): model.name,
            }
            for role, count in (("prefill", self.settings.launcher.prefill), ("decode", self.settings.launcher.decode)):
                for index in range(count):
                    self.start_worker(role, index)
            self._start("router", {**self._shared, _variable("router", "port"): str(port)})
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
        return self._running.redis_url

    def stop(self) -> None:
        """Stop everything that was started, in order."""
        self._running.stop(self.report)
        forget_state(self.settings.launcher.run_dir.resolve())

    def _start_redis(self) -> str:
        port = free_port()
        log = self._log("redis")
        command = redis_command(port, log.parent)
        url = f"redis://{LOOPBACK}:{port}/0"
        self._running = replace(self._running, redis_url=url)
        self._keep(processes.start("redis", command, log, {}, die_with_parent=self.die_with_parent))
        return url

    def _start_gateway(self) -> None:
        port = self.settings.gateway.port or free_port()
        address = join_address(self.settings.gateway.host, port)
        self._running = replace(self._running, gateway_address=address)
        environment = {
            **self._shared,
            _variable("gateway", "port"): str(port),
            _variable("gateway", "routers"): json.dumps([self._running.router_address]),
        }
        self._start("gateway", environment)

    def start_worker(self, role: str, index: int, extra: Mapping[str, str] | None = None) -> RunningProcess:
        """Start one worker of the pool `prefill` or `decode`, under a name that is unique in its pool.

        Args:
            extra: options of this worker alone, as environment variables.
        """
        launcher = self.settings.launcher
        environment = {**self._shared, _variable(f"{role}_worker", "id"): f"{role}-{index}", **(extra or {})}
        if not self.settings.engine.vllm.cpu_cores:
            cores = assign_cores(launcher.prefill + launcher.decode, sorted(os.sched_getaffinity(0)))
            own = cores[(index if role == "prefill" else launcher.prefill + index) % len(cores)]
            environment[_variable("engine", "vllm", "cpu_cores")] = json.dumps(own)
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
        model = self._shared[_variable("model", "name")]
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
            port = telemetry.metrics_port + len(known) if telemetry.metrics_port else free_port()
            address = join_address(telemetry.metrics_host, port)
            self._running = replace(self._running, metrics={**known, name: address})
        return {_variable("telemetry", "metrics_port"): self._running.metrics[name].rpartition(":")[2]}

    def _log(self, name: str) -> Path:
        return self.settings.launcher.run_dir.resolve() / f"{name}.log"

    def _keep(self, process: RunningProcess) -> RunningProcess:
        """Add a process to the run directory at once, so that `down` finds it whatever happens next."""
        self._running = replace(self._running, processes=(*self._running.processes, process))
        _write_state(self.settings.launcher.run_dir.resolve(), self._running)
        return process

    def _wait_ready(self, watch: StartWatch) -> None:
        """Wait until everything that was started serves.

        Raises:
            ClusterStartError
        """
        deadline_s = time.monotonic() + self.settings.launcher.start_timeout_s
        try:
            tls = client_tls(self.settings.router, self.settings.gateway)
        except TlsError as error:
            raise ClusterStartError(str(error)) from error
        address = self._running.router_address
        with Client(address, tls=tls, retry=RetryPolicy(max_attempts=1)) as client:
            # gRPC waits longer and longer between its own attempts at a port on which nobody listens yet.
            while not watch.look(self._ready(client) if _is_listening(address) else ()):
                for process in self._running.processes:
                    if process.process() is None:
                        raise ClusterStartError(f"{process.name} ended; its log says:\n{process.log_tail()}")
                if time.monotonic() > deadline_s:
                    late = ", ".join(one.name for one in watch.awaited())
                    raise ClusterStartError(f"not ready within {self.settings.launcher.start_timeout_s:.0f} s: {late}")
                time.sleep(POLL_S)

    def _ready(self, client: Client) -> set[str]:
        """Return the names of the processes that serve."""
        try:
            state = client.cluster_state(timeout_s=2.0)
        except SlosServeError:
            return set()
        ready = {"router", *(worker.worker_id for worker in state.workers if worker.health is WorkerHealth.READY)}
        gateway = self._running.gateway_address
        if gateway and _healthy(gateway, self.settings.gateway.tls_certificate) in {True, state.ready}:
            ready.add("gateway")
        return ready


def _is_listening(address: str) -> bool:
    """Return whether a server takes connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return True
    except OSError:
        return False


def _healthy(address: str, certificate: Path | None) -> bool | None:
    """Return what a gateway's health check says of the cluster; None if the gateway does not answer.

    Args:
        certificate: PEM file of the gateway's certificate, if it serves https.
    """
    host, _, port = address.rpartition(":")
    if certificate is None:
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=5.0)
    else:
        context = ssl.create_default_context(cafile=str(certificate))
        # It was started here: whether it listens is asked, not for which name, nor who signed it.
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=5.0, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return None
    finally:
        connection.close()


def read_state(run_dir: Path) -> RunningCluster | None:
    """Read which cluster runs from a run directory; None if none does."""
    file = run_dir / STATE_FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    recorded = [RunningProcess(**process) for process in content["processes"]]
    live = tuple(process for process in recorded if process.process() is not None)
    if not live:
        return None
    return RunningCluster(
        content["router_address"],
        content["redis_url"],
        live,
        gateway_address=content.get("gateway_address", ""),
        metrics=content.get("metrics", {}),
    )


def _write_state(run_dir: Path, cluster: RunningCluster) -> None:
    (run_dir / STATE_FILE).write_text(json.dumps(asdict(cluster), indent=2))
    targets = [{"targets": [address], "labels": {"process": name}} for name, address in cluster.metrics.items()]
    (run_dir / TARGETS_FILE).write_text(json.dumps(targets, indent=2))


def forget_state(run_dir: Path) -> None:
    for file in (STATE_FILE, TARGETS_FILE):
        (run_dir / file).unlink(missing_ok=True)


@contextmanager
def running_cluster(cluster: LocalCluster) -> Iterator[RunningCluster]:
    """Start a cluster for the duration of a `with` block."""
    running = cluster.start()
    try:
        yield running
    finally:
        cluster.stop()


def _variable(*path: str) -> str:
    return ENVIRONMENT_PREFIX + "__".join(path).upper()
