"""How well the performance model predicts the steps of a real vLLM engine on this machine.

One engine without a cluster, driven with varied batches. The first half of its steps is learnt from, the second is held
out; then the online fit, as the router uses it, goes through all of them. Coefficients for a profile are fitted to all.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.machine import machine, real_engine, write_records
from services.config.load import load_settings
from services.engine.protocol import EngineRequest, EngineStep, SamplingOptions
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.engine import VllmEngine
from services.model.directory import locate_model
from services.slo.fit_quality import FitQuality, Row, quality, replay
from services.slo.fitting import StepTimeFit, fit_all
from services.slo.performance import (
    SMOLLM2_135M_ONE_CORE,
    PerformanceCoefficients,
    PerformanceModel,
    StepCost,
    StepForm,
)
from services.terminal.console import make_console

COVERAGE = 0.95
MAX_STEP_TOKENS = 512
LONGEST_PROMPT, LONGEST_OUTPUT = 1500, 60
REQUESTS_AT_ONCE = 12
FIRST_TEXT_TOKEN = 1000

ADDITIVE = replace(SMOLLM2_135M_ONE_CORE, origin="placeholder")
ROOFLINE = PerformanceCoefficients(
    overhead_s=5e-3,
    per_token_s=0.4e-3,
    per_context_token_s=0.0,
    per_attention_pair_s=0.22e-6,
    origin="placeholder",
    form=StepForm.ROOFLINE,
    memory=StepCost(base_s=36e-3, per_context_token_s=2.3e-6),
)

console = make_console()


def run(json_path: Path | None, seconds: float, core: int | None) -> None:
    rows = asyncio.run(collect(seconds, max(os.sched_getaffinity(0)) if core is None else core))
    fits = [_judge(name, prior, rows) for name, prior in (("additive", ADDITIVE), ("roofline", ROOFLINE))]
    console.print(_table(fits))
    for fit in fits:
        terms = ", ".join(f"{name} {value:.4g}" for name, value in fit["coefficients"].items() if value)
        console.print(f"{fit['form']}: {terms}")
    durations_s = sorted(took_s for _, took_s in rows)
    console.print(
        f"{len(rows)} steps of {durations_s[0] * 1e3:.0f} to {durations_s[-1] * 1e3:.0f} ms; {machine()}; "
        f"{real_engine()} on one core"
    )
    steps = [{"duration_s": took_s, **asdict(shape)} for shape, took_s in rows]
    write_records(json_path, [*fits, {"steps": steps}])


async def collect(seconds: float, core: int) -> list[Row]:
    """Steps of an engine that is kept busy with requests of all sizes, at a load that rises and falls."""
    model = locate_model(load_settings(None).model, weights=True)
    config = VllmEngineConfig(max_step_tokens=MAX_STEP_TOKENS, cpu_cores=(core,), prefix_caching=False)
    engine = VllmEngine(model.path, config, "step-times")
    await engine.start()
    rows: list[Row] = []
    finished = asyncio.Event()
    running: set[str] = set()

    async def listen() -> None:
        async for event in engine.events():
            if not isinstance(event, EngineStep):
                continue
            if event.shape.tokens:
                rows.append((event.shape, event.duration_s))
            for output in event.outputs:
                if output.finish_reason is not None:
                    running.discard(output.request_id)
                    finished.set()

    listening = asyncio.create_task(listen())
    rng = random.Random(1)
    began_s = time.monotonic()
    try:
        for number in itertools.count():
            elapsed_s = time.monotonic() - began_s
            if elapsed_s > seconds:
                break
            wanted = 1 + round((REQUESTS_AT_ONCE - 1) * (0.5 - 0.5 * math.cos(elapsed_s / 8)))
            if len(running) >= wanted:
                finished.clear()
                await finished.wait()
                continue
            running.add(str(number))
            await engine.submit(_request(str(number), rng))
            await asyncio.sleep(rng.expovariate(5.0))
    finally:
        await engine.shutdown()
        await listening
    return rows[5:]  # first-time work


def _request(request_id: str, rng: random.Random) -> EngineRequest:
    prompt_tokens = round(math.exp(rng.uniform(math.log(8), math.log(LONGEST_PROMPT))))
    token_ids = tuple(rng.randrange(FIRST_TEXT_TOKEN, 40_000) for _ in range(prompt_tokens))
    sampling = SamplingOptions(max_tokens=rng.randint(1, LONGEST_OUTPUT), temperature=0.0, ignore_eos=True)
    return EngineRequest(request_id, token_ids, 0, sampling)


def _judge(name: str, prior: PerformanceCoefficients, rows: list[Row]) -> dict[str, Any]:
    half = len(rows) // 2
    fit = StepTimeFit(prior)
    replay(fit, rows[:half], COVERAGE)
    frozen = quality(rows[half:], fit.model(), fit.bound(COVERAGE))
    online = replay(fit, rows[half:], COVERAGE)
    at_once = fit_all(prior, rows[:half])
    held_out = quality(rows[half:], PerformanceModel(at_once), PerformanceModel(at_once))
    costs = fit_all(prior, rows)
    coefficients = {
        **{f"compute.{key}": value for key, value in asdict(costs.compute).items()},
        **{f"memory.{key}": value for key, value in asdict(costs.memory).items()},
    }
    return {
        "form": name,
        "coefficients": coefficients,
        "fitted_at_once": _figures(held_out) | {"coverage": None},
        "frozen": _figures(frozen),
        "online": _figures(online),
        "bound": dict(zip(("decode", "mixed", "prefill"), fit.bound(COVERAGE).margins, strict=True)),
    }


def _figures(judged: FitQuality) -> dict[str, Any]:
    return {
        "steps": judged.steps,
        "r2": judged.r2,
        "mape": judged.mape,
        "coverage": judged.coverage,
        "coverage_by_regime": {regime.name.lower(): share for regime, share in judged.coverage_by_regime.items()},
    }


def _table(fits: list[dict[str, Any]]) -> Table:
    table = Table(title=f"Steps of the second half, with a bound of {COVERAGE:.0%}")
    for title in ("form", "learnt", "R2", "MAPE", "coverage", "by regime"):
        table.add_column(title, justify="left" if title in ("form", "learnt", "by regime") else "right")
    for fit in fits:
        for key, title in (
            ("fitted_at_once", "first half, at once"),
            ("frozen", "first half, online, then frozen"),
            ("online", "every step before"),
        ):
            figures = fit[key]
            coverage = "" if figures["coverage"] is None else f"{figures['coverage']:.1%}"
            regimes = "  ".join(f"{name} {share:.1%}" for name, share in figures["coverage_by_regime"].items())
            table.add_row(
                fit["form"],
                title,
                f"{figures['r2']:.3f}",
                f"{figures['mape']:.1%}",
                coverage,
                regimes if coverage else "",
            )
    return table
