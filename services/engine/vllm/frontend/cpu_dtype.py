"""The type of weights that a CPU computes fast."""

from __future__ import annotations

import platform

from services.engine.vllm.config import Dtype


def cpu_dtype(wanted: Dtype) -> Dtype:
    """Returns: what to ask vLLM for on this machine's CPU."""
    return choose_dtype(wanted, platform.machine(), avx512=has_avx512())


def has_avx512() -> bool:
    import torch

    return bool(torch.cpu._is_avx512_supported())


def choose_dtype(wanted: Dtype, architecture: str, *, avx512: bool) -> Dtype:
    """`auto` becomes float32 on an x86 processor without AVX-512, which has no fast product of bfloat16 matrices: with
    SmolLM2-135M's shapes float32 was four to nine times faster on an AMD EPYC with AVX2 only.
    """
    slow = architecture in {"x86_64", "AMD64"} and not avx512
    return "float32" if slow and wanted == "auto" else wanted
