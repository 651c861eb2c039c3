"""What a figure was measured on, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from services.engine.vllm.frontend.cpu_dtype import cpu_dtype

# Benchmarks pin themselves later.
_CORES = len(os.sched_getaffinity(0))


def machine() -> str:
    """One line about this machine."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{_CORES} cores of {model}, {memory_gib:.0f} GiB, Python {platform.python_version()}"


def real_engine() -> str:
    """What real engines compute here unless told otherwise."""
    dtype = cpu_dtype("auto")
    return f"SmolLM2-135M, {'bfloat16' if dtype == 'auto' else dtype}, eager vLLM"


def write_records(path: Path | None, records: Sequence[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "records": list(records)}, indent=2) + "\n")
