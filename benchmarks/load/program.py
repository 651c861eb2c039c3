"""`slos-serve bench serve`: one rate after the other, shown as they end."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.load.driving import drive
from benchmarks.load.exchange import End, Exchange
from benchmarks.load.grpc_wire import GrpcWire
from benchmarks.load.http_wire import HttpWire
from benchmarks.load.report import markdown, plot, remarks, rich_table, tables
from benchmarks.load.schedule import Bounds, Made, Schedule, ScheduleError, from_trace, made_up, of_applications
from benchmarks.load.summary import RateRecord, record
from benchmarks.load.wire import Server, Target, TargetError, Wire
from benchmarks.machine import machine, write_records
from benchmarks.prompts import DEFAULT_RANGE, TokenRange
from benchmarks.requested_slo import SloMix
from services.slo.contract import ProfileBook
from simulator.traces import Traced
from slos_serve import AsyncClient, CredentialError, RetryPolicy, Tls


@dataclass(frozen=True, slots=True)
class Workload:
    """Where requests come from."""

    traced: tuple[Traced, ...] = ()
    name: str = ""
    """Name of the trace."""
    made: Made | None = None
    """Neither a trace nor this: chat, code and summaries."""
    mix: SloMix = field(default_factory=SloMix)
    burstiness: float = 1.0
    bounds: Bounds = field(default_factory=Bounds)
    rates_rps: tuple[float, ...] = ()
    """None: a trace as fast as it is, times `speed`."""
    speed: float = 1.0

    def schedules(self, seed: int) -> list[tuple[float, Schedule]]:
        """Rate asked for and what comes at it; the same requests at every rate of a trace.

        Raises:
            ScheduleError
        """
        if not self.traced:
            return [(rate, self._made_up(rate, seed + number)) for number, rate in enumerate(self.rates_rps or (1.0,))]
        found: list[tuple[float, Schedule]] = []
        for rate in self.rates_rps or (None,):
            schedule = from_trace(self.traced, self.mix, rate, self.speed, self.bounds, seed)
            found.append((schedule.rate_rps if rate is None else rate, schedule))
        return found

    def _made_up(self, rate_rps: float, seed: int) -> Schedule:
        if self.made is not None:
            return made_up(self.made, self.mix, rate_rps, self.bounds, seed)
        return of_applications(rate_rps, self.burstiness, self.bounds, seed)


@dataclass(frozen=True, slots=True)
class Connection:
    """How the target is spoken to."""

    target: Target
    model: str = ""
    key: str = field(default="", repr=False)
    """API key or token that requests carry; empty: they carry none."""
    insecure_credentials: bool = False
    """Whether the key may go unencrypted to another machine."""
    certificates: Path | None = None
    """Whom to trust over TLS, PEM."""
    among: TokenRange = DEFAULT_RANGE


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where figures go besides the terminal."""

    json: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None


def run(
    connection: Connection,
    workload: Workload,
    profiles: ProfileBook,
    *,
    warm_up_s: float,
    patience_s: float,
    seed: int,
    outputs: Outputs,
    console: Console,
) -> list[RateRecord]:
    """
    Raises:
        TargetError, ScheduleError
    """
    schedules = workload.schedules(seed)
    if late := [rate for rate, schedule in schedules if schedule.planned[-1].at_s < warm_up_s]:
        raise ScheduleError(f"at {late[0]:g} requests/s nothing comes after the warm-up of {warm_up_s:g} s")
    source = workload.name or ("made up" if workload.made else "chat, code and summaries")
    console.print(f"{connection.target}: {source}, seed {seed}; load from {machine()}")
    records: list[RateRecord] = []
    try:
        asyncio.run(_rates(connection, profiles, schedules, warm_up_s, patience_s, seed, console, records))
    finally:
        if records:
            _show(records, outputs, console, f"`{connection.target}`: {source}, seed {seed}; load from {machine()}.")
    return records


def _show(records: Sequence[RateRecord], outputs: Outputs, console: Console, heading: str) -> None:
    for titled in tables(records):
        console.print(rich_table(titled))
    for remark in remarks(records):
        console.print(remark, markup=False)
    write_records(outputs.json, [asdict(record) for record in records])
    if outputs.markdown is not None:
        outputs.markdown.write_text(markdown(records, heading))
    if outputs.plot is not None:
        plot(records, outputs.plot)
        console.print(f"plotted into {outputs.plot}")


async def _rates(
    connection: Connection,
    profiles: ProfileBook,
    schedules: Sequence[tuple[float, Schedule]],
    warm_up_s: float,
    patience_s: float,
    seed: int,
    console: Console,
    records: list[RateRecord],
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    slos = tuple(dict.fromkeys(request.slo for _, schedule in schedules for request in schedule.planned))
    try:
        with Progress(*columns, TextColumn("{task.fields[ends]}"), console=console, transient=True) as bar:
            for number, (rate_rps, schedule) in enumerate(schedules):
                # Each rate has prompts of its own: what the rate before left in caches is of no use to it.
                wire = _wire(connection, profiles, seed + (number << 32))
                try:
                    server = await _unless(stop, wire.look(slos))
                    if server is None:
                        return
                    task = bar.add_task(f"{rate_rps:.2f} requests/s", total=len(schedule.planned), ends="")
                    counts = dict.fromkeys(End, 0)

                    def note(exchange: Exchange, task: TaskID = task, counts: dict[End, int] = counts) -> None:
                        counts[exchange.end] += 1
                        ends = ", ".join(f"{count} {end.value}" for end, count in counts.items() if count)
                        bar.update(task, advance=1, ends=ends)

                    done = await drive(wire, schedule, patience_s=patience_s, stop=stop, progress=note)
                finally:
                    await wire.close()
                if len(done.exchanges):
                    records.append(
                        record(
                            done,
                            target=str(connection.target),
                            server=server.model,
                            emulated=server.emulated,
                            planned_rps=rate_rps,
                            warm_up_s=warm_up_s,
                            seed=seed,
                        )
                    )
                if stop.is_set():
                    return
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _unless(stop: asyncio.Event, look: Coroutine[None, None, Server]) -> Server | None:
    looking, stopping = asyncio.ensure_future(look), asyncio.ensure_future(stop.wait())
    await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if looking.done():
        return looking.result()
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
    return None


def _wire(connection: Connection, profiles: ProfileBook, seed: int) -> Wire:
    target = connection.target
    roots = connection.certificates
    try:
        pem = roots.read_bytes() if roots is not None else None
        if target.scheme.startswith("grpc"):
            tls = Tls(root_certificates=pem) if target.encrypted else None
            client = AsyncClient(
                *target.rest.split(","),
                tls=tls,
                api_key=connection.key or None,
                insecure_credentials=connection.insecure_credentials,
                # An attempt that is refused is a refusal.
                retry=RetryPolicy(max_attempts=1),
            )
            return GrpcWire(client, connection.model, connection.among, seed)
        certificates = ssl.create_default_context(cadata=pem.decode()) if pem is not None else None
    except CredentialError as error:
        raise TargetError(str(error).replace("insecure_credentials=True", "--insecure-credentials")) from error
    except (OSError, ValueError) as error:
        raise TargetError(f"certificates of {roots}: {error}") from error
    return HttpWire(
        str(target),
        certificates=certificates,
        key=connection.key,
        model=connection.model,
        profiles=profiles,
        among=connection.among,
        seed=seed,
    )
