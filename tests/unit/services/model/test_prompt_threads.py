"""Long prompts are converted beside the event loop, and clients take turns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.prompt_threads import (
    INLINE_CHARACTERS,
    LONG_CHARACTERS,
    MAX_WAITING_OF_CLIENT,
    FairTurns,
    PromptThreads,
    TooManyPromptsError,
)
from tests.support.eventually import eventually

SHORT = INLINE_CHARACTERS + 1
LONG = LONG_CHARACTERS + 1


class Gate:
    """Conversions that wait until they are let through, and the order in which they began."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.began: list[str] = []

    def conversion(self, name: str) -> Callable[[], str]:
        def convert() -> str:
            self.began.append(name)
            assert self.open.wait(20.0)
            return name

        return convert


def test_clients_take_turns_however_many_items_each_has() -> None:
    turns: FairTurns[str] = FairTurns()
    for index in range(3):
        turns.push("greedy", 10.0, f"greedy-{index}")
    turns.push("modest", 10.0, "modest-0")
    assert [turns.pop() for _ in range(4)] == ["greedy-0", "modest-0", "greedy-1", "greedy-2"]


def test_a_client_with_cheap_items_is_given_more_of_them() -> None:
    turns: FairTurns[str] = FairTurns()
    for index in range(2):
        turns.push("dear", 100.0, f"dear-{index}")
    for index in range(10):
        turns.push("cheap", 10.0, f"cheap-{index}")
    order = [turns.pop() for _ in range(12)]
    assert order.index("dear-1") == 10 or order.index("dear-1") == 11


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 100.0)), max_size=30))
def test_every_item_comes_once_and_each_client_keeps_its_order(items: list[tuple[str, float]]) -> None:
    turns: FairTurns[tuple[str, int]] = FairTurns()
    for index, (client, cost) in enumerate(items):
        turns.push(client, cost, (client, index))
    order = [turns.pop() for _ in range(len(items))]
    assert sorted(order, key=lambda item: item[1]) == [(client, index) for index, (client, _) in enumerate(items)]
    for client in "abc":
        mine = [index for name, index in order if name == client]
        assert mine == sorted(mine)
        assert turns.waiting_of(client) == 0


async def test_a_short_text_is_converted_at_once() -> None:
    here = threading.get_ident()
    assert await PromptThreads().run("c", INLINE_CHARACTERS, threading.get_ident) == here


async def test_a_long_text_is_converted_in_another_thread() -> None:
    here = threading.get_ident()
    threads = PromptThreads()
    assert await threads.run("c", SHORT, threading.get_ident) != here
    assert await threads.run("c", LONG, threading.get_ident) != here


async def test_what_a_conversion_raises_reaches_its_caller_and_the_next_goes_on() -> None:
    threads = PromptThreads()

    def refuse() -> str:
        raise ValueError("no such template")

    with pytest.raises(ValueError, match="no such template"):
        await threads.run("c", SHORT, refuse)
    assert await threads.run("c", SHORT, lambda: "next") == "next"


async def test_texts_of_middle_length_do_not_wait_for_long_ones() -> None:
    threads, gate = PromptThreads(), Gate()
    long = asyncio.create_task(threads.run("hostile", LONG, gate.conversion("long")))
    await eventually(lambda: gate.began == ["long"])
    assert await threads.run("honest", SHORT, lambda: "short") == "short"
    gate.open.set()
    assert await long == "long"


async def test_a_newcomer_waits_for_one_text_of_a_client_with_many() -> None:
    threads, gate = PromptThreads(), Gate()
    many = [asyncio.create_task(threads.run("hostile", LONG, gate.conversion(f"h{index}"))) for index in range(4)]
    await eventually(lambda: gate.began == ["h0"])
    modest = asyncio.create_task(threads.run("modest", LONG, gate.conversion("m")))
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(*many, modest)
    assert gate.began.index("m") <= 2


async def test_a_client_with_too_many_waiting_is_refused_and_others_are_not() -> None:
    threads, gate = PromptThreads(), Gate()
    first = asyncio.create_task(threads.run("hostile", LONG, gate.conversion("first")))
    await eventually(lambda: gate.began == ["first"])
    waiting = [
        asyncio.create_task(threads.run("hostile", LONG, gate.conversion("more"))) for _ in range(MAX_WAITING_OF_CLIENT)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooManyPromptsError):
        await threads.run("hostile", LONG, gate.conversion("refused"))
    other = asyncio.create_task(threads.run("modest", LONG, gate.conversion("other")))
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(first, *waiting, other)
    assert "refused" not in gate.began


async def test_callers_who_leave_are_passed_over() -> None:
    threads, gate = PromptThreads(), Gate()
    first = asyncio.create_task(threads.run("a", LONG, gate.conversion("first")))
    await eventually(lambda: gate.began == ["first"])
    gone = asyncio.create_task(threads.run("b", LONG, gate.conversion("gone")))
    stays = asyncio.create_task(threads.run("c", LONG, gate.conversion("stays")))
    await asyncio.sleep(0)
    gone.cancel()
    first.cancel()
    await asyncio.gather(gone, first, return_exceptions=True)
    gate.open.set()
    assert await stays == "stays"
    assert gate.began == ["first", "stays"]
    assert await threads.run("d", LONG, lambda: "after") == "after"


def test_what_is_converted_on_the_event_loop_is_little() -> None:
    """A rare character takes a microsecond; the loop must not be held for ten milliseconds."""
    assert INLINE_CHARACTERS <= 4096
