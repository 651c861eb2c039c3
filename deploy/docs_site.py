"""Hooks of MkDocs for `make docs`: pages that the navigation does not name, and links out of `docs/`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Add to every section of the navigation the pages of its directory that it does not name, sorted by name."""
    docs = Path(config["docs_dir"])
    for section in config["nav"]:
        for pages in section.values():
            if isinstance(pages, list):
                directory = Path(pages[0]).parent
                found = sorted((directory / path.name).as_posix() for path in (docs / directory).glob("*.md"))
                pages.extend(page for page in found if page not in pages)
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links to files of the repository outside `docs/`, which the site does not hold, by the files' paths."""
    here = Path("docs", page.file.src_uri).parent

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = os.path.normpath(here / target.partition("#")[0])
        if "://" in target or target.startswith("#") or path.startswith("docs" + os.sep):
            return match.group(0)
        return f"`{path}`" if path in text or text.strip("`") == Path(path).name else f"{text} (`{path}`)"

    return _LINK.sub(plain, markdown)
