"""The size of a KV cache that the configuration leaves to the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm.config import VllmConfig

LEAST_CPU_BYTES: Final = 512 * 2**20
"""Smallest KV cache on a CPU that nobody sized. Chosen: 23,000 tokens of SmolLM2-135M in bfloat16. vLLM itself would
take most of the machine's memory, which several workers share."""


def cpu_kv_cache_bytes(bytes_per_token: int, longest_tokens: int, block_tokens: int) -> int:
    """Return a size that holds one sequence of `longest_tokens` and the block that vLLM keeps empty."""
    blocks = -(-longest_tokens // block_tokens) + 1
    return max(LEAST_CPU_BYTES, blocks * block_tokens * bytes_per_token)


def kv_bytes_per_token(vllm_config: VllmConfig) -> int:
    """Return the bytes that one token takes in one process's KV cache, those of a draft model included."""
    models = [vllm_config.model_config]
    if vllm_config.speculative_config is not None and vllm_config.speculative_config.draft_model_config is not None:
        models.append(vllm_config.speculative_config.draft_model_config)
    return sum(_bytes_per_token(model, vllm_config.parallel_config) for model in models)


def _bytes_per_token(model: Any, parallel: Any) -> int:
    numbers = 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
    return int(numbers * model.dtype.itemsize)
