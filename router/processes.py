"""One router process, or several that listen on the same port."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import FrameType

import uvloop

from router.app import serve
from router.process_rank import ProcessRank
from services.config.logging import configure_logging
from services.config.settings import Settings
from services.config.tls import TlsError, cluster_tls, process_id
from services.identity.peer import PeerRole
from services.network.address import BindError, check_address, join_address

log = logging.getLogger(__name__)

CONFIGURATION_ERROR = 2
POLL_S = 0.5
LEAST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Bounds of the pause before a process that ended is started again; it doubles while no start lives for `PROVEN_S`."""
PROVEN_S = 30.0
"""Seconds of life after which a process that ends is started again without a longer pause."""


def run(settings: Settings) -> int:
    """Run a router of one or several processes until SIGTERM or SIGINT. Returns the exit code."""
    if settings.router.processes == 1:
        return uvloop.run(serve(settings))
    return RouterProcesses(settings).run()


@dataclass(slots=True)
class _Child:
    index: int
    process: SpawnProcess
    started_s: float
    pause_s: float = LEAST_PAUSE_S
    due_s: float | None = None
    """When the process is to be started again; None while it runs."""
    told: bool = False
    """True once the process was told to end."""


class RouterProcesses:
    """Starts several router processes, starts each again that ends, and ends them all together.

    The kernel spreads new connections over the processes that listen. To the workers each is a router of its own; they
    tell it what the others have promised.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        self._children: list[_Child] = []
        self._stopping = False
        options = settings.router
        self._id = options.id or f"router-{socket.gethostname()}-{os.getpid()}"

    def run(self) -> int:
        """Run until SIGTERM or SIGINT. Returns 0 if all processes have ended in order."""
        options = self._settings.router
        try:
            # With a certificate, the processes go by its id.
            self._id = process_id(cluster_tls(self._settings.tls, PeerRole.ROUTER), "router.id", options.id, self._id)
            port = _hold_port(options.host, options.port)
        except (TlsError, BindError) as error:
            log.error("%s", error)
            return CONFIGURATION_ERROR
        with port:
            number: int = port.getsockname()[1]
            for name in (signal.SIGTERM, signal.SIGINT):
                signal.signal(name, self._stop)
            log.info("%d router processes share %s", options.processes, join_address(options.host, number))
            for index in range(options.processes):
                self._children.append(_Child(index, self._start(index, number), time.monotonic()))
            return self._watch(number)

    def _start(self, index: int, port: int) -> SpawnProcess:
        settings = self._settings
        router = settings.router.model_copy(update={"port": port, "id": f"{self._id}-{index}", "processes": 1})
        # Only one of them can have the ports of console and metrics.
        console = settings.console.model_copy(update={"port": settings.console.port if index == 0 else 0})
        port_or_any = settings.telemetry.metrics_port if index == 0 else 0
        telemetry = settings.telemetry.model_copy(update={"metrics_port": port_or_any})
        own = settings.model_copy(update={"router": router, "console": console, "telemetry": telemetry})
        place = ProcessRank(index + 1, settings.router.processes)
        process = self._context.Process(target=_serve_on_shared_port, args=(own, place), name=f"router {index}")
        process.start()
        return process

    def _watch(self, port: int) -> int:
        code = 0
        while True:
            running = [child for child in self._children if child.due_s is None]
            if self._stopping:
                # Also those that were being started when the signal came.
                self._stop()
            if self._stopping and not running:
                return code
            wait([child.process.sentinel for child in running], POLL_S)
            now_s = time.monotonic()
            for child in running:
                ended = child.process.exitcode
                if ended is None:
                    continue
                if self._stopping or ended == CONFIGURATION_ERROR:
                    code = code or abs(ended)
                    child.due_s = now_s
                    if not self._stopping:
                        self._stop()
                    continue
                proven = now_s - child.started_s >= PROVEN_S
                child.pause_s = LEAST_PAUSE_S if proven else min(LONGEST_PAUSE_S, 2 * child.pause_s)
                child.due_s = now_s + child.pause_s
                log.warning("%s ended with %d; again in %.1f s", child.process.name, ended, child.pause_s)
            for child in self._children:
                if not self._stopping and child.due_s is not None and now_s >= child.due_s:
                    child.process, child.started_s, child.due_s = self._start(child.index, port), now_s, None

    def _stop(self, *_: int | FrameType | None) -> None:
        self._stopping = True
        for child in self._children:
            if not child.told:
                child.told = True
                child.process.terminate()


def _hold_port(host: str, port: int) -> socket.socket:
    """Return a socket that keeps the port for our processes and listens to nobody itself.

    Raises:
        AddressInUseError
        BindError
    """
    if port:
        # Two strangers that both allow it would share a port without a word.
        check_address(host, port)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, target = found[0]
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(target)
    except OSError as error:
        raise BindError(join_address(host, port), error.strerror or str(error)) from error
    return held


def _serve_on_shared_port(settings: Settings, place: ProcessRank) -> None:
    configure_logging(settings.log, settings.router.id)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    raise SystemExit(uvloop.run(serve(settings, place)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        log.warning("the process that started this one is gone")
        os.kill(os.getpid(), signal.SIGTERM)
