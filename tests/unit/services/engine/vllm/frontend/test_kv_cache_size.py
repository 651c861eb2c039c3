"""The size of a KV cache that nobody stated: what it must hold, and how it is stated or left open."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.config.load import load_settings
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.kv_cache_size import LEAST_CPU_BYTES, cpu_kv_cache_bytes, kv_bytes_per_token
from services.engine.vllm.frontend.launch import _size_kv_cache


class Model:
    """The questions that are asked of vLLM's ModelConfig."""

    def __init__(self, layers: int, kv_heads: int, head_size: int, itemsize: int, max_model_len: int = 8192) -> None:
        self.layers, self.kv_heads, self.head_size = layers, kv_heads, head_size
        self.dtype = SimpleNamespace(itemsize=itemsize)
        self.max_model_len = max_model_len

    def get_num_layers(self, parallel: Any) -> int:
        return self.layers

    def get_num_kv_heads(self, parallel: Any) -> int:
        return self.kv_heads

    def get_head_size(self) -> int:
        return self.head_size


LLAMA_8B = Model(32, 8, 128, 2)
SMOLLM2 = Model(30, 3, 64, 2)


def vllm_config(model: Model, stated: int | None = None, device: str = "cpu", drafter: Model | None = None) -> Any:
    return SimpleNamespace(
        model_config=model,
        speculative_config=SimpleNamespace(draft_model_config=drafter) if drafter else None,
        parallel_config=None,
        cache_config=SimpleNamespace(kv_cache_memory_bytes=stated),
        device_config=SimpleNamespace(device_type=device),
    )


def test_a_token_takes_a_key_and_a_value_in_each_layer() -> None:
    assert kv_bytes_per_token(vllm_config(LLAMA_8B)) == 131_072
    assert kv_bytes_per_token(vllm_config(LLAMA_8B, drafter=SMOLLM2)) == 131_072 + 23_040


def test_one_longest_sequence_fits_beside_the_block_that_is_kept_empty() -> None:
    assert cpu_kv_cache_bytes(131_072, 8192, 32) == 131_072 * (8192 + 32)
    assert cpu_kv_cache_bytes(131_072, 8193, 32) == 131_072 * (8192 + 64)
    assert cpu_kv_cache_bytes(23_040, 8192, 32) == LEAST_CPU_BYTES


@pytest.mark.parametrize(
    ("device", "stated", "expected"),
    [
        ("cpu", None, 131_072 * (8192 + 32)),
        ("cpu", 3 * 2**30, 3 * 2**30),
        # What `gpu_memory_utilization` leaves.
        ("cuda", None, None),
        ("cuda", 2**30, 2**30),
    ],
)
def test_a_cpu_gets_a_size_and_a_gpu_fills_its_memory(device: str, stated: int | None, expected: int | None) -> None:
    config = vllm_config(LLAMA_8B, stated, device)
    _size_kv_cache(config, VllmEngineConfig())
    assert config.cache_config.kv_cache_memory_bytes == expected


def test_the_size_can_be_stated_and_left_open_in_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "slos-serve.toml"
    file.write_text("[engine.vllm]\nkv_cache_bytes = 1073741824\nenforce_eager = false\n")
    engine = load_settings(file).engine.vllm
    assert (engine.kv_cache_bytes, engine.enforce_eager) == (2**30, False)
    monkeypatch.setenv("SLOS_SERVE_ENGINE__VLLM__KV_CACHE_BYTES", "auto")
    monkeypatch.setenv("SLOS_SERVE_ENGINE__VLLM__ENFORCE_EAGER", "auto")
    engine = load_settings(file).engine.vllm
    assert (engine.kv_cache_bytes, engine.enforce_eager) == ("auto", "auto")
    monkeypatch.setenv("SLOS_SERVE_ENGINE__VLLM__KV_CACHE_BYTES", "2147483648")
    monkeypatch.setenv("SLOS_SERVE_ENGINE__VLLM__ENFORCE_EAGER", "true")
    engine = load_settings(file).engine.vllm
    assert (engine.kv_cache_bytes, engine.enforce_eager) == (2**31, True)
