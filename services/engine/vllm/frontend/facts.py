"""The facts of a started engine, as the front end tells them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from services.engine.kv.compatibility import Compatibility
from services.engine.protocol import EngineFacts
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.kv_backend import KV_LAYOUT, transfer_protocol
from services.engine.vllm.shared.prior import known_performance
from services.engine.vllm.shared.support import vllm_version
from services.model.eos_tokens import eos_token_ids
from services.model.fingerprint import model_fingerprint

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def engine_facts(
    model_dir: Path, config: VllmEngineConfig, vllm_config: VllmConfig, kv: dict[str, int], engine_epoch: str
) -> EngineFacts:
    """Return the facts of a running engine. `kv` is what `ServingScheduler.kv_facts` answers."""
    model = vllm_config.model_config
    return EngineFacts(
        engine_epoch=engine_epoch,
        compatibility=_compatibility(model_dir, config.draft_model, vllm_config, kv["block_tokens"]),
        model=model_dir.name,
        max_context_tokens=model.max_model_len,
        vocabulary_size=model.get_vocab_size(),
        eos_token_ids=eos_token_ids(model_dir),
        kv_blocks_total=kv["blocks"],
        kv_bytes_per_token=kv["block_bytes"] * config.tensor_parallel // kv["block_tokens"],
        max_step_tokens=vllm_config.scheduler_config.max_num_batched_tokens,
        max_running_requests=vllm_config.scheduler_config.max_num_seqs,
        kv_lease_s=config.kv_lease_s,
        performance=known_performance(model.hf_text_config),
        emulated=False,
    )


def _compatibility(model_dir: Path, draft_model: str, vllm_config: VllmConfig, block_tokens: int) -> Compatibility:
    dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
    cache_dtype = str(vllm_config.cache_config.cache_dtype)
    return Compatibility(
        model_fingerprint=model_fingerprint(model_dir),
        dtype=dtype,
        kv_cache_dtype=dtype if cache_dtype == "auto" else cache_dtype,
        block_tokens=block_tokens,
        tensor_parallel=vllm_config.parallel_config.tensor_parallel_size,
        # The layers of a draft model lie in the same blocks and are handed over with them.
        kv_layout=f"{KV_LAYOUT}, drafts {model_fingerprint(Path(draft_model))}" if draft_model else KV_LAYOUT,
        engine=f"vllm {vllm_version()}, {transfer_protocol()}",
    )
