"""A started engine, as the front end holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil
    from vllm.config import VllmConfig
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.engine.input_processor import InputProcessor


@dataclass(frozen=True, slots=True)
class LaunchedEngine:
    """A running EngineCore, and the objects through which this process talks to it."""

    client: AsyncMPClient
    inputs: InputProcessor
    vllm_config: VllmConfig
    processes: tuple[psutil.Process, ...]
