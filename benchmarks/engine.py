"""Whether the engine keeps promises: step composition and drafting inside vLLM, against stock vLLM on the same core.

Parts: `streams` (streams with tight contracts while long prompts arrive), `changing` (a load for which no chunk is
right at all times), `sweep` (goodput of a mixed workload by load), `cost` (what composing a step costs), `relearning`
(how soon predictions follow a change) and `drafts` (speculation). Every variant is the same engine of the same worker;
only who decides what a step computes differs: vLLM with its default chunk or a smaller one, or the step composer.
Engines run one after the other on one core, with all else on the others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import engine_parts as parts
from benchmarks.engine_changes import changing, relearning
from benchmarks.engine_driver import driven, kept_off
from benchmarks.engine_load import Scale
from benchmarks.engine_tables import report
from benchmarks.machine import machine, real_engine, write_records
from services.engine.vllm.config import VllmEngineConfig
from services.terminal.console import make_console

PARTS = ("streams", "changing", "sweep", "cost", "relearning", "drafts")
DEFAULT_CHUNK = 2048
SMALL_CHUNKS = (32, 64, 128, 256, 512)
COST_REQUESTS = 256
RUNNING_REQUESTS = 64
DRAFT_LENGTHS = (0, 3, 7)
LONGEST_DRAFT = 10

console = make_console()


def run(
    json_path: Path | None,
    quick: bool,
    wanted: Sequence[str],
    core: int | None,
    loads: Sequence[float] = (),
    chunks: Sequence[int] = (),
    requests: int | None = None,
) -> None:
    """
    Args:
        wanted: of `PARTS`.
        loads, requests: of the sweep, in place of the usual ones.
        chunks: fixed ones to compare with, in place of the usual ones.
    """
    core = max(os.sched_getaffinity(0)) if core is None else core
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with kept_off(core), Progress(*columns, console=console, transient=True) as progress:
        lengths = parts.QUICK if quick else parts.FULL
        lengths = replace(
            lengths, loads=tuple(loads) or lengths.loads, sweep_requests=requests or lengths.sweep_requests
        )
        bench = _Bench(core, lengths, tuple(chunks) or SMALL_CHUNKS, progress)
        try:
            asyncio.run(bench.run(wanted))
        finally:
            # An engine takes a minute: what there is by an interruption is not thrown away.
            write_records(json_path, bench.records)
    for table in report(bench.records):
        console.print(table)
    console.print(f"{machine()}; {real_engine()} on core {core}, all else on the others")


class _Bench:
    def __init__(self, core: int, lengths: parts.PartSizes, chunks: Sequence[int], progress: Progress) -> None:
        self._core = core
        self._lengths = lengths
        self._chunks = chunks
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self.records: list[dict[str, Any]] = []
        self._scale: Scale | None = None
        self._draft_tpots_s: dict[str, float] = {}

    async def run(self, wanted: Sequence[str]) -> None:
        if {"streams", "changing", "sweep"} & set(wanted):
            await self._load("stock", self._config("stock", DEFAULT_CHUNK), wanted)
            await self._load("slo", self._config("slo", DEFAULT_CHUNK), wanted)
            for chunk in self._chunks:
                await self._load(f"stock-{chunk}", self._config("stock", chunk), wanted)
        if "cost" in wanted:
            for scheduling in ("stock", "slo"):
                await self._cost(scheduling)
        if "relearning" in wanted:
            self._say("slo: learning anew")
            async with driven(self._config("slo", DEFAULT_CHUNK)) as driver:
                self.records += await relearning(driver, "slo", self._core)
        if "drafts" in wanted:
            for length in DRAFT_LENGTHS:
                more = {"draft_tokens": length, "draft_always": True}
                await self._draft(f"draft-{length}", self._config("slo", DEFAULT_CHUNK, **more))
            await self._draft("draft-adaptive", self._config("slo", DEFAULT_CHUNK, draft_tokens=LONGEST_DRAFT))

    def _config(self, scheduling: str, chunk: int, **more: Any) -> VllmEngineConfig:
        return VllmEngineConfig.model_validate(
            {
                "cpu_cores": (self._core,),
                "scheduling": scheduling,
                "max_step_tokens": chunk,
                # vLLM wants room for a token of each.
                "max_running_requests": min(chunk, RUNNING_REQUESTS),
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
                self.records.append(
                    {
                        "part": "scale",
                        "step_s": self._scale.step_s,
                        "tight_tpot_s": self._scale.tight_tpot_s,
                        "loose_tpot_s": self._scale.loose_tpot_s,
                        "long_prompt_s": self._scale.long_prompt_s,
                    }
                )
            if "streams" in wanted:
                self._say(f"{variant}: streams while long prompts arrive")
                self.records += await parts.streams(driver, variant, self._scale, self._lengths)
            if "changing" in wanted:
                self._say(f"{variant}: a changing load")
                self.records += await changing(driver, variant, self._scale, self._lengths.cycles)
            if "sweep" in wanted:
                for load in self._lengths.loads:
                    self._say(f"{variant}: a mixed workload at {load:.0%} of an engine's time")
                    self.records += await parts.sweep(driver, variant, self._scale, load, self._lengths.sweep_requests)
            if variant == "slo":
                self.records.append(parts.model_error(driver, variant))
                figures = await driver.engine.scheduling_figures()
                self.records.append({"part": "figures", "variant": variant, **figures})

    async def _cost(self, scheduling: str) -> None:
        self._say(f"{scheduling}: {COST_REQUESTS} decodes at once")
        config = self._config(scheduling, DEFAULT_CHUNK, max_running_requests=COST_REQUESTS)
        async with driven(config) as driver:
            self.records.append(await parts.cost(driver, scheduling, COST_REQUESTS))

    async def _draft(self, variant: str, config: VllmEngineConfig) -> None:
        self._say(f"{variant}: starting the engine")
        async with driven(config) as driver:
            # Once for all: what steps take without drafts.
            self._draft_tpots_s = self._draft_tpots_s or await parts.measure_draft_tpots(driver)
            self._say(f"{variant}: repetitive and ordinary text")
            self.records += await parts.drafts(driver, variant, self._draft_tpots_s)
