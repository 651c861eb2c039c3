"""Seconds until a command, a router and a cluster are there, of one version of the code or of two by turns."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from benchmarks.machine import machine, real_engine, write_records
from deploy.local.ports import free_port
from services.terminal.console import make_console
from slos_serve import Client, RetryPolicy, SlosServeError

HERE = Path(__file__).resolve().parent.parent
KERNELS = Path("services/slo/planner/kernels")
POLL_S = 0.05
PATIENCE_S = 900.0
"""Seconds after which a start counts as failed."""

console = make_console()


@dataclass(frozen=True, slots=True)
class Took:
    """What one start took."""

    wall_s: float
    """Seconds until it was ready, as whoever waits sees them."""
    cpu_s: float
    """Seconds of a processor that all its processes had used by then."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """One version of the code."""

    name: str
    directory: Path

    def environment(self, scratch: Path) -> dict[str, str]:
        """Return the environment in which its processes find its modules, and no machine code but its own."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.directory),
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "SLOS_SERVE_LAUNCHER__RUN_DIR": str(scratch / "run"),
            "SLOS_SERVE_ROUTER__PORT": str(free_port()),
            "SLOS_SERVE_GATEWAY__PORT": "0",
            "SLOS_SERVE_CONSOLE__ENABLED": "false",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cli", *arguments]


def run(json_path: Path | None, parts: Sequence[str], repeats: int, against: Path | None) -> None:
    """Measure every part, with the two versions by turns if there is another one to compare with."""
    checkouts = [Checkout("this", HERE)]
    if against is not None:
        checkouts.insert(0, Checkout("other", against.resolve()))
    records: list[dict[str, Any]] = []
    for part in parts:
        for turn in range(repeats):
            for checkout in checkouts:
                took = PARTS[part](checkout)
                load = os.getloadavg()[0]
                records.append(
                    {
                        "part": part,
                        "version": checkout.name,
                        "wall_s": took.wall_s,
                        "cpu_s": took.cpu_s,
                        "load_average": load,
                    }
                )
                console.print(
                    f"{part}, {checkout.name}, {turn + 1} of {repeats}: {took.wall_s:.2f} s, "
                    f"{took.cpu_s:.2f} s of a processor, load average {load:.0f}",
                    style="dim",
                )
    console.print(_table(records, [checkout.name for checkout in checkouts]))
    console.print(f"{machine()}; real engines: {real_engine()}")
    write_records(json_path, records)


def _table(records: Sequence[dict[str, Any]], versions: Sequence[str]) -> Table:
    table = Table(title="Seconds until ready, medians: wall clock, and of a processor")
    table.add_column("start")
    for version in versions:
        table.add_column(f"{version}: wall", justify="right")
        table.add_column(f"{version}: CPU", justify="right")
    for part in dict.fromkeys(record["part"] for record in records):
        row = [part]
        for version in versions:
            own = [record for record in records if record["part"] == part and record["version"] == version]
            row += [f"{statistics.median(record[key] for record in own):.2f}" for key in ("wall_s", "cpu_s")]
        table.add_row(*row)
    return table


def _help(checkout: Checkout) -> Took:
    with _scratch() as scratch:
        process = psutil.Popen(
            checkout.command("--help"),
            stdout=subprocess.DEVNULL,
            cwd=checkout.directory,
            env=checkout.environment(scratch),
        )
        began_s = time.monotonic()
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"help ended with {status}")
        return Took(time.monotonic() - began_s, used.ru_utime + used.ru_stime)


def _router_warm(checkout: Checkout) -> Took:
    """Measure a router that finds machine code of its planner; the first start makes it, if need be."""
    with _scratch() as scratch:
        _router(checkout, scratch)
        while _is_compiling(scratch):
            time.sleep(POLL_S)
        return _router(checkout, scratch)


def _router_cold(checkout: Checkout) -> Took:
    """Measure a router that finds no machine code of its planner."""
    with _scratch() as scratch, _no_machine_code(checkout):
        return _router(checkout, scratch)


def _router(checkout: Checkout, scratch: Path) -> Took:
    """Start a router alone, without Redis, and wait until it answers."""
    environment = {**checkout.environment(scratch), "SLOS_SERVE_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0"}
    with (scratch / "router.log").open("wb") as log:
        began_s = time.monotonic()
        process = psutil.Popen(
            checkout.command("router"), stdout=log, stderr=log, cwd=checkout.directory, env=environment
        )
        try:
            while not _answers(environment["SLOS_SERVE_ROUTER__PORT"]):
                if process.poll() is not None or time.monotonic() - began_s > PATIENCE_S:
                    raise RuntimeError((scratch / "router.log").read_text())
                time.sleep(POLL_S)
            return Took(time.monotonic() - began_s, _used_s([process]))
        finally:
            process.terminate()
            process.wait()


def _answers(port: str) -> bool:
    # A client of its own for each question: gRPC waits longer and longer between its attempts to connect.
    with Client(f"127.0.0.1:{port}", retry=RetryPolicy(max_attempts=1)) as client:
        try:
            client.cluster_state(timeout_s=5.0)
        except SlosServeError:
            return False
        return True


def _is_compiling(scratch: Path) -> bool:
    """Return whether a compiler that a router left behind still works in this scratch directory."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        line, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if "router.compile_planner" in line and environment.get("XDG_CACHE_HOME", "").startswith(str(scratch)):
            return True
    return False


def _emulated(checkout: Checkout) -> Took:
    return _cluster(checkout, "--engine", "emulated", "--prefill", "2", "--decode", "2")


def _real(checkout: Checkout) -> Took:
    return _cluster(checkout, "--prefill", "1", "--decode", "1")


def _cluster(checkout: Checkout, *options: str) -> Took:
    with _scratch() as scratch:
        environment = checkout.environment(scratch)
        # Models that were taken from wheels, and machine code, are where they always are.
        del environment["XDG_CACHE_HOME"]
        began_s = time.monotonic()
        up = subprocess.run(
            checkout.command("up", *options),
            cwd=checkout.directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        took_s = time.monotonic() - began_s
        if up.returncode:
            raise RuntimeError(up.stdout + up.stderr)
        state = json.loads((scratch / "run" / "cluster.json").read_text())
        used_s = _used_s([psutil.Process(process["pid"]) for process in state["processes"]])
        subprocess.run(
            checkout.command("down"), cwd=checkout.directory, env=environment, capture_output=True, check=True
        )
        return Took(took_s, used_s)


def _used_s(processes: Sequence[psutil.Process]) -> float:
    """Return the seconds of a processor that processes and their descendants have used, the ended ones too."""
    used_s = 0.0
    for process in processes:
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used_s += sum(one.cpu_times()[:4])
    return used_s


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@contextlib.contextmanager
def _no_machine_code(checkout: Checkout) -> Iterator[None]:
    """While entered, keep the machine code of a version out of its sight; what is made meanwhile is thrown away."""
    cache = checkout.directory / KERNELS / "__pycache__"
    kept = cache.with_name("__kept__")
    if cache.exists():
        cache.rename(kept)
    try:
        yield
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        if kept.exists():
            kept.rename(cache)


PARTS: dict[str, Callable[[Checkout], Took]] = {
    "help": _help,
    "router-warm": _router_warm,
    "router-cold": _router_cold,
    "emulated": _emulated,
    "real": _real,
}
"""What can be started: `slos-serve --help`; a router with and without machine code of its planner; two emulated prefill
and two decode workers with router and gateway; one real worker of each kind with router and gateway."""
