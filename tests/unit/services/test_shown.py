"""What comes from outside is shown in part."""

from __future__ import annotations

from services.shown import clipped


def test_a_short_text_is_shown_whole() -> None:
    assert clipped("x" * 40) == "x" * 40


def test_a_long_text_ends_with_an_ellipsis() -> None:
    assert clipped("x" * 41) == "x" * 39 + "…"
    assert clipped("abcdef", 4) == "abc…"
