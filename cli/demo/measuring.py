"""Measuring a machine through its router: a few prompts on every worker at once, which also warm everything up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from cli.demo.machine import Machine, Timing, machine_of
from cli.demo.prompts import SHORT_PROMPT, document
from slos_serve import AsyncClient, ClusterState, Completion, Contract, Message, Sampling, WorkerHealth, WorkerRole

ROUNDS = 3
"""Rounds of prompts that count. One before them does not: first steps are slow."""
OUTPUT_TOKENS = 12
LONG_PROMPT = document(1)
PATIENT_S = 600.0
"""Target, in seconds, that is certain to be promised, for asking against which bound promises are made."""


async def measure(client: AsyncClient, report: Callable[[str], None]) -> Machine:
    """Return the speed of the cluster's workers with all of them at work.

    Args:
        report: called with a line about what was measured.

    Raises:
        SlosServeError
    """
    workers = prompt_workers(await client.cluster_state())
    short: list[Timing] = []
    long: list[Timing] = []
    for _ in range(ROUNDS + 1):
        short = [*short, *await _on_all_workers(client, SHORT_PROMPT, workers)]
        long = [*long, *await _on_all_workers(client, LONG_PROMPT, workers)]
    machine = machine_of(short[workers:], long[workers:], workers, bound_ratio=1.0)
    ratios = [
        await promised_ttft_s(client, prompt, PATIENT_S) / machine.prefill_s(timings[0].prompt_tokens)
        for prompt, timings in ((SHORT_PROMPT, short), (LONG_PROMPT, long))
    ]
    machine = replace(machine, bound_ratio=max(1.0, *ratios))
    report(
        f"measured with {workers} busy worker{'s' * (workers > 1)}: a prompt of {short[0].prompt_tokens} tokens takes "
        f"{machine.prefill_s(short[0].prompt_tokens) * 1e3:.0f} ms, one of {long[0].prompt_tokens} tokens "
        f"{machine.prefill_s(long[0].prompt_tokens) * 1e3:.0f} ms, a decode step {machine.decode_step_s * 1e3:.0f} ms; "
        f"promises count with {machine.bound_ratio:.1f} times as much"
    )
    return machine


def prompt_workers(state: ClusterState) -> int:
    """Return how many workers compute prompts: the prefill workers, or all decode workers where there are none."""
    ready = [worker.role for worker in state.workers if worker.health is WorkerHealth.READY]
    return max(1, ready.count(WorkerRole.PREFILL) or ready.count(WorkerRole.DECODE))


async def prompt_tokens(client: AsyncClient, prompts: Sequence[str]) -> list[int]:
    """Return the length of each prompt in tokens, the chat template's included.

    Raises:
        SlosServeError
    """
    quotes = [await client.quote([Message("user", prompt)]) for prompt in prompts]
    return [quote.admission.prompt_tokens for quote in quotes]


async def _on_all_workers(client: AsyncClient, prompt: str, workers: int) -> list[Timing]:
    sampling = Sampling(max_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
    streams = [client.generate([Message("user", prompt)], sampling=sampling) for _ in range(workers)]
    return [_timing(done) for done in await asyncio.gather(*(stream.completion() for stream in streams))]


def _timing(done: Completion) -> Timing:
    achieved = done.finished.achieved
    return Timing(
        prompt_tokens=done.admission.prompt_tokens,
        ttft_s=achieved.ttft_s,
        decode_step_s=achieved.stages[0].mean_tpot_s,
        second_token_s=achieved.tpot_s,
    )


async def promised_ttft_s(client: AsyncClient, prompt: str, tpot_s: float) -> float:
    """Return the tightest TTFT, in seconds, that the router would promise a prompt now, beside this TPOT.

    Raises:
        SlosServeError
    """
    contract = Contract.latency(ttft_s=PATIENT_S, tpot_s=tpot_s)
    quote = await client.quote([Message("user", prompt)], contract=contract)
    return quote.admission.predicted.ttft_bound_s
