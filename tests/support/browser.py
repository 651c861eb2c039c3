"""A real Chromium, if this machine has one."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOOPBACK = "127.0.0.1"
ARGUMENTS = [
    "--no-sandbox",  # It needs privileges that containers and root lack; the only pages shown are ours.
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",  # Nothing but the pages under test is asked for.
    "--disable-component-update",
    "--disable-sync",
]


def chromium_path() -> str:
    """`CHROMIUM`, else the first on the path; empty if there is none."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), "")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    path = chromium_path()
    if not path:
        pytest.skip("no Chromium on the path (`apt-get install chromium`, or CHROMIUM=/path/to/it)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass  # Playwright adds attributes to whom it calls.
class Complaints:
    """What a page logged as an error, threw, or asked the user."""

    heard: list[str] = field(default_factory=list)

    def listen(self, page: Page) -> None:
        page.on("console", lambda message: self.heard.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.heard.append(str(error)))
        page.on("dialog", self._refuse)

    def _refuse(self, dialog: Dialog) -> None:
        self.heard.append(f"dialog: {dialog.message}")
        dialog.dismiss()


class Gate:
    """A TCP relay to one port that can be shut, which cuts every connection, and opened again on the same port."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.port = 0

    def open(self) -> None:
        listening = socket.create_server((LOOPBACK, self.port))
        self.port = listening.getsockname()[1]
        self._listening = listening
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def shut(self) -> None:
        assert self._listening is not None
        # A thread in `accept` would keep the port open after `close` alone.
        for connection in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection((LOOPBACK, self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(65536):
            sink.sendall(content)
        sink.shutdown(socket.SHUT_WR)
