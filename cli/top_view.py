"""The screen of `slos-serve top`, drawn from one or two samples of the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cli.status_details import client_part
from slos_serve import ClusterState, Phases, ProfileState, WorkerHealth, WorkerRole, WorkerState

BAR_CELLS = 12
PHASE_CELLS = 36
SPARK = "▁▂▃▄▅▆▇█"
PHASES = {
    "queue": "yellow",
    "plan": "magenta",
    "prefill_wait": "dark_orange",
    "prefill": "blue",
    "handover": "hot_pink",
    "decode": "cyan",
    "restart": "red",
}
"""Phases of a request and their colours."""
HEALTH_STYLES = {
    WorkerHealth.READY: "green",
    WorkerHealth.DRAINING: "yellow",
    WorkerHealth.CONNECTING: "cyan",
    WorkerHealth.INCOMPATIBLE: "red",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """State of the cluster at one moment."""

    at_s: float
    state: ClusterState


def screen(
    samples: Sequence[Sample], address: str, away: str = "", *, now_s: float = 0.0, keys: bool = True
) -> RenderableType:
    """Draw the screen.

    Args:
        samples: states of the cluster, the oldest first; rates are those between the last two, trends those of all.
        away: reason why the router does not answer; empty if it does.
        now_s: time on the clock of the samples; it matters only while the router is away.
        keys: whether to say which keys there are.
    """
    parts: list[RenderableType] = []
    if away:
        since = f"; what is below is {_duration(now_s - samples[-1].at_s)} old" if samples else ""
        parts.append(Text(f" no router answers at {address}: {away}{since} ", style="bold white on red"))
    if samples:
        state = samples[-1].state
        if state.partial:
            return Group(*parts, Text(client_part(state)), *_help(keys=keys))
        parts += [_header(state), _queue(samples), _promises(state)]
        parts += [_pool(samples, role) for role in (WorkerRole.PREFILL, WorkerRole.DECODE)]
        if state.trouble:
            parts.append(_trouble(state))
        parts += [Text(warning, style="yellow") for warning in state.warnings]
    return Group(*parts, *_help(keys=keys))


def _help(*, keys: bool) -> list[Text]:
    return [Text("q quits", style="dim")] if keys else []


def rate(samples: Sequence[Sample], read: str) -> float | None:
    """Return the growth per second of a router's counter between the last two samples; None if there is only one."""
    if len(samples) < 2:
        return None
    before, now = samples[-2:]
    grew = getattr(now.state.counters, read) - getattr(before.state.counters, read)
    return _per_second(grew, now.at_s - before.at_s)


def steps_rate(samples: Sequence[Sample], worker: WorkerState) -> float | None:
    """Return the steps per second of a worker between the last two samples."""
    if len(samples) < 2:
        return None
    before, now = samples[-2:]
    past = next((other for other in before.state.workers if other.worker_id == worker.worker_id), None)
    if past is None or past.engine_epoch != worker.engine_epoch:
        return None
    return _per_second(worker.steps - past.steps, now.at_s - before.at_s)


def sparkline(values: Iterable[float]) -> str:
    """Draw values as a line of bars, scaled to the greatest value or 1."""
    shown = list(values)
    most = max([1.0, *shown])
    return "".join(SPARK[min(len(SPARK) - 1, int(value / most * len(SPARK)))] for value in shown)


def bar(share: float, cells: int = BAR_CELLS, style: str = "green") -> Text:
    filled = round(max(0.0, min(1.0, share)) * cells)
    return Text("█" * filled, style=style) + Text("░" * (cells - filled), style="dim")


def phase_bar(phases: Phases, cells: int, longest_s: float) -> Text:
    """Draw phases side by side, as long as their share of `longest_s`; each phase that took time is visible."""
    text = Text()
    for field in fields(phases):
        spent_s = getattr(phases, field.name)
        width = max(1, round(spent_s / longest_s * cells)) if spent_s >= longest_s / cells / 4 else 0
        text.append("█" * width, style=PHASES[field.name.removesuffix("_s")])
    return text


def _header(state: ClusterState) -> Text:
    text = Text.assemble(
        ("slos-serve ", "bold"),
        (state.model, "bold cyan"),
        f"  router {state.router_id}{_place(state)}  up {_duration(state.uptime_s)}  Redis ",
        ("connected", "green") if state.redis_connected else ("unreachable", "bold red"),
    )
    if any(worker.emulated for worker in state.workers):
        text.append("  emulated engines", style="yellow")
    if state.console_url:
        text.append(f"  {state.console_url}", style="dim")
    return text


def _place(state: ClusterState) -> str:
    """Return which of several processes on one port answered; empty if there is one."""
    return "" if state.processes == 1 else f" (process {state.process} of {state.processes}, its own requests only)"


def _queue(samples: Sequence[Sample]) -> Table:
    state = samples[-1].state
    counters = state.counters
    grid = Table.grid(padding=(0, 3))
    received, rounds = rate(samples, "received"), rate(samples, "rounds")
    planning_s = counters.planning_s / counters.rounds if counters.rounds else 0.0
    grid.add_row(
        Text.assemble(("queued ", "dim"), (str(state.queued_requests), "bold")),
        Text.assemble(("without verdict ", "dim"), (str(state.held_requests), "bold")),
        Text.assemble(("running ", "dim"), (str(state.running_requests), "bold")),
        Text(sparkline(_waiting(sample.state) for sample in samples[-40:]), style="cyan"),
        Text.assemble(("requests/s ", "dim"), _number(received)),
        Text.assemble(("rounds/s ", "dim"), _number(rounds), (f" of {planning_s * 1e3:.1f} ms", "dim")),
        Text.assemble(("restarts ", "dim"), str(counters.restarts)),
        Text.assemble(("workers lost ", "dim"), str(counters.workers_lost)),
    )
    return grid


