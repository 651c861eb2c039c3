"""Parts of the engine benchmark in which something changes: the load, or the speed of the machine."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.engine_driver import EngineDriver
from benchmarks.engine_load import LONG_PROMPT_TOKENS, Offered, Scale, greedy, random_tokens
from benchmarks.engine_parts import offer, record
from services.slo.contract import LOOSE_SLOWDOWN, TIGHT_SLOWDOWN, Contract, DecodeTarget, PrefillTarget

CYCLE = 13.0
"""Length of a cycle of the changing load, like all times in it in multiples of what a long prompt takes alone."""
SETTLED_STEPS, SETTLED_ERROR = 20, 0.1
"""A model has followed a change from when on so many steps are off by no more than this on average."""
PHASE_S = 15.0


def changing_trace(cycles: int, scale: Scale) -> list[Offered]:
    """A load for which no chunk is right at all times; two tight streams go on through each cycle.

    Three long prompts at once with different targets, then streams join, then short prompts with tight streams, and
    another long prompt among them.
    """
    tight_s, loose_s = scale.tight_tpot_s, scale.loose_tpot_s
    cycle = [
        *((0.2 * i, "tight", 128, 110, LOOSE_SLOWDOWN, tight_s) for i in range(2)),
        (2.8, "prompt", LONG_PROMPT_TOKENS, 16, TIGHT_SLOWDOWN, loose_s),
        (2.8, "prompt", 1200, 16, 4.0, loose_s),
        (2.8, "prompt", 600, 16, LOOSE_SLOWDOWN, loose_s),
        *((6.9, "loose", 200, 40, LOOSE_SLOWDOWN, loose_s) for _ in range(3)),
        *((7.9 + 0.33 * i, "short", 96, 24, LOOSE_SLOWDOWN, tight_s) for i in range(6)),
        (10.2, "prompt", 1500, 16, TIGHT_SLOWDOWN, loose_s),
    ]
    rng = random.Random(7)
    return sorted(
        (
            Offered(
                (number * CYCLE + at) * scale.long_prompt_s,
                profile,
                random_tokens(rng, prompt),
                tokens,
                scale.contract(prompt, slowdown, tpot_s),
            )
            for number in range(cycles)
            for at, profile, prompt, tokens, slowdown, tpot_s in cycle
        ),
        key=lambda offered: offered.at_s,
    )


async def changing(driver: EngineDriver, variant: str, scale: Scale, cycles: int) -> list[dict[str, Any]]:
    """The load of `changing_trace`."""
    trace = changing_trace(cycles, scale)
    done = await offer(driver, trace)
    seconds = cycles * CYCLE * scale.long_prompt_s
    kinds = {kind: [tracked for tracked in done if tracked.profile == kind] for kind in ("tight", "short", "prompt")}
    return [
        {"part": "changing", **record(variant, len(trace) / seconds, profile, tracked, seconds)}
        for profile, tracked in {**kinds, "all": done}.items()
    ]


@dataclass(frozen=True, slots=True)
class _Step:
    """What was expected of a step before it ran."""

    ended_s: float
    error: float
    within_bound: bool


async def relearning(driver: EngineDriver, variant: str, core: int) -> list[dict[str, Any]]:
    """How soon the engine's own predictions follow: another load, then half of the core, then all of it again."""
    steps: list[_Step] = []
    driver.watch(
        lambda step, now_s: steps.append(
            _Step(
                now_s,
                abs(step.duration_s - step.scheduling.predicted_s) / step.duration_s,
                step.duration_s <= step.scheduling.bound_s,
            )
        )
    )
    promise = Contract(PrefillTarget(ttft_s=60.0), (DecodeTarget(1.0),))
    ending = asyncio.Event()

    async def follow(seed: int, prompt_tokens: int, tokens: int) -> None:
        rng = random.Random(seed)
        while not ending.is_set():
            tracked = await driver.submit("relearn", random_tokens(rng, prompt_tokens), greedy(tokens), promise)
            await tracked.ended.wait()

    began = [("start", time.monotonic())]
    following = [asyncio.create_task(follow(seed, 64, 100)) for seed in range(4)]
    await asyncio.sleep(PHASE_S)
    began.append(("16 streams and long prompts instead of 4 streams", time.monotonic()))
    following += [asyncio.create_task(follow(seed, 64, 100)) for seed in range(4, 16)]
    following += [asyncio.create_task(follow(99, 1500, 2))]
    await asyncio.sleep(PHASE_S)
    with _competitor(core):
        began.append(("another process on the same core", time.monotonic()))
        await asyncio.sleep(PHASE_S)
    began.append(("alone on it again", time.monotonic()))
    await asyncio.sleep(PHASE_S)
    ending.set()
    await driver.abandon()
    await asyncio.gather(*following)
    ends = [at_s for _, at_s in began[1:]] + [time.monotonic()]
    return [
        {"part": "relearning", "variant": variant, "change": change, **_following(steps, at_s, end_s)}
        for (change, at_s), end_s in zip(began[1:], ends[1:], strict=True)
    ]


def _following(steps: Sequence[_Step], began_s: float, end_s: float) -> dict[str, float | int | None]:
    """Figures of the steps that ended between two times."""
    after = [step for step in steps if began_s < step.ended_s <= end_s]
    before = [step.error for step in steps if step.ended_s <= began_s][-100:]
    settled = next(
        (
            step.ended_s - began_s
            for index, step in enumerate(after)
            if len(after) - index >= SETTLED_STEPS
            and statistics.fmean(later.error for later in after[index : index + SETTLED_STEPS]) <= SETTLED_ERROR
        ),
        None,
    )
    late = after[len(after) // 2 :]
    return {
        "steps": len(after),
        "error_before": statistics.fmean(before) if before else None,
        "error_of_first_10": statistics.fmean(step.error for step in after[:10]) if after else None,
        "settled_s": settled,
        "error_of_second_half": statistics.fmean(step.error for step in late) if late else None,
        "bound_coverage_of_second_half": sum(step.within_bound for step in late) / len(late) if late else None,
    }


@contextmanager
def _competitor(core: int) -> Iterator[None]:
    """A process that computes on one core for as long as this lasts."""
    process = multiprocessing.get_context("spawn").Process(target=_compute, args=(core,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _compute(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        sum(range(10_000))
