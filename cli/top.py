"""The command `top`, which shows a running cluster in the terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from rich.live import Live

from cli.clusters import ConfigOption, console, fail
from cli.credential_options import ApiKeyFileOption, InsecureCredentialsOption
from cli.status_details import without_state
from cli.target import AddressOption, find_target
from cli.top_view import Sample, screen
from services.config.load import ConfigurationError
from slos_serve import Client, SlosServeError

KEPT_SAMPLES = 60
QUIT_KEYS = frozenset("qQ\x04")
ANSWER_TIMEOUT_S = 2.0


def top(
    address: AddressOption = None,
    config: ConfigOption = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option(help="Print one picture and end; with 1 if no router answers.")] = False,
    api_key_file: ApiKeyFileOption = None,
    insecure_credentials: InsecureCredentialsOption = False,
) -> None:
    """Watch pools, promises and the queue of a running cluster."""
    try:
        target = find_target(address, config, api_key_file, insecure_credentials=insecure_credentials)
    except ConfigurationError as error:
        fail(error)
    with target.client() as client:
        if once or not console.is_terminal:
            _print_once(client, target.address)
        else:
            # Ctrl-C is the other way to say that it is enough.
            with suppress(KeyboardInterrupt):
                _watch(client, target.address, interval)


def _print_once(client: Client, target: str) -> None:
    try:
        sample = Sample(time.monotonic(), client.cluster_state(timeout_s=ANSWER_TIMEOUT_S))
    except SlosServeError as error:
        fail(without_state(target, error))
    console.print(screen([sample], target, keys=False))


def _watch(client: Client, target: str, interval_s: float) -> None:
    samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
    with _keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            away = ""
            try:
                samples.append(Sample(time.monotonic(), client.cluster_state(timeout_s=ANSWER_TIMEOUT_S)))
            except SlosServeError as error:
                away = error.detail or error.code.name
            live.update(screen(tuple(samples), target, away, now_s=time.monotonic()), refresh=True)
            if _quits(keyboard, interval_s):
                return


@contextmanager
def _keyboard() -> Iterator[int | None]:
    """Set the terminal to give every key at once, and yield its descriptor; None if there is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quits(keyboard: int | None, wait_s: float) -> bool:
    """Wait for a while. Return True as soon as a key asks to quit."""
    until_s = time.monotonic() + wait_s
    while (left_s := until_s - time.monotonic()) > 0:
        if keyboard is None:
            time.sleep(left_s)
        elif select.select([keyboard], [], [], left_s)[0]:
            pressed = os.read(keyboard, 64).decode(errors="replace")
            if not pressed or QUIT_KEYS & set(pressed):
                return True
    return False
