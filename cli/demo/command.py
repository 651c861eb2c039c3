"""The command `demo`: a cluster on this machine, measured, and four acts about its promises."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.clusters import (
    CLUSTER_ERRORS,
    ConfigOption,
    DecodeOption,
    EngineOption,
    cluster_settings,
    engine_environment,
    fail,
)
from cli.demo.farewell import Doors, how_to_go_on
from cli.demo.rehearsal import rehearse
from cli.demo.stage import Stage
from cli.demo.story import Story
from cli.demo.workers import DemoWorkers
from cli.progress import StartProgress
from cli.status_details import explain
from deploy.local.cluster import LocalCluster
from deploy.local.run_directory import RunningCluster, run_directory, stop_command
from services.config.own_credential import own_credential
from services.config.settings import Settings
from services.terminal.console import make_console
from slos_serve import AsyncClient, RetryPolicy, SlosServeError, WorkerHealth

DEMO_CONFIG = Path(__file__).parent.parent.parent / "deploy" / "demo.toml"
POLL_S = 0.2

KeepOption = Annotated[bool, typer.Option("--keep", help="Leave the cluster running.")]


def demo(
    config: ConfigOption = None,
    engine: EngineOption = None,
    decode: DecodeOption = None,
    keep: KeepOption = False,
) -> None:
    """Show in four acts what promises are: made and kept, switched off, refused, and kept when a worker dies.

    Exits with 0 if each act showed what it is for, and with 1 otherwise. The acts are made for decode workers that
    compute prompts too, as in the configuration that the demo brings along.
    """
    # A service manager ends the demo as Ctrl-C does; Ctrl-C works even where a shell started it with SIGINT ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    stage = Stage(make_console())
    config = config or DEMO_CONFIG
    try:
        settings = cluster_settings(config, engine, None, decode, gateway=keep)
        progress = StartProgress(stage.console)
        cluster = LocalCluster(
            settings,
            config,
            die_with_parent=not keep,
            report=progress.report,
            environment=engine_environment(engine),
            waiting=progress.waiting,
        )
        began_s = time.monotonic()
        with _running(cluster, keep=keep) as running:
            stage.say(f"cluster ready after {time.monotonic() - began_s:.1f} s")
            ok = asyncio.run(
                _tell(stage, settings, cluster, running, stop_command(run_directory(settings.launcher)) if keep else "")
            )
    except CLUSTER_ERRORS as error:
        fail(error)
    except SlosServeError as error:
        fail(explain(error))
    except KeyboardInterrupt:
        stage.console.print("interrupted; everything is stopped", style="yellow")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if ok else 1)


@contextmanager
def _running(cluster: LocalCluster, *, keep: bool) -> Iterator[RunningCluster]:
    """Start a cluster, and stop it at the end of the block unless it is to be kept and nothing was raised."""
    running = cluster.start()
    try:
        yield running
    except BaseException:
        cluster.stop()
        raise
    if not keep:
        cluster.stop()


async def _tell(stage: Stage, settings: Settings, cluster: LocalCluster, running: RunningCluster, stop: str) -> bool:
    """Measure the machine, play the acts, and say how to go on. Returns whether every act showed its point.

    Args:
        stop: the command that stops the cluster, if it goes on running; empty otherwise.
    """
    async with AsyncClient(
        running.router_address, api_key=own_credential(), retry=RetryPolicy(max_attempts=1)
    ) as client:
        state = await client.cluster_state()
        if state.console_url:
            stage.say(f"console {state.console_url}")
        if any(worker.emulated for worker in state.workers):
            stage.say("engines are emulated: their times come from a model, and the tokens are made up", "yellow")
        workers = DemoWorkers.of(cluster, running)
        scene = await rehearse(client, stage, workers, settings.router.max_hold_s)
        story = Story(scene)
        await story.tell()
        doors = None
        if stop:
            await _wait_complete(stage, client, settings, workers, story.killed_worker_id)
            doors = Doors(running.router_address, running.gateway_address, state.console_url, stop)
    failed = [result for result in story.results if result.failure]
    stage.title("The end")
    total, took_s = len(story.results), sum(result.took_s for result in story.results)
    style = "bold red" if failed else "bold green"
    stage.say(f"{total - len(failed)} of {total} acts showed what they are for, in {took_s:.0f} s", style)
    for line in how_to_go_on(doors, scene.targets["chatbot-1"]):
        stage.say(line)
    return not failed


async def _wait_complete(
    stage: Stage, client: AsyncClient, settings: Settings, workers: DemoWorkers, killed_worker_id: str
) -> None:
    """Start the killed worker again, and wait until the cluster is complete; after a while it is left incomplete."""
    if not killed_worker_id:
        return
    stage.say(f"starting {killed_worker_id} again", "dim")
    workers.start_again(killed_worker_id)
    wanted = settings.launcher.prefill + settings.launcher.decode
    until_s = time.monotonic() + settings.launcher.start_timeout_s
    while time.monotonic() < until_s:
        state = await client.cluster_state()
        if sum(worker.health is WorkerHealth.READY for worker in state.workers) == wanted:
            return
        await asyncio.sleep(POLL_S)
    stage.say(f"{killed_worker_id} is not ready yet; `slos-serve status` will say when it is", "yellow")
