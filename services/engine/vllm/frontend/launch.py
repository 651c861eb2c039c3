"""The start of EngineCore for one engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend import kv_backend, processes
from services.engine.vllm.frontend.cpu_dtype import cpu_dtype
from services.engine.vllm.frontend.forking import forked_engine, may_fork
from services.engine.vllm.frontend.kv_cache_size import cpu_kv_cache_bytes, kv_bytes_per_token
from services.engine.vllm.frontend.launched_engine import LaunchedEngine
from services.engine.vllm.shared.control_channel import CONFIG_KEY
from services.engine.vllm.shared.support import require_attributes, require_supported_vllm

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.config import VllmConfig

SHORTEST_NGRAM, LONGEST_NGRAM = 3, 6
"""Least and largest number of latest tokens that must occur earlier for what followed there to be a draft. Two tokens
occur together by chance."""
_LAUNCHING = threading.Lock()
"""Lock that one start at a time holds: EngineCore takes part of its settings from the process's environment."""


def launch(model_dir: Path, config: VllmEngineConfig, engine_epoch: str) -> LaunchedEngine:
    """Start EngineCore and wait until it has loaded the model.

    It must be called in a thread that lives as long as the engine: EngineCore is pinned to that thread's cores, and is
    killed when that thread ends.

    Raises:
        UnsupportedVllmError: the installed vLLM is another release.
        Exception: whatever vLLM raises for a model or configuration it cannot serve.
    """
    require_supported_vllm()
    with _LAUNCHING:
        os.environ.update(_environment(model_dir, config))
        if config.cpu_cores:
            os.sched_setaffinity(0, config.cpu_cores)
        forks = may_fork() and config.tensor_parallel == 1
        # vLLM reads the environment when it is imported.
        from vllm.platforms import current_platform
        from vllm.renderers import renderer_from_config
        from vllm.v1.engine.core_client import EngineCoreClient
        from vllm.v1.engine.input_processor import InputProcessor
        from vllm.v1.executor import Executor

        vllm_config = _engine_args(model_dir, config, engine_epoch).create_engine_config()
        _size_kv_cache(vllm_config, config)
        renderer = renderer_from_config(vllm_config)
        with forked_engine() if forks and current_platform.is_cpu() else nullcontext():
            client = EngineCoreClient.make_async_mp_client(
                vllm_config=vllm_config,
                executor_class=Executor.get_class(vllm_config),
                # Without it the scheduler keeps neither events nor prefill figures.
                log_stats=True,
            )
        children = processes.own(child.pid for child in client.resources.engine_manager.processes)
        inputs = InputProcessor(vllm_config, renderer)
        require_attributes(inputs, "speculative_config")
        # It would refuse sampling options that `draft_worker` makes work.
        inputs.speculative_config = None
        return LaunchedEngine(client, inputs, vllm_config, children)


def _environment(model_dir: Path, config: VllmEngineConfig) -> Mapping[str, str]:
    variables = {
        "VLLM_LOGGING_LEVEL": config.log_level,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # What passes between the processes of an engine is msgpack; whatever the machine says, it is never unpickled.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
        # On a CPU vLLM would otherwise put the model into a third process, and both would spin.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # `penalties` is written for this model runner.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "TOKENIZERS_PARALLELISM": "false",
        **kv_backend.environment(config),
    }
    if model_dir.is_dir():
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if config.cpu_cores:
        variables["OMP_NUM_THREADS"] = str(len(config.cpu_cores))
    return variables


def _engine_args(model_dir: Path, config: VllmEngineConfig, engine_epoch: str) -> AsyncEngineArgs:
    from vllm import AsyncEngineArgs
    from vllm.config import KVTransferConfig
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    # N-gram drafts are made from tokens on the host, which asynchronous scheduling does not wait for.
    asynchronous = not on_cpu and config.async_scheduling is not False and not config.draft_tokens
    schedulers = {
        ("stock", False): "scheduler.ServingScheduler",
        ("stock", True): "scheduler.AsyncServingScheduler",
        ("slo", False): "composed_scheduler.ComposedScheduler",
        ("slo", True): "composed_scheduler.AsyncComposedScheduler",
    }
    penalties = "services.engine.vllm.core.penalties:CarriedPenalties"
    speculation = _speculation(config) if config.draft_tokens else {"logits_processors": [penalties]}
    return AsyncEngineArgs(
        model=str(model_dir),
        skip_tokenizer_init=True,
        # Code that comes with a model runs nowhere in the cluster.
        trust_remote_code=False,
        # Sampling defaults are the router's business.
        generation_config="vllm",
        dtype=cpu_dtype(config.dtype) if on_cpu else config.dtype,
        max_model_len=config.max_model_len,
        kv_cache_memory_bytes=None if config.kv_cache_bytes == "auto" else config.kv_cache_bytes,
        gpu_memory_utilization=config.gpu_memory_utilization,
        block_size=config.block_tokens,
        max_num_batched_tokens=config.max_step_tokens,
        max_num_seqs=config.max_running_requests,
        enforce_eager=on_cpu if config.enforce_eager == "auto" else config.enforce_eager,
        tensor_parallel_size=config.tensor_parallel,
        distributed_executor_backend="uni" if config.tensor_parallel == 1 else "mp",
        enable_prefix_caching=config.prefix_caching,
        async_scheduling=asynchronous,
        seed=config.seed,
        enable_log_requests=False,
        use_tqdm_on_load=config.log_level in {"DEBUG", "INFO"},
        scheduler_cls=f"services.engine.vllm.core.{schedulers[config.scheduling, asynchronous]}",
        additional_config={
            CONFIG_KEY: {
                "draft_always": config.draft_always,
                "record_steps": "" if asynchronous else config.record_steps,
            }
        },
        **speculation,
        kv_transfer_config=KVTransferConfig(**kv_backend.connector_config(config, engine_epoch)),
    )


def _size_kv_cache(vllm_config: VllmConfig, config: VllmEngineConfig) -> None:
    cache = vllm_config.cache_config
    # Stated here, or in vLLM's own environment variable.
    stated = cache.kv_cache_memory_bytes is not None
    if not stated and vllm_config.device_config.device_type == "cpu":
        longest_tokens = vllm_config.model_config.max_model_len
        cache.kv_cache_memory_bytes = cpu_kv_cache_bytes(
            kv_bytes_per_token(vllm_config), longest_tokens, config.block_tokens
        )


def _speculation(config: VllmEngineConfig) -> dict[str, Any]:
    if config.draft_model:
        drafter: dict[str, Any] = {"method": "draft_model", "model": config.draft_model}
    else:
        drafter = {"method": "ngram", "prompt_lookup_min": SHORTEST_NGRAM, "prompt_lookup_max": LONGEST_NGRAM}
    return {
        "speculative_config": {
            **drafter,
            "num_speculative_tokens": config.draft_tokens,
            # A schedule, though one of a single entry: without it vLLM pads requests that come with a KV cache to
            # full length with drafts that nobody made.
            "num_speculative_tokens_per_batch_size": [(1, config.max_running_requests, config.draft_tokens)],
        },
        # vLLM refuses logits processors beside speculation; `draft_worker` sees to them.
        "worker_extension_cls": "services.engine.vllm.core.draft_worker.DraftWorker",
    }
