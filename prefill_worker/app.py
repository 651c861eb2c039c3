"""The process of a prefill worker."""

from __future__ import annotations

from prefill_worker.policy import PrefillPolicy
from services.config.settings import Settings
from services.worker.app import run_worker


async def serve(settings: Settings) -> int:
    """Run until SIGTERM, SIGINT, `Drain` or the engine's death, and return the exit code."""
    return await run_worker(settings, settings.prefill_worker, PrefillPolicy())
