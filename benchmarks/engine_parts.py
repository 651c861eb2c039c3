"""The parts of the engine benchmark; each measures one engine and gives its records."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.engine_driver import EngineDriver, Tracked
from benchmarks.engine_load import LONG_PROMPT_TOKENS, Offered, Scale, greedy, mixed_trace, random_tokens, texts
from services.config.load import load_settings
from services.engine.protocol import SamplingOptions
from services.engine.vllm.core.scheduling_figures import quantile
from services.model.directory import locate_model
from services.slo.contract import LOOSE_SLOWDOWN, Contract, DecodeTarget, PrefillTarget
from services.slo.fit_quality import Row, quality, replay
from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceModel

STREAM_PROMPT_TOKENS, STREAM_TOKENS = 32, 120
LONG_OUTPUT_TOKENS, LONG_EVERY = 16, 3.6
"""A long prompt comes every so many times what it takes on an idle engine: steps of 1.4 times what they take without it
leave room for it, which is less than the tight TPOT."""
COVERAGE = 0.95
PATIENCE_S = 30.0
"""How long requests may go on after the last arrival; what is not done by then has missed its contract."""
DRAFT_PROMPTS, DRAFT_TOKENS, DRAFT_BATCHES = 4, 100, 4
DRAFT_TEXTS = ("repetitive", "ordinary")
DRAFT_TPOT_STEPS = 1.3
"""TPOT of the streams that draft, in decode steps. Below 1 not even the first token could be in time."""


@dataclass(frozen=True, slots=True)
class PartSizes:
    """How long each part lasts."""

    streams_s: float
    """At least; longer where `long_prompts` take longer."""
    long_prompts: int
    sweep_requests: int
    """At each load."""
    loads: tuple[float, ...]
    """Loads of the sweep, as `mixed_trace` counts them."""
    cycles: int
    """Number of cycles of the changing load."""


FULL = PartSizes(streams_s=56.0, long_prompts=5, sweep_requests=48, loads=(0.4, 0.6, 0.8, 1.0), cycles=3)
QUICK = PartSizes(streams_s=30.0, long_prompts=2, sweep_requests=16, loads=(0.5, 0.9), cycles=1)


async def measure_scale(driver: EngineDriver) -> Scale:
    """What the targets are on this machine: by decode steps of four requests."""
    rng = random.Random(0)
    nothing = Contract()
    before = len(driver.rows)
    requests = [
        await driver.submit("scale", random_tokens(rng, STREAM_PROMPT_TOKENS), greedy(60), nothing) for _ in range(4)
    ]
    await asyncio.gather(*(request.ended.wait() for request in requests))
    steps_s = [took_s for shape, took_s in driver.rows[before:] if shape.tokens == shape.decode_requests == 4]
    model = PerformanceModel(driver.facts.performance)
    return Scale(statistics.median(steps_s), model, driver.facts.max_step_tokens)


async def streams(driver: EngineDriver, variant: str, scale: Scale, lengths: PartSizes) -> list[dict[str, Any]]:
    """Two tight and two loose streams at any time, while long prompts arrive."""
    every_s = LONG_EVERY * scale.long_prompt_s
    seconds = max(lengths.streams_s, lengths.long_prompts * every_s)
    began_s = time.monotonic()
    done: list[Tracked] = []

    async def follow(profile: str, tpot_s: float, seed: int) -> None:
        rng = random.Random(seed)
        contract = scale.contract(STREAM_PROMPT_TOKENS, 5 * LOOSE_SLOWDOWN, tpot_s)
        while time.monotonic() - began_s < seconds:
            tokens = random_tokens(rng, STREAM_PROMPT_TOKENS)
            tracked = await driver.submit(profile, tokens, greedy(STREAM_TOKENS), contract)
            done.append(tracked)
            await tracked.ended.wait()

    async def prompts() -> None:
        rng = random.Random(99)
        contract = scale.contract(LONG_PROMPT_TOKENS, LOOSE_SLOWDOWN, scale.loose_tpot_s)
        for number in range(int(seconds / every_s)):
            await asyncio.sleep(max(0.0, began_s + (number + 0.5) * every_s - time.monotonic()))
            tokens = random_tokens(rng, LONG_PROMPT_TOKENS)
            done.append(await driver.submit("prompt", tokens, greedy(LONG_OUTPUT_TOKENS), contract))

    first_row = len(driver.rows)
    computed_tokens = 0

    async def count() -> None:
        nonlocal computed_tokens
        await asyncio.sleep(seconds)
        computed_tokens = sum(shape.tokens for shape, _ in driver.rows[first_row:])

    followers = [follow("tight", scale.tight_tpot_s, 1), follow("tight", scale.tight_tpot_s, 2)]
    followers += [follow("loose", scale.loose_tpot_s, 3), follow("loose", scale.loose_tpot_s, 4)]
    await asyncio.gather(*followers, prompts(), count())
    await asyncio.gather(*(tracked.ended.wait() for tracked in done))
    took_s = time.monotonic() - began_s
    rate = 1 / every_s
    kinds = {kind: [tracked for tracked in done if tracked.profile == kind] for kind in ("tight", "loose", "prompt")}
    records = [
        {"part": "streams", **record(variant, rate, profile, tracked, took_s)}
        for profile, tracked in {**kinds, "all": done}.items()
    ]
    # What was made after the last stream began depends on how many were half done by then.
    records[-1]["tokens_per_s"] = computed_tokens / seconds
    fit = StepTimeFit(driver.facts.performance)
    replay(fit, driver.rows, COVERAGE)
    records[-1]["least_mean_gap_s"] = least_mean_gap_s(fit.model(), every_s)
    return records


def least_mean_gap_s(model: PerformanceModel, every_s: float) -> float | None:
    """Return the mean gap of four streams that get a token in each step, whatever the chunks: in the time between
    two prompts there is room for so many steps as are left when the prompt and its output are computed. None if
    there is no room.
    """
    streams, context_tokens = 4, STREAM_PROMPT_TOKENS + STREAM_TOKENS // 2
    step_s = model.decode_step_s(streams, streams * context_tokens)
    overhead_s = model.decode_step_s(1, 0) - model.coefficients.per_token_s * model.scale
    # Each stream begins again with a prompt of its own.
    step_s += streams * (model.prefill_s(STREAM_PROMPT_TOKENS, STREAM_PROMPT_TOKENS) - overhead_s) / STREAM_TOKENS
    prompt_s = model.prefill_s(LONG_PROMPT_TOKENS, LONG_PROMPT_TOKENS) - overhead_s
    prompt_s += (LONG_OUTPUT_TOKENS - 1) * (model.decode_step_s(1, LONG_PROMPT_TOKENS) - overhead_s)
    return every_s * step_s / (every_s - prompt_s) if prompt_s < every_s else None


async def offer(driver: EngineDriver, trace: Sequence[Offered]) -> list[Tracked]:
    """Submit each request at its time; what has not ended `PATIENCE_S` after the last is given up."""
    began_s = time.monotonic()
    done: list[Tracked] = []
    for offered in trace:
        await asyncio.sleep(max(0.0, began_s + offered.at_s - time.monotonic()))
        sampling = greedy(offered.max_tokens)
        done.append(await driver.submit(offered.profile, offered.token_ids, sampling, offered.contract))
    ending = asyncio.gather(*(tracked.ended.wait() for tracked in done))
    try:
        await asyncio.wait_for(asyncio.shield(ending), PATIENCE_S)
    except TimeoutError:
        await driver.abandon()
    await ending
    return done


async def sweep(driver: EngineDriver, variant: str, scale: Scale, load: float, requests: int) -> list[dict[str, Any]]:
    """A mixed workload at one load."""
    trace = mixed_trace(load, requests, scale)
    seconds = trace[-1].at_s
    done = await offer(driver, trace)
    profiles = sorted({tracked.profile for tracked in done})
    kinds = {profile: [tracked for tracked in done if tracked.profile == profile] for profile in profiles}
    # Goodput is of the time in which requests were offered; what was made later was offered then.
    return [
        {"part": "sweep", "load": load, **record(variant, requests / seconds, profile, tracked, seconds)}
        for profile, tracked in {**kinds, "all": done}.items()
    ]


def record(variant: str, rate: float, profile: str, requests: Sequence[Tracked], took_s: float) -> dict[str, Any]:
    """Figures of some requests that were offered in `took_s` seconds."""
    gaps_s = [gap_s for tracked in requests for gap_s in tracked.gaps_s]
    over = sum(gap_s > 2 * tracked.contract.decode[0].tpot_s for tracked in requests for gap_s in tracked.gaps_s)
    ttfts_s = [tracked.token_times_s[0] - tracked.arrived_s for tracked in requests if tracked.token_times_s]
    kept = sum(tracked.kept for tracked in requests)
    tokens = sum(tracked.prompt_tokens * bool(tracked.token_times_s) for tracked in requests)
    tokens += sum(len(tracked.token_times_s) for tracked in requests)
    return {
        "variant": variant,
        "rate": rate,
        "profile": profile,
        "requests": len(requests),
        "attainment": kept / len(requests) if requests else None,
        "goodput_rps": kept / took_s,
        "itl_p50_s": quantile(gaps_s, 0.5),
        "itl_p99_s": quantile(gaps_s, 0.99),
        "itl_worst_s": max(gaps_s, default=0.0),
        "gaps_over_twice_tpot": over,
        "ttft_p50_s": quantile(ttfts_s, 0.5),
        "ttft_p99_s": quantile(ttfts_s, 0.99),
        "tokens_per_s": tokens / took_s,
    }


def model_error(driver: EngineDriver, variant: str) -> dict[str, Any]:
    """How well the performance model predicts: learnt from the first half of all steps, judged by the second."""
    rows: list[Row] = driver.rows
    half = len(rows) // 2
    fit = StepTimeFit(driver.facts.performance)
    replay(fit, rows[:half], COVERAGE)
    frozen = quality(rows[half:], fit.model(), fit.bound(COVERAGE))
    online = replay(fit, rows[half:], COVERAGE)
    figures = {
        name: {"r2": judged.r2, "mape": judged.mape, "bound_coverage": judged.coverage}
        for name, judged in (("frozen", frozen), ("online", online))
    }
    return {"part": "model", "variant": variant, "steps": len(rows), **figures}


async def cost(driver: EngineDriver, variant: str, requests: int) -> dict[str, Any]:
    """What scheduling costs with many decodes, which differ in how far they are."""
    rng = random.Random(5)
    promise = Contract(PrefillTarget(ttft_s=60.0), (DecodeTarget(1.0),))
    before = len(driver.rows)
    prompts = [random_tokens(rng, 8) for _ in range(requests)]
    running = [await driver.submit("cost", prompt, greedy(100), promise) for prompt in prompts]
    await asyncio.gather(*(tracked.ended.wait() for tracked in running))
    steps_s = [took_s for shape, took_s in driver.rows[before:] if shape.decode_requests == requests]
    figures = await driver.engine.scheduling_figures()
    scheduling_s = figures["schedule_s_p50"] + figures["update_s_p50"]
    return {
        "part": "cost",
        "variant": variant,
        "running": requests,
        "compose_s_p50": figures["compose_s_p50"],
        "compose_s_p99": figures["compose_s_p99"],
        "scheduling_s_p50": scheduling_s,
        "step_s_p50": statistics.median(steps_s) if steps_s else None,
    }


async def _draft_batches(
    driver: EngineDriver, profile: str, contract: Contract, batches: int, skip: int = 0
) -> list[Tracked]:
    """Some streams at once, several times: they continue a repeated passage, or sample on from ordinary text."""
    passages = texts(locate_model(load_settings(None).model, weights=True).path)
    ordinary = SamplingOptions(max_tokens=DRAFT_TOKENS, temperature=0.9, top_p=0.95, ignore_eos=True)
    repeats, sampling = {"repetitive": (3, greedy(DRAFT_TOKENS)), "ordinary": (1, ordinary)}[profile]
    done: list[Tracked] = []
    for passage in itertools.islice(passages, skip * DRAFT_PROMPTS, (skip + batches) * DRAFT_PROMPTS):
        done.append(await driver.submit(profile, passage * repeats, sampling, contract))
        if len(done) % DRAFT_PROMPTS == 0:
            await asyncio.gather(*(tracked.ended.wait() for tracked in done))
    return done


async def measure_draft_tpots(driver: EngineDriver) -> dict[str, float]:
    """Return, for each text, the TPOT of the streams that draft, from the steps of an engine that does not."""
    tpots_s = {}
    for profile in DRAFT_TEXTS:
        before = len(driver.rows)
        await _draft_batches(driver, profile, Contract(), 1)
        steps_s = [took_s for shape, took_s in driver.rows[before:] if shape.tokens == DRAFT_PROMPTS]
        tpots_s[profile] = DRAFT_TPOT_STEPS * statistics.median(steps_s)
    return tpots_s


async def drafts(driver: EngineDriver, variant: str, tpots_s: Mapping[str, float]) -> list[dict[str, Any]]:
    """Four streams at once by n-grams, text that repeats and ordinary text."""
    records = []
    for profile in DRAFT_TEXTS:
        contract = Contract(PrefillTarget(ttft_s=60.0), (DecodeTarget(tpots_s[profile]),))
        before = await driver.engine.scheduling_figures()
        began_s = time.monotonic()
        done = await _draft_batches(driver, profile, contract, DRAFT_BATCHES, skip=1)
        took_s = time.monotonic() - began_s
        after = await driver.engine.scheduling_figures()
        drafted, accepted = (after.get(name, 0) - before.get(name, 0) for name in ("drafted", "accepted"))
        decoding_s = sum(tracked.token_times_s[-1] - tracked.token_times_s[0] for tracked in done)
        records.append(
            {
                "part": "drafts",
                **record(variant, 0.0, profile, done, took_s),
                "tpot_s": tpots_s[profile],
                "drafted": drafted,
                "acceptance": accepted / drafted if drafted else None,
                "decoded_tokens_per_s": sum(len(tracked.token_times_s) - 1 for tracked in done) / decoding_s,
            }
        )
    return records
