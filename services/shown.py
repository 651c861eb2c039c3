"""Text from outside as messages show it."""

from __future__ import annotations

SHOWN_CHARACTERS = 40
"""Characters of a value from outside that a message shows: enough to recognise it."""


def clipped(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Return the beginning of a text, which ends with an ellipsis if something is left out."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
