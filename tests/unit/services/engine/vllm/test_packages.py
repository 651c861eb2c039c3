"""The packages of the vLLM adapter as a process without vLLM sees them."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.engine.vllm.config import VllmEngineConfig

WITHOUT_VLLM = ("services.engine.vllm.frontend", "services.engine.vllm.shared")
ROOT = Path(__file__).parents[5]


def test_front_end_and_shared_load_without_torch_and_vllm() -> None:
    modules = ["services.engine.vllm.config"]
    for package in WITHOUT_VLLM:
        found = pkgutil.iter_modules([str(ROOT / package.replace(".", "/"))], f"{package}.")
        modules += [module.name for module in found]
    assert len(modules) > 10
    program = f"import sys, {', '.join(modules)}; sys.exit(bool({{'torch', 'vllm'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_lease_must_outlive_its_margin() -> None:
    with pytest.raises(ValidationError, match="lease_margin_s"):
        VllmEngineConfig(kv_lease_s=1.0, lease_margin_s=1.0)
