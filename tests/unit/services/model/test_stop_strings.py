"""Stop strings, whatever pieces the text comes in."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.model.stop_strings import StopStrings


def followed(pieces: list[str], stops: list[str], *, include: bool = False) -> tuple[str, str]:
    follower = StopStrings(stops, include_match=include)
    text = ""
    for piece in pieces:
        checked = follower.feed(piece)
        text += checked.text
        if checked.matched:
            return text, checked.matched
    return text + follower.flush(), ""


def whole(text: str, stops: list[str], *, include: bool) -> tuple[str, str]:
    """What the text is cut to when seen all at once."""
    found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, ""
    at, _, stop = min(found)
    return text[: at + len(stop) if include else at], stop


letters = st.text(alphabet="ab", max_size=4)


@given(
    pieces=st.lists(letters, max_size=12), stop=st.text(alphabet="ab", min_size=1, max_size=4), include=st.booleans()
)
def test_the_text_is_the_same_however_it_is_cut_into_pieces(pieces: list[str], stop: str, include: bool) -> None:
    assert followed(pieces, [stop], include=include) == whole("".join(pieces), [stop], include=include)


@given(text=st.text(alphabet="abc", max_size=30), stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=3)))
def test_nothing_after_a_stop_string_is_ever_shown(text: str, stops: list[str]) -> None:
    shown, matched = followed(list(text), stops)
    assert not any(stop in shown for stop in stops)
    assert bool(matched) == any(stop in text for stop in stops)


def test_before_the_minimum_of_tokens_nothing_stops_the_text() -> None:
    follower = StopStrings(["x"])
    assert follower.feed("axb", armed=False).text == "axb"
    assert follower.feed("cxd").matched == "x"


def followed_slowly(pieces: list[str], stops: list[str]) -> list[tuple[str, str]]:
    """Return what is shown after each piece, by trying every stop string and every length."""
    answers, held = [], ""
    for piece in pieces:
        held += piece
        found = [(held.find(stop), -len(stop), stop) for stop in stops if stop in held]
        if found:
            at, _, stop = min(found)
            answers.append((held[:at], stop))
            return answers
        keep = max(
            (length for stop in stops for length in range(len(stop)) if stop[:length] == held[len(held) - length :]),
            default=0,
        )
        answers.append((held[: len(held) - keep], ""))
        held = held[len(held) - keep :]
    return answers


@given(
    pieces=st.lists(st.text(alphabet="ab", max_size=5), max_size=12),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=6),
)
def test_each_piece_shows_what_trying_every_stop_string_would(pieces: list[str], stops: list[str]) -> None:
    follower = StopStrings(stops)
    for piece, (shown, matched) in zip(pieces, followed_slowly(pieces, stops), strict=False):
        checked = follower.feed(piece)
        assert (checked.text, checked.matched) == (shown, matched)


def test_the_cost_of_a_piece_does_not_grow_with_overlapping_stop_strings() -> None:
    length = 100
    stops = ["a" * length + "b"] + [chr(ord("c") + index) + "a" * length for index in range(20)]
    follower = StopStrings(stops)
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        for _ in range(1000):
            follower.feed("a")
    finally:
        sys.settrace(before)
    assert lines < 40 * 1000
