"""The command `demo`: a cluster, sixteen real prompts at once, and a table of what was promised and kept."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.live import Live
from rich.table import Table

from cli.clusters import (
    CLUSTER_ERRORS,
    ConfigOption,
    DecodeOption,
    EngineOption,
    PrefillOption,
    cluster_settings,
    engine_environment,
    fail,
)
from cli.demo_prompts import DEMO_PROMPTS, DemoPrompt
from cli.progress import StartProgress
from cli.status_details import explain
from deploy.local.cluster import LocalCluster, running_cluster
from services.terminal.console import make_console
from slos_serve import (
    Admission,
    AsyncClient,
    Contract,
    Finished,
    FinishReason,
    Message,
    RetryPolicy,
    Sampling,
    SlosServeError,
    Tokens,
    Verdict,
)

DEMO_CONFIG = Path(__file__).parent.parent / "deploy" / "demo.toml"
MAX_TOKENS = 64
SHOWN_CHARACTERS = 70
REFRESHES_PER_S = 8

console = make_console()


@dataclass(slots=True)
class DemoRequest:
    """One prompt and everything that its stream reported."""

    name: str
    prompt: DemoPrompt
    admission: Admission | None = None
    text: str = ""
    finished: Finished | None = None
    error: str = ""
    tokens: int = field(default=0)

    @property
    def complete(self) -> bool:
        reasons = (FinishReason.STOP, FinishReason.LENGTH)
        return self.finished is not None and self.finished.reason in reasons


def demo(
    config: ConfigOption = None,
    engine: EngineOption = None,
    prefill: PrefillOption = None,
    decode: DecodeOption = None,
) -> None:
    """Start a cluster, serve sixteen prompts of four profiles at once, show what was promised and kept, and stop it."""
    # A service manager ends the demo as Ctrl-C does; Ctrl-C works even where a shell started it with SIGINT ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    config = config or DEMO_CONFIG
    requests = [DemoRequest(f"{prompt.profile}-{index % 4 + 1}", prompt) for index, prompt in enumerate(DEMO_PROMPTS)]
    try:
        settings = cluster_settings(config, engine, prefill, decode)
        began_s = time.monotonic()
        progress = StartProgress(console)
        cluster = LocalCluster(
            settings,
            config,
            die_with_parent=True,
            report=progress.report,
            environment=engine_environment(engine),
            waiting=progress.waiting,
        )
        with running_cluster(cluster) as running:
            console.print(f"cluster ready after {time.monotonic() - began_s:.1f} s at {running.router_address}\n")
            asyncio.run(_serve_all(running.router_address, requests))
    except CLUSTER_ERRORS as error:
        fail(error)
    except KeyboardInterrupt:
        console.print("interrupted; everything is stopped", style="yellow")
        raise typer.Exit(130) from None
    _show_answers(requests)
    console.print(_results(requests))
    _show_sum(requests)
    raise typer.Exit(0 if all(request.complete for request in requests) else 1)


async def _serve_all(address: str, requests: list[DemoRequest]) -> None:
    async with AsyncClient(address, retry=RetryPolicy(max_attempts=1)) as client:
        streams = asyncio.gather(*(_serve(client, request) for request in requests))
        if not sys.stdout.isatty():
            await streams
            return
        with Live(_streams(requests), console=console, refresh_per_second=REFRESHES_PER_S, transient=True) as live:
            while not streams.done():
                await asyncio.wait([streams], timeout=1 / REFRESHES_PER_S)
                live.update(_streams(requests))
        await streams


async def _serve(client: AsyncClient, request: DemoRequest) -> None:
    stream = client.generate(
        [Message("user", request.prompt.text)],
        sampling=Sampling(max_tokens=MAX_TOKENS, temperature=0.0),
        contract=Contract(profile=request.prompt.profile),
        application=request.prompt.profile,
    )
    try:
        async for event in stream:
            match event:
                case Admission():
                    request.admission = event
                case Tokens():
                    request.text += event.text
                    request.tokens += len(event.token_ids)
                case Finished():
                    request.finished = event
    except SlosServeError as error:
        request.error = explain(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _streams(requests: list[DemoRequest]) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("request")
    table.add_column("tokens", justify="right")
    table.add_column("text", no_wrap=True)
    for request in requests:
        table.add_row(request.name, str(request.tokens), request.error or _one_line(request.text)[-SHOWN_CHARACTERS:])
    return table


def _show_answers(requests: list[DemoRequest]) -> None:
    for request in requests:
        console.print(f"[bold]{request.name}[/] ", end="")
        console.print(f"{_one_line(request.prompt.text)[:SHOWN_CHARACTERS]}...", style="dim", markup=False)
        console.print(f"  {request.error or _one_line(request.text)}", markup=False)
    console.print()


def _results(requests: list[DemoRequest]) -> Table:
    table = Table(
        title="Times in ms; TPOT achieved is the smallest that every token kept; phases as the router saw them"
    )
    for column in ("request", "verdict"):
        table.add_column(column)
    for column in ("prompt", "TTFT pred", "TTFT", "TPOT pred", "TPOT", "queue", "prefill", "handover", "decode"):
        table.add_column(column, justify="right")
    table.add_column("promise")
    for request in requests:
        if request.admission is None or request.finished is None:
            table.add_row(request.name, "failed", *[""] * 9, request.error)
            continue
        table.add_row(request.name, *_figures(request.admission, request.finished))
    return table


def _figures(admission: Admission, finished: Finished) -> list[str]:
    achieved, phases = finished.achieved, finished.phases
    seconds = (
        admission.predicted.ttft_s,
        achieved.ttft_s,
        admission.predicted.tpot_s,
        achieved.tpot_s,
        phases.queue_s + phases.plan_s,
        phases.prefill_wait_s + phases.prefill_s,
        phases.handover_s,
        phases.decode_s,
    )
    promised = admission.verdict is Verdict.GUARANTEED
    outcome = "kept" if achieved.kept else "missed"
    return [
        admission.verdict.name.lower().replace("_", " "),
        str(admission.prompt_tokens),
        *(f"{value * 1e3:.0f}" for value in seconds),
        f"[{'green' if achieved.kept else 'red'}]{outcome}[/]" if promised else f"({outcome})",
    ]


def _show_sum(requests: list[DemoRequest]) -> None:
    guaranteed = [
        request
        for request in requests
        if request.admission is not None and request.admission.verdict is Verdict.GUARANTEED
    ]
    kept = sum(request.finished is not None and request.finished.achieved.kept for request in guaranteed)
    complete = sum(request.complete for request in requests)
    console.print(f"{complete} of {len(requests)} streams complete; {kept} of {len(guaranteed)} guarantees kept")
    if any(request.admission is not None and request.admission.emulated for request in requests):
        console.print("the engines were emulated: times come from the performance model, tokens are made up")
