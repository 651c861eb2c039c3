"""`make pictures`: take the pictures of the documentation from an emulated cluster that keeps what it promises."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cli.top_view import Sample, screen
from slos_serve import Client
from tests.pictures.load import FOLLOWED, followed, send
from tests.pictures.pages import MANIFEST, pictures, save, visit
from tests.support.browser import chromium, chromium_path
from tests.support.cluster import ClusterUnderTest, cluster_under_test
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CONFIG = """
[model]
path = "{directory}/tiny"
name = "tiny"
[launcher]
run_dir = "{directory}/run"
prefill = 2
decode = 2
[router]
port = 0
[console]
port = 0
[engine]
kind = "emulated"
[engine.emulated]
kv_blocks = 1024
"""
TERMINAL_COLUMNS = 130


class UnhealthyError(Exception):
    """Promises were missed or requests failed, which the pictures would show."""


def terminal(cluster: ClusterUnderTest, seconds: float) -> str:
    """Return what `slos-serve top` shows after some seconds, as SVG without fonts from elsewhere."""
    samples = []
    with Client(cluster.address) as client:
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            samples.append(Sample(time.monotonic(), client.cluster_state()))
            time.sleep(1.0)
    console = Console(record=True, width=TERMINAL_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(screen(samples, cluster.address))
    return re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="slos-serve top"), flags=re.DOTALL)


def take(cluster: ClusterUnderTest, browser: Browser, top_s: float) -> dict[str, list[str]]:
    """Take all pictures of a cluster under load. Returns the labels of each page."""
    page: Page = browser.new_page(color_scheme="light")
    labels = {}
    for picture in pictures(FOLLOWED):
        labels[picture.name] = visit(page, cluster.state().console_url, picture)
        page.wait_for_timeout(1500)  # Charts of workers are drawn with the second frame.
        save(page.screenshot(), picture.name)
    # On a page of its own: that of the console lets nobody else say how things look.
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_content(terminal(cluster, top_s))
    save(page.locator("svg").first.screenshot(), "top")
    return labels


def main() -> int:
    parser = argparse.ArgumentParser(prog="make pictures", description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="how long the cluster works before the first one")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    given = parser.parse_args()
    if not chromium_path():
        print("no Chromium on the path: `make test-tools` installs it", file=sys.stderr)
        return 1
    top_s = 20.0
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "cluster.toml"
        write_tiny_model(Path(directory) / "tiny")
        config.write_text(CONFIG.format(directory=directory))
        with cluster_under_test(config) as cluster, chromium() as browser:
            load = threading.Thread(target=send, args=(cluster, given.seconds + 3 * top_s, given.rate), daemon=True)
            load.start()
            time.sleep(given.seconds)
            cluster.generate(followed())
            labels = take(cluster, browser, top_s)
            load.join()
            counters = cluster.state().counters
    if counters.missed or counters.failed:
        raise UnhealthyError(f"{counters.missed} promises missed, {counters.failed} requests failed: try again")
    MANIFEST.write_text(json.dumps(labels, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
