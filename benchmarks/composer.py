"""What it costs to compose a step; no engine is run.

    python -m benchmarks.composer [--json PATH]

Four kinds of work, each with as many requests as said: `decodes` are all promised and in time, `mixed` has three tiers,
an eighth of the requests waiting with a prompt and a quarter best effort, `late` has a twentieth of the streams late,
and `speculation` three proposals a stream. `update_us` is what an engine pays besides to bring its requests up to date:
three attributes a request. One stream in sixteen needs a block for its token, as where they come at random. Every
composition is of another instance; garbage collection stays on.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.machine import machine, write_records
from services.slo.composer import ComposerPolicy, Limits, SchedulableRequest, compose
from services.slo.kv_blocks import blocks_for
from services.slo.performance import PerformanceCoefficients, PerformanceModel
from services.terminal.console import make_console

REQUESTS = (16, 64, 256, 512)
KINDS = ("decodes", "mixed", "late", "speculation")
TARGET_REQUESTS, TARGET_US = 256, 200.0
BLOCK_TOKENS = 16
A100_7B = PerformanceCoefficients(
    overhead_s=14e-3, per_token_s=51e-6, per_context_token_s=8e-9, per_attention_pair_s=1e-9, origin="fitted"
)
"""In the range of what is published for 7B models on an A100; the cost of a composition does not depend on it."""

console = make_console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    run(parser.parse_args().json)


def run(json_path: Path | None, compositions: int = 400) -> None:
    """Measure, print, and write the records."""
    records = [measure(kind, requests, compositions) for kind in KINDS for requests in REQUESTS]
    table = Table(title=f"Composing a step, {compositions} compositions each")
    for title in ("work", "requests", "p50, us", "p99, us", "of processor time, us", "update, us"):
        table.add_column(title, justify="left" if title == "work" else "right")
    for record in records:
        figures = (record[name] for name in ("p50_us", "p99_us", "p99_busy_us", "update_us"))
        table.add_row(record["work"], str(record["requests"]), *(f"{figure:.0f}" for figure in figures))
    console.print(table)
    slowest_us = max(record["p50_us"] for record in records if record["requests"] == TARGET_REQUESTS)
    console.print(f"{TARGET_REQUESTS} requests: median {slowest_us:.0f} us at most (target {TARGET_US:.0f})")
    console.print(machine())
    write_records(json_path, records)


def measure(kind: str, requests: int, compositions: int) -> dict[str, Any]:
    """Time `compositions` instances of one kind."""
    model = PerformanceModel(A100_7B, margins=(1.1, 1.15, 1.1))
    limits = Limits(max_step_tokens=2048, max_running_requests=2 * requests, block_tokens=BLOCK_TOKENS)
    policy = ComposerPolicy()
    instances = [draw(kind, requests, seed) for seed in range(compositions)]
    compose(instances[0], 10**6, model, limits, 0.0, policy)
    gc.collect()
    gc.freeze()  # What the benchmark itself holds is not the composer's to scan.
    durations_us, busy_us, updates_us = [], [], []
    for work in instances:
        began_ns, began_busy_ns = time.perf_counter_ns(), time.thread_time_ns()
        compose(work, 10**6, model, limits, 0.0, policy)
        busy_us.append((time.thread_time_ns() - began_busy_ns) / 1e3)
        durations_us.append((time.perf_counter_ns() - began_ns) / 1e3)
        updates_us.append(_update_us(work))
    gc.unfreeze()
    return {
        "work": kind,
        "requests": requests,
        "p50_us": statistics.median(durations_us),
        "p99_us": float(np.percentile(durations_us, 99)),
        "p99_busy_us": float(np.percentile(busy_us, 99)),
        "update_us": statistics.median(updates_us),
    }


def _update_us(work: Sequence[SchedulableRequest]) -> float:
    began_ns = time.perf_counter_ns()
    for w in work:
        w.computed_tokens += 1
        w.due_s += w.tpot_s
        w.wanted_s = w.due_s
    return (time.perf_counter_ns() - began_ns) / 1e3


def draw(kind: str, requests: int, seed: int) -> list[SchedulableRequest]:
    """Streams that are up to one TPOT ahead at time 0, and whatever else the kind of work has."""
    random_ = random.Random(f"{kind} {requests} {seed}")
    work = []
    for index in range(requests):
        tpot_s = random_.choice((0.05, 0.1, 0.2)) if kind == "mixed" else 0.1
        waits = kind == "mixed" and index % 8 == 0
        best_effort = kind == "mixed" and index % 4 == 1
        late = kind == "late" and index % 20 == 0
        context_tokens = random_.randrange(100, 4000)
        work.append(
            SchedulableRequest(
                request_id=f"request-{index:04}-1",
                computed_tokens=0 if waits else context_tokens,
                pending_tokens=context_tokens if waits else 1,
                decoding=not waits,
                running=not waits,
                held_blocks=0 if waits else blocks_for(context_tokens, BLOCK_TOKENS),
                due_s=math.inf
                if best_effort
                else -0.01
                if late
                else random_.uniform(tpot_s, (9 if waits else 2) * tpot_s),
                tpot_s=math.inf if best_effort else tpot_s,
                best_effort=best_effort,
                waiting_since_s=-random_.uniform(0, 10),
                draft_tokens=3 if kind == "speculation" else 0,
            )
        )
    return work


if __name__ == "__main__":
    main()
