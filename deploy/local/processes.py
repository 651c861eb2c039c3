"""Child processes that leave a log and nothing else behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.config.environment import API_KEY_VARIABLE

DIE_WITH = Path(__file__).with_name("die_with.py")
LOG_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process that was started here. Its start time tells it from a later process with the same pid."""

    name: str
    pid: int
    started_unix_s: float
    log: str

    def process(self) -> psutil.Process | None:
        """Return the live process; None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started_unix_s) > 0.5 or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.NoSuchProcess:
            return None
        return process

    def log_tail(self) -> str:
        """Return the last lines of the process's log."""
        return "\n".join(Path(self.log).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def start(
    name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], *, die_with_parent: bool
) -> RunningProcess:
    """Start a process in its own session, with its output in the file `log`.

    Args:
        die_with_parent: it gets SIGTERM when this process dies, however it dies.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(DIE_WITH), str(os.getpid()), *command] if die_with_parent else command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**_inherited(), **environment},
            start_new_session=True,
        )
    return RunningProcess(name, process.pid, psutil.Process(process.pid).create_time(), str(log))


def _inherited() -> dict[str, str]:
    """Return the environment of this process without the credential of whoever runs it, which no server needs."""
    return {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}


def stop(processes: Iterable[RunningProcess], grace_s: float, report: Callable[[str], None]) -> None:
    """Send SIGTERM to processes and all their descendants, and SIGKILL after `grace_s` seconds."""
    live = [process for running in processes if (process := running.process()) is not None]
    family = [*live, *(child for process in live for child in _children(process))]
    for process in live:
        _signal(process, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=grace_s)
    for process in left:
        report(f"process {process.pid} did not end within {grace_s:.0f} s; killing it")
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=5.0)
    _reap(live)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _reap(processes: Iterable[psutil.Process]) -> None:
    """Ask for the exit codes of this process's children, which stay zombies until then."""
    deadline_s = time.monotonic() + 1.0
    for process in processes:
        try:
            while time.monotonic() < deadline_s and os.waitpid(process.pid, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            continue
