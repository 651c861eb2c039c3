"""Blocks of generated text in Markdown pages: what stands between two comments is replaced, the rest stays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

Writer = Callable[[], str]
_BLOCK = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[\w-]+); run `make reference` -->\n).*?(?P<end><!-- end of (?P=name) -->)",
    re.DOTALL,
)


class UnknownBlockError(Exception):
    """A page has a block that nothing writes."""


def filled(text: str, writers: Mapping[str, Writer]) -> str:
    """Return a page with the text of every block written anew.

    Args:
        writers: what writes a block, by the block's name.

    Raises:
        UnknownBlockError: a block has a name that no writer has.
    """

    def fill(match: re.Match[str]) -> str:
        writer = writers.get(match["name"])
        if writer is None:
            raise UnknownBlockError(f"nothing writes the block {match['name']!r}")
        return f"{match['begin']}\n{writer().strip()}\n\n{match['end']}"

    return _BLOCK.sub(fill, text)


def blocks_in(text: str) -> list[str]:
    """Return the names of the blocks of a page, in order."""
    return [match["name"] for match in _BLOCK.finditer(text)]


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Write a Markdown table. Vertical bars in cells are escaped, and line breaks become spaces."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
