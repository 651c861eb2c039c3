"""Whether the engine keeps promises: step composition and drafting inside vLLM, against stock vLLM on the same core.

Parts: `streams` (streams with tight contracts while long prompts arrive), `sweep` (goodput of a mixed workload by
rate), `cost` (what composing a step costs) and `drafts` (speculation). Every variant is the same engine of the same
worker; only who decides what a step computes differs: vLLM with its default chunk, vLLM with the best of some smaller
ones, or the step composer. Engines run one after the other on one core, with all else on the others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import engine_parts as parts
from benchmarks.engine_driver import driven, kept_off
from benchmarks.engine_load import Scale
from benchmarks.engine_tables import report
from benchmarks.machine import machine, write_records
from cli.console import make_console
from services.engine.vllm.config import VllmEngineConfig

PARTS = ("streams", "sweep", "cost", "drafts")
DEFAULT_CHUNK = 2048
SMALL_CHUNKS = (64, 128, 256)
COST_REQUESTS = 256
DRAFT_LENGTHS = (0, 3, 7)
LONGEST_DRAFT = 10

console = make_console()


def run(json_path: Path | None, quick: bool, wanted: Sequence[str], core: int | None) -> None:
    """
    Args:
        wanted: of `PARTS`.
    """
    core = max(os.sched_getaffinity(0)) if core is None else core
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with kept_off(core), Progress(*columns, console=console, transient=True) as progress:
        bench = _Bench(core, parts.QUICK if quick else parts.FULL, progress)
        records = asyncio.run(bench.run(wanted))
    for table in report(records):
        console.print(table)
    console.print(f"{machine()}; SmolLM2-135M, bfloat16, eager vLLM on core {core}, all else on the others")
    write_records(json_path, records)


class _Bench:
    def __init__(self, core: int, lengths: parts.Lengths, progress: Progress) -> None:
        self._core = core
        self._lengths = lengths
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._records: list[dict[str, Any]] = []
        self._scale: Scale | None = None

    async def run(self, wanted: Sequence[str]) -> list[dict[str, Any]]:
        if "streams" in wanted or "sweep" in wanted:
            await self._load("stock", self._config("stock", DEFAULT_CHUNK), wanted)
            await self._load("slo", self._config("slo", DEFAULT_CHUNK), wanted)
            if "streams" in wanted:
                for chunk in SMALL_CHUNKS:
                    await self._load(f"stock-{chunk}", self._config("stock", chunk), ("streams",))
            if "sweep" in wanted:
                best = self._best_chunk()
                await self._load(f"stock-{best}", self._config("stock", best), ("sweep",))
        if "cost" in wanted:
            for scheduling in ("stock", "slo"):
                await self._cost(scheduling)
        if "drafts" in wanted:
            for length in DRAFT_LENGTHS:
                more = {"draft_tokens": length, "draft_always": True}
                await self._draft(f"draft-{length}", self._config("slo", DEFAULT_CHUNK, **more))
            await self._draft("draft-adaptive", self._config("slo", DEFAULT_CHUNK, draft_tokens=LONGEST_DRAFT))
        return self._records

    def _config(self, scheduling: str, chunk: int, **more: Any) -> VllmEngineConfig:
        return VllmEngineConfig.model_validate(
            {
                "cpu_cores": (self._core,),
                "scheduling": scheduling,
                "max_step_tokens": chunk,
                "prefix_caching": False,
                "kv_cache_bytes": 1200 * 2**20,
                "log_level": "ERROR",
                **more,
            }
        )

    def _say(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    async def _load(self, variant: str, config: VllmEngineConfig, wanted: Sequence[str]) -> None:
        self._say(f"{variant}: starting the engine")
        async with driven(config) as driver:
            if self._scale is None:
                # Once for all: the targets of every variant are the same.
                self._scale = await parts.measure_scale(driver)
                self._records.append(
                    {
                        "part": "scale",
                        "step_s": self._scale.step_s,
                        "tight_tpot_s": self._scale.tight_tpot_s,
                        "loose_tpot_s": self._scale.loose_tpot_s,
                    }
                )
            if "streams" in wanted:
                self._say(f"{variant}: streams while long prompts arrive")
                self._records += await parts.streams(driver, variant, self._scale, self._lengths.streams_s)
            if "sweep" in wanted:
                for rate in self._lengths.rates:
                    self._say(f"{variant}: {rate:g} requests/s of a mixed workload")
                    self._records += await parts.sweep(driver, variant, self._scale, rate, self._lengths.sweep_s)
            if variant == "slo":
                self._records.append(parts.model_error(driver, variant))
                figures = await driver.engine.scheduling_figures()
                self._records.append({"part": "figures", "variant": variant, **figures})

    def _best_chunk(self) -> int:
        """Of the small ones: the largest share of tight streams that kept their contract, then the smaller p99."""
        tight = {
            record["variant"]: (-record["attainment"], record["itl_p99_s"])
            for record in self._records
            if record["part"] == "streams" and record["profile"] == "tight"
        }
        return min(SMALL_CHUNKS, key=lambda chunk: tight.get(f"stock-{chunk}", (0.0, float(chunk != SMALL_CHUNKS[1]))))

    async def _cost(self, scheduling: str) -> None:
        self._say(f"{scheduling}: {COST_REQUESTS} decodes at once")
        config = self._config(scheduling, DEFAULT_CHUNK, max_running_requests=COST_REQUESTS)
        async with driven(config) as driver:
            self._records.append(await parts.cost(driver, scheduling, COST_REQUESTS))

    async def _draft(self, variant: str, config: VllmEngineConfig) -> None:
        self._say(f"{variant}: starting the engine")
        async with driven(config) as driver:
            self._scale = self._scale or await parts.measure_scale(driver)
            self._say(f"{variant}: repetitive and ordinary text")
            self._records += await parts.drafts(driver, variant, self._scale)
