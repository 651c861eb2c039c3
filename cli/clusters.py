"""The commands `up`, `down` and `status` for a cluster on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from cli.credential_options import ApiKeyFileOption, InsecureCredentialsOption
from cli.hints import try_command
from cli.progress import StartProgress
from cli.status_details import client_part, scheduling, without_state
from cli.target import AddressOption, Target, find_target, router_tls
from deploy.local.cluster import LocalCluster
from deploy.local.errors import ClusterRunningError, ClusterStartError, NoClusterError, RunDirectoryError
from deploy.local.run_directory import TARGETS_FILE, forget_state, read_state, run_directory, stop_command
from services.config.load import ConfigurationError, load_settings
from services.config.own_credential import own_credential
from services.config.settings import Settings
from services.model.directory import ModelNotFoundError
from services.network.credentials import without_credentials
from services.terminal.console import make_console
from slos_serve import ClusterState, SlosServeError, TenantState

console = make_console()
errors = make_console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; see `slos-serve config`.")]
EngineOption = Annotated[str | None, typer.Option(help="vllm (real) or emulated (timed, made-up tokens).")]
PrefillOption = Annotated[
    int | None, typer.Option(min=0, help="Prefill workers to start; 0: decode workers prefill (router.local_prefill).")
]
DecodeOption = Annotated[int | None, typer.Option(min=1, help="Decode workers to start.")]

CLUSTER_ERRORS = (
    ClusterRunningError,
    ClusterStartError,
    NoClusterError,
    RunDirectoryError,
    ModelNotFoundError,
    ConfigurationError,
)


def cluster_settings(
    config: Path | None,
    engine: str | None,
    prefill: int | None,
    decode: int | None,
    *,
    gateway: bool = False,
    http_port: int | None = None,
    tls: bool | None = None,
) -> Settings:
    """Load the configuration, with what the command line sets on top.

    Raises:
        ConfigurationError
    """
    launcher: dict[str, Any] = {
        name: value for name, value in (("prefill", prefill), ("decode", decode), ("tls", tls)) if value is not None
    }
    overrides: dict[str, Any] = {"launcher": {**launcher, "gateway": gateway}}
    if http_port is not None:
        overrides["gateway"] = {"port": http_port}
    if engine is not None:
        overrides["engine"] = {"kind": engine}
    return load_settings(config, overrides)


def engine_environment(engine: str | None) -> dict[str, str]:
    """Return the environment variables that tell each process of the cluster what the command line sets."""
    return {} if engine is None else {"SLOS_SERVE_ENGINE__KIND": engine}


def up(
    config: ConfigOption = None,
    engine: EngineOption = None,
    prefill: PrefillOption = None,
    decode: DecodeOption = None,
    gateway: Annotated[bool, typer.Option(help="Start the OpenAI-compatible HTTP door as well.")] = True,
    http_port: Annotated[int | None, typer.Option(help="Port of the HTTP door; 0 takes a free one.")] = None,
    tls: Annotated[
        bool | None, typer.Option(help="Encrypt what the processes say to each other (launcher.tls).")
    ] = None,
) -> None:
    """Start a cluster on this machine and leave it running."""
    try:
        settings = cluster_settings(config, engine, prefill, decode, gateway=gateway, http_port=http_port, tls=tls)
        progress = StartProgress(console)
        running = LocalCluster(
            settings,
            config,
            die_with_parent=False,
            report=progress.report,
            environment=engine_environment(engine),
            waiting=progress.waiting,
        ).start()
    except CLUSTER_ERRORS as error:
        fail(error)
    run_dir = run_directory(settings.launcher)
    _say("router", running.router_address)
    if running.gateway_address:
        scheme = "http" if settings.gateway.tls_certificate is None else "https"
        _say("http", f"{scheme}://{running.gateway_address}/v1")
    secure = router_tls(config)
    with Target(running.router_address, secure, own_credential()).client() as client:
        if url := client.cluster_state().console_url:
            _say("console", url)
    _say("redis", without_credentials(running.redis_url))
    _say("logs", str(run_dir))
    if running.metrics:
        _say("metrics", f"{run_dir / TARGETS_FILE} (targets for Prometheus)")
    _say("try", try_command(run_dir, running.router_address, None if secure is None else config))
    _say("stop", stop_command(run_dir))


def _say(name: str, what: str) -> None:
    """Print one fact about a cluster on a line of its own, to be copied as it is."""
    console.print(f"{name:<7} {what}", markup=False, soft_wrap=True)


def down(
    config: ConfigOption = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Run directory of the cluster. Default: the configured one.")
    ] = None,
) -> None:
    """Stop the cluster that `up` left running."""
    try:
        directory = run_directory(load_settings(config).launcher) if run_dir is None else run_dir.resolve()
        running = read_state(directory)
        if running is None:
            raise NoClusterError(f"no cluster runs from {directory}")
    except CLUSTER_ERRORS as error:
        fail(error)
    running.stop(lambda line: console.print(f"  {line}", style="dim", markup=False))
    forget_state(directory)
    console.print("stopped")


def status(
    address: AddressOption = None,
    config: ConfigOption = None,
    api_key_file: ApiKeyFileOption = None,
    insecure_credentials: InsecureCredentialsOption = False,
) -> None:
    """Show workers, load and counters of a running cluster."""
    try:
        target = find_target(address, config, api_key_file, insecure_credentials=insecure_credentials)
    except ConfigurationError as error:
        fail(error)
    with target.client() as client:
        try:
            state = client.cluster_state()
        except SlosServeError as error:
            fail(without_state(target.address, error))
    if state.partial:
        console.print(client_part(state), highlight=False, markup=False, soft_wrap=True)
        return
    _show(state)
    _show_metrics(state, _gateways(config))


def _gateways(config: Path | None) -> dict[str, str]:
    """Return the metrics addresses of the gateways that the launcher started; no router knows them."""
    running = read_state(run_directory(load_settings(config).launcher))
    metrics = {} if running is None else running.metrics
    return {name: address for name, address in metrics.items() if name.startswith("gateway")}


def _show_metrics(state: ClusterState, gateways: Mapping[str, str]) -> None:
    pages = {state.router_id: state.metrics_address}
    pages.update((worker.worker_id, worker.metrics_address) for worker in state.workers)
    pages.update(gateways)
    for name, address in pages.items():
        if address:
            console.print(f"metrics of {name}: http://{address}/metrics", style="dim", markup=False, soft_wrap=True)


def fail(error: object) -> NoReturn:
    """Print what is wrong to standard error, and exit: with 2 if the configuration is at fault, else with 1."""
    errors.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(2 if isinstance(error, ConfigurationError) else 1)


def _quotas(tenants: Sequence[TenantState]) -> Table:
    table = Table()
    for column in ("tenant", "quota", "left", "of", "whole again in"):
        table.add_column(column, justify="left" if column in ("tenant", "quota") else "right")
    for tenant in tenants:
        for limit in tenant.limits:
            reset = f"{limit.reset_s:.1f} s" if limit.reset_s else ""
            table.add_row(
                escape(tenant.tenant), escape(limit.quota), f"{limit.remaining:.0f}", f"{limit.limit:.0f}", reset
            )
    return table


def _show(state: ClusterState) -> None:
    if state.processes > 1:
        console.print(
            f"process {state.process} of {state.processes} on this port: queue and counters are its own",
            style="yellow",
        )
    console.print(
        f"router [bold]{escape(state.router_id)}[/]  model {escape(state.model)}  up {state.uptime_s:.0f} s  "
        f"queued {state.queued_requests}  running {state.running_requests}  "
        f"Redis {'connected' if state.redis_connected else '[red]unreachable[/]'}"
    )
    table = Table()
    words = ("worker", "role", "health")
    for column in (*words, "running", "waiting", "KV used", "leased", "steps", "last step", "off by", "99 % within"):
        table.add_column(column, justify="left" if column in words else "right")
    for worker in state.workers:
        table.add_row(
            escape(worker.worker_id) + (" (emulated)" if worker.emulated else ""),
            worker.role.name.lower(),
            worker.health.name.lower(),
            str(worker.running_requests),
            str(worker.waiting_requests),
            f"{worker.kv_blocks_used}/{worker.kv_blocks_total}",
            str(worker.kv_blocks_leased),
            str(worker.steps),
            f"{worker.last_step_s * 1e3:.0f} ms",
            f"{worker.step_time_error:.1%}" if worker.steps else "",
            f"{worker.step_time_bound:.2f} x" if worker.steps else "",
        )
    console.print(table)
    for worker in state.workers:
        if worker.detail:
            console.print(f"{worker.worker_id}: {worker.detail}", style="yellow", markup=False)
        if worker.scheduling:
            console.print(f"{worker.worker_id}: {scheduling(worker.scheduling)}", style="dim", markup=False)
    if state.tenants:
        console.print(_quotas(state.tenants))
    for warning in state.warnings:
        console.print(warning, style="yellow", markup=False)
    if state.console_url:
        console.print(f"console {state.console_url}", markup=False, soft_wrap=True)
    counters = state.counters
    console.print(
        f"requests: {counters.received} received, {counters.guaranteed} guaranteed "
        f"({counters.kept} kept, {counters.missed} missed), {counters.best_effort} best effort, "
        f"{counters.refused} refused, {counters.cancelled} cancelled, {counters.failed} failed; "
        f"{counters.restarts} restarts, {counters.kv_recomputes} KV recomputes, {counters.workers_lost} workers lost"
    )
