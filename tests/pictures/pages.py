"""What the pictures of the documentation show, and the labels by which a test sees that a picture is out of date."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

DIRECTORY = Path(__file__).resolve().parents[2] / "docs" / "images"
MANIFEST = DIRECTORY / "pictures.json"
"""The labels of each page when its picture was taken."""
MOST_BYTES = 120_000
"""Size of a picture at most: a page of documentation has several."""

LABELS = """() => [...document.querySelectorAll(".tile .name, h2, th, dt, .legend span, #theme")]
    .filter((element) => !element.closest("#timeline .legend"))
    .filter((element) => element.tagName === "H2" || element.closest("section")?.querySelector("h2")?.textContent !==
        "Missed promises and failures")
    .map((element) => element.textContent)"""
"""JavaScript that returns the labels of a page, without those that are there only after something went wrong."""
PATIENCE_MS = 30_000
COLOURS = 256
"""Colours of a picture: a page of the console has few, and a picture of all is several times as large."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One page of the console.

    Args:
        path: the address within the console, after its slash.
        shown: a selector of what is there when the page is complete.
        width, height: of the window, in pixels.
    """

    name: str
    path: str
    shown: str
    width: int
    height: int


def pictures(request_id: str) -> tuple[Picture, ...]:
    """Return the pictures of a console; one shows the request `request_id`."""
    return (
        Picture("console", "", "#promises .tone-kept", 1280, 1100),
        Picture("console-request", f"#/requests/{request_id}", "#timeline rect.tone-decode", 1280, 900),
        Picture("console-phone", "", "#promises .tone-kept", 390, 844),
    )


def visit(page: Page, console_url: str, picture: Picture) -> list[str]:
    """Open the page of a picture. Returns the labels on it."""
    page.set_viewport_size({"width": picture.width, "height": picture.height})
    page.goto("about:blank")  # Addresses that differ behind `#` only are the same document to a browser.
    page.goto(console_url + picture.path)
    page.wait_for_selector(picture.shown, timeout=PATIENCE_MS)
    page.wait_for_selector("#link[data-state=live]", timeout=PATIENCE_MS)
    return labels(page.evaluate(LABELS))


def labels(texts: list[str]) -> list[str]:
    """Return texts without figures and repetitions, sorted: what data and time of day do not change."""
    without = (re.sub(r"\d[\d.,]*( (s|min|h|ms)\b)?", "#", text).strip() for text in texts)
    return sorted(set(without) - {""})


def recorded() -> dict[str, list[str]]:
    """Return the labels of each picture by its name."""
    content: dict[str, list[str]] = json.loads(MANIFEST.read_text())
    return content


def save(png: bytes, name: str) -> None:
    """Write a picture with few colours.

    Raises:
        ValueError: it is too large for a page.
    """
    file = DIRECTORY / f"{name}.png"
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, kmeans=3).save(file, optimize=True)
    size = file.stat().st_size
    print(f"{file.name}: {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise ValueError(f"{file.name} has {size} bytes, more than {MOST_BYTES}")
