"""The options of the vLLM adapter."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class VllmEngineConfig(BaseModel):
    """The options of one vLLM engine. The model directory is given beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dtype: Dtype = "auto"
    """Type of weights and activations. `auto` takes the model's own, and float32 on an x86 CPU without AVX-512, which
    is slow in any other. Equal on all workers that exchange KV caches: name it where their processors differ."""

    max_model_len: PositiveInt | None = None
    """Longest prompt plus output, in tokens. Unset: the model's limit."""

    kv_cache_bytes: PositiveInt | Literal["auto"] = "auto"
    """Size of the KV cache in bytes; must hold one sequence of `max_model_len`. `auto` takes what
    `gpu_memory_utilization` leaves on a GPU; on a CPU 512 MiB, or one sequence of `max_model_len` if that is more."""

    block_tokens: PositiveInt = 32
    """Tokens per KV block; on a CPU a multiple of 32. Equal on all workers that exchange KV caches. Small blocks waste
    less memory and move fewer bytes."""

    max_step_tokens: PositiveInt = 2048
    """Largest number of tokens computed in one engine step. A longer prompt is computed in several steps."""

    max_running_requests: PositiveInt = 64
    """Largest number of requests in one engine step; more wait."""

    enforce_eager: bool | Literal["auto"] = "auto"
    """Whether to run the model without compiling it. Compiling makes steps faster and adds about a minute to the
    start. `auto` compiles on a GPU only."""

    cpu_cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """CPU cores of the engine process, one compute thread on each. Empty: all cores the worker may use."""

    tensor_parallel: PositiveInt = 1
    """GPUs that share one copy of the model. Equal on all workers that exchange KV caches."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Part of the GPU's memory that vLLM takes when `kv_cache_bytes` is `auto`."""

    kv_lease_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a finished prefill's KV cache is held for the worker that will pull it."""

    lease_margin_s: Annotated[float, Field(ge=0)] = 0.5
    """Seconds that a pull must end before its lease does; else it is not used and the KV cache is computed again."""

    kv_buffer_device: Literal["cpu", "cuda", "auto"] = "auto"
    """Memory from which KV blocks are read when they are moved. `auto` is where the KV cache is."""

    side_channel_host: str = ""
    """Address on which this engine listens for other workers that pull KV caches. Empty: the worker's `host`, or the
    machine's own address if that is every interface. NIXL's handshake is not authenticated: keep it inside the
    cluster's network. A worker without `[tls]` starts with loopback addresses only, unless `auth.insecure` is true."""

    async_scheduling: bool | None = None
    """Whether to prepare a step while the one before it runs. Unset: vLLM's choice (never on a CPU)."""

    warm_up: bool = True
    """Whether to run a few prompts before the first request: the first steps are slow, and tell how fast this machine
    is."""

    prefix_caching: bool = True
    """Whether to reuse KV blocks of equal prompt beginnings."""

    scheduling: Literal["slo", "stock"] = "slo"
    """Policy that decides what an engine step computes: `slo` composes it from the promises held, `stock` leaves it to
    vLLM."""

    draft_tokens: Annotated[int, Field(ge=0, le=10)] = 0
    """Largest number of tokens drafted per request and step; 0: none, and vLLM's speculation stays off. With
    `scheduling = "slo"` each request drafts as many as pay."""

    draft_model: str = ""
    """Directory of a smaller model of the same vocabulary that drafts. Its KV cache goes with every hand-over, so all
    workers need the same one, prefill workers too, and it computes every step, drafts wanted or not. Empty: drafts are
    what followed earlier occurrences of the latest tokens (n-grams)."""

    draft_always: bool = False
    """Whether to draft `draft_tokens` whether it pays or not. For comparisons."""

    record_steps: str = ""
    """File to which every composed step is written, to be composed again elsewhere. Empty: none. It costs time in each
    step, and steps that are prepared while others run are not written."""

    nixl_poll_us: Annotated[int, Field(ge=1)] = 4000
    """Pause of NIXL's progress thread between two looks, in microseconds. Its own default of none costs a
    whole core; 1000 costs 2 % of one, 4000 0.4 %, and pulls take as long with either."""

    seed: int = 0
    """Seed of requests that bring none."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    """Least severe messages that vLLM logs, on standard error."""

    start_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """Seconds that loading the model may take before the start counts as failed."""

    shutdown_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds that the engine process may take to end before it is killed."""

    @property
    def kv_host(self) -> str:
        """Address of `side_channel_host`; loopback for an engine that belongs to no worker."""
        return self.side_channel_host or "127.0.0.1"

    @model_validator(mode="after")
    def _lease_outlives_margin(self) -> Self:
        if self.lease_margin_s >= self.kv_lease_s:
            raise ValueError(
                f"lease_margin_s ({self.lease_margin_s}) must be below kv_lease_s ({self.kv_lease_s}): "
                "no pull would ever be in time"
            )
        return self