def _promises(state: ClusterState) -> Panel:
    table = Table(box=None, pad_edge=False, expand=True, header_style="dim")
    table.add_column("profile", no_wrap=True)
    for column in ("kept", "missed"):
        table.add_column(column, justify="right")
    table.add_column("share kept", no_wrap=True)
    for column in ("no promise", "refused", "failed"):
        table.add_column(column, justify="right")
    table.add_column("mean time", justify="right")
    table.add_column("where it went", no_wrap=True, ratio=1)
    longest_s = max((_total_s(profile.mean_phases) for profile in state.profiles), default=0.0)
    for profile in state.profiles:
        table.add_row(*_promise_row(profile, longest_s))
    content: RenderableType = table if state.profiles else Text("no request has ended in this time", style="dim")
    counters = state.counters
    legend = Text("  ").join(Text(phase.replace("_", " "), style=style) for phase, style in PHASES.items())
    return Panel(
        Group(content, legend),
        title=f"promises, last {_duration(state.recent_s)}",
        subtitle=f"since start: {counters.kept} kept, {counters.missed} missed, {counters.best_effort} best effort, "
        f"{counters.refused} refused, {counters.failed} failed",
        title_align="left",
        subtitle_align="left",
        box=box.ROUNDED,
        border_style="dim",
    )


def _promise_row(profile: ProfileState, longest_s: float) -> Iterable[RenderableType]:
    promised = profile.kept + profile.missed
    share = profile.kept / promised if promised else None
    good = "green" if not profile.missed else "red"
    total_s = _total_s(profile.mean_phases)
    yield Text(profile.profile)
    yield str(profile.kept)
    yield Text(str(profile.missed), style="bold red" if profile.missed else "")
    yield Text("-", style="dim") if share is None else bar(share, style=good) + Text(f" {share:.1%}", style=good)
    yield str(profile.best_effort)
    yield str(sum(profile.refused.values()))
    yield Text(str(profile.failed), style="bold red" if profile.failed else "")
    yield _time(total_s) if total_s else ""
    yield phase_bar(profile.mean_phases, PHASE_CELLS, longest_s) if total_s else ""


def _pool(samples: Sequence[Sample], role: WorkerRole) -> Panel:
    workers = [worker for worker in samples[-1].state.workers if worker.role is role]
    table = Table(box=None, pad_edge=False, expand=True, header_style="dim")
    for column in ("worker", "health"):
        table.add_column(column, no_wrap=True)
    for column in ("running", "waiting"):
        table.add_column(column, justify="right")
    table.add_column("KV cache", no_wrap=True)
    for column in ("leased", "steps/s", "last step", "99 % within", "off by"):
        table.add_column(column, justify="right", no_wrap=True)
    for worker in workers:
        used = worker.kv_blocks_used / worker.kv_blocks_total if worker.kv_blocks_total else 0.0
        seen = worker.steps > 0
        table.add_row(
            Text(worker.worker_id),
            Text(worker.health.name.lower(), style=HEALTH_STYLES.get(worker.health, "dim")),
            str(worker.running_requests),
            str(worker.waiting_requests),
            bar(used, style="red" if used > 0.95 else "blue") + Text(f" {used:4.0%}"),
            str(worker.kv_blocks_leased),
            _number(steps_rate(samples, worker)),
            _time(worker.last_step_s) if seen else "",
            f"{worker.step_time_bound:.2f} x" if seen else "",
            f"{worker.step_time_error:.1%}" if seen else "",
        )
        if worker.detail:
            table.add_row("", Text(worker.detail, style="yellow", overflow="fold"))
    content: RenderableType = table if workers else Text("none is registered", style="bold yellow")
    name = f"{role.name.lower()} workers"
    return Panel(content, title=name, title_align="left", box=box.ROUNDED, border_style="dim")


def _trouble(state: ClusterState) -> Panel:
    table = Table(box=None, pad_edge=False, expand=True, show_header=False)
    for trouble in state.trouble[:5]:
        table.add_row(
            Text(f"{_duration(trouble.ended_before_s)} ago", style="dim", no_wrap=True),
            Text(trouble.request_id, overflow="ellipsis", no_wrap=True),
            Text(trouble.profile, no_wrap=True),
            Text(trouble.what, style="red"),
            Text(trouble.phase.replace("_", " "), style=PHASES.get(trouble.phase, ""), no_wrap=True),
            Text(f"{trouble.prefill_worker_id} → {trouble.decode_worker_id}", style="dim", no_wrap=True),
        )
    title = "last missed promises and failures"
    return Panel(table, title=title, title_align="left", box=box.ROUNDED, border_style="dim")


def _waiting(state: ClusterState) -> int:
    return state.queued_requests + state.held_requests + state.running_requests


def _per_second(grew: float, over_s: float) -> float | None:
    # A counter that fell belongs to another process than before.
    return grew / over_s if over_s > 0 and grew >= 0 else None


def _total_s(phases: Phases) -> float:
    return float(sum(getattr(phases, field.name) for field in fields(phases)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
