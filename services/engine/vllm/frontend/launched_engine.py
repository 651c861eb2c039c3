"""A running EngineCore, as the front end holds it."""

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
    """A running EngineCore and this process's ends of it."""

    client: AsyncMPClient
    """Client that sends requests and receives one message a step."""
    inputs: InputProcessor
    """Maker of EngineCore's requests from token ids and sampling options."""
    vllm_config: VllmConfig
    processes: tuple[psutil.Process, ...]
    """EngineCore, and with tensor parallelism its workers."""
