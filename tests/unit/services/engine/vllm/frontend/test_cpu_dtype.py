"""Which type of weights a CPU is asked for."""

from __future__ import annotations

import pytest

from services.engine.vllm.config import Dtype
from services.engine.vllm.frontend.cpu_dtype import choose_dtype


@pytest.mark.parametrize(
    ("wanted", "architecture", "avx512", "chosen"),
    [
        ("auto", "x86_64", False, "float32"),
        ("auto", "x86_64", True, "auto"),
        ("auto", "aarch64", False, "auto"),
        ("bfloat16", "x86_64", False, "bfloat16"),
    ],
)
def test_only_auto_is_changed_and_only_where_bfloat16_is_slow(
    wanted: Dtype, architecture: str, avx512: bool, chosen: Dtype
) -> None:
    assert choose_dtype(wanted, architecture, avx512=avx512) == chosen
