"""The choice of a type of weights that a CPU computes fast."""

from __future__ import annotations

import platform

from services.engine.vllm.config import Dtype


def cpu_dtype(wanted: Dtype) -> Dtype:
    """Return the type to ask vLLM for on this machine's CPU."""
    return choose_dtype(wanted, platform.machine(), avx512=has_avx512())


def has_avx512() -> bool:
    """Return whether this machine's CPU has AVX-512."""
    import torch

    return bool(torch.cpu._is_avx512_supported())


def choose_dtype(wanted: Dtype, architecture: str, *, avx512: bool) -> Dtype:
    """Return float32 for `auto` on an x86 processor without AVX-512, and what is wanted otherwise.

    Such a processor has no fast product of bfloat16 matrices: with SmolLM2-135M's shapes float32 was four to nine times
    faster on an AMD EPYC with AVX2 only.
    """
    slow = architecture in {"x86_64", "AMD64"} and not avx512
    return "float32" if slow and wanted == "auto" else wanted
