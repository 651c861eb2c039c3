"""Act 3: a contract that cannot be kept now is refused, and kept at the time that the refusal names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from cli.demo.measuring import PATIENT_S, promised_ttft_s, prompt_tokens
from cli.demo.prompts import document
from cli.demo.scene import Scene
from cli.demo.streams import DemoStream
from cli.demo.tally import tally
from cli.demo.targets import Targets
from slos_serve import Message, OnOverload, RefusedError, Verdict

TITLE = "3  A contract that cannot be kept now"
WAIT_S = 2.5
"""Seconds, beyond those for which the router would hold the question, that documents keep the workers busy for: long
enough to be refused behind them, short enough to wait for."""
MOST_TEXTS = 14
"""Texts in a document at most, about 5,000 tokens: the built-in model's context ends at 8,192."""
MOST_DOCUMENTS_PER_WORKER = 4
"""Documents for each worker that are sent at most until the question finds no room."""
TTFT_STEP = 1.03
"""Factor between two TTFTs that are tried for a document: with less slack than its bound's thirtieth, the question does
not fit before it."""
QUESTION_SLACK = 3.0
"""Multiple of the bound on its idle prefill time within which the question wants its first token: where other work
disturbs the machine, a worker's bounds may double while the question waits."""
MOST_ASKED = 3
"""Times that the question is asked again at most; a refusal's time to retry is a forecast."""
DOCUMENT_VALUE = 20.0
"""Value of a document's contract: it costs about so many times what a prompt of the burst does."""
DOCUMENT_MAX_TOKENS, QUESTION_MAX_TOKENS = 4, 24
LEAST_WAIT_S = 1.0
"""Seconds beyond what the router would hold the request that room must be away."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The story of one contract that was refused."""

    refused: bool
    """Whether the first answer was a refusal for want of capacity."""
    binding: str
    """Resource that the refusal named; empty if it named none."""
    retry_after_s: float | None
    """Seconds after which to ask again, as the refusal said."""
    asked_again: int
    """Times that it was asked again, each time when it was told to."""
    promised: bool
    kept: bool
    error: str = ""
    """What went wrong otherwise, in words."""


async def play(scene: Scene) -> str:
    """Book the workers with promised documents, ask for what finds no room beside them, and again when told to.

    Returns:
        The reason why the act did not show its point; empty if it did.
    """
    ask = await _question(scene, document(1))
    long = await _document_text(scene, ask().targets)
    documents = await _book(scene, long, ask)
    long_tokens, question_tokens = await prompt_tokens(scene.client, [long, ask().prompt])
    promised = sum(stream.promised for stream, _ in documents)
    scene.stage.say(
        f"{len(documents)} documents of {long_tokens:,} tokens keep the workers busy, {promised} of them promised; now "
        f"a prompt of {question_tokens} tokens wants its first token within {ask().targets.ttft_s:.2f} s"
    )
    story = await _ask(scene, ask)
    await asyncio.gather(*(running for _, running in documents))
    served = [stream.served() for stream, _ in documents]
    scene.stage.say(f"{tally(served).kept} of {len(served)} documents kept: the refusal protected them")
    return failure(story)


def failure(story: Refusal) -> str:
    """Return why this story does not show an honest refusal; empty if it does."""
    if story.error:
        return story.error
    if not story.refused:
        return "the contract was not refused: the workers were not busy enough"
    if not story.binding or story.retry_after_s is None:
        return "the refusal did not say what binds, or not when to ask again"
    if not story.promised:
        return f"the contract was still refused after it was asked for {story.asked_again} more times"
    if not story.kept:
        return "the contract was promised at last, but missed"
    return ""


async def _question(scene: Scene, prompt: str) -> Callable[[], DemoStream]:
    """Return what makes a new request with a contract that only idle workers can keep."""
    tpot_s = max(targets.tpot_s for targets in scene.targets.values())
    targets = Targets(QUESTION_SLACK * await promised_ttft_s(scene.client, prompt, tpot_s), tpot_s)

    def ask() -> DemoStream:
        contract = targets.contract("chatbot", OnOverload.REFUSE)
        return DemoStream("question", prompt, "chatbot", targets, contract, QUESTION_MAX_TOKENS)

    return ask


async def _document_text(scene: Scene, question: Targets) -> str:
    """Return a prompt behind which the question would be late for as long as is worth showing."""
    wanted_s = question.ttft_s * (1 - 1 / QUESTION_SLACK) + scene.max_hold_s + WAIT_S
    for texts in range(1, MOST_TEXTS):
        if await promised_ttft_s(scene.client, document(texts), question.tpot_s) >= wanted_s:
            return document(texts)
    return document(MOST_TEXTS)


async def _book(
    scene: Scene, prompt: str, ask: Callable[[], DemoStream]
) -> list[tuple[DemoStream, asyncio.Task[None]]]:
    """Send documents with contracts until the question would be refused for long enough to be worth showing."""
    booked: list[tuple[DemoStream, asyncio.Task[None]]] = []
    while len(booked) < MOST_DOCUMENTS_PER_WORKER * scene.machine.workers:
        wanted = ask()
        quote = await wanted.quote(scene.client)
        wait_s = quote.admission.earliest_guarantee_s
        if quote.admission.verdict is Verdict.REFUSED and (wait_s or 0.0) > scene.max_hold_s + LEAST_WAIT_S:
            break
        stream = await _document(scene, prompt, f"document-{len(booked) + 1}", wanted.targets.tpot_s)
        answered = asyncio.Event()
        task = asyncio.ensure_future(stream.follow(scene.client, on_admission=answered.set))
        waiting = asyncio.ensure_future(answered.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        booked.append((stream, task))
    return booked


async def _document(scene: Scene, prompt: str, name: str, tpot_s: float) -> DemoStream:
    """Return a request for a document with about the tightest contract that is promised to it now."""
    quote = await scene.client.quote([Message("user", prompt)])
    ttft_s = quote.admission.predicted.ttft_s
    while True:
        targets = Targets(ttft_s, tpot_s)
        contract = replace(targets.contract("summarizer"), value=DOCUMENT_VALUE)
        stream = DemoStream(name, prompt, "summarizer", targets, contract, DOCUMENT_MAX_TOKENS)
        quote = await stream.quote(scene.client)
        if quote.admission.verdict is Verdict.GUARANTEED or ttft_s > PATIENT_S:
            return stream
        ttft_s *= TTFT_STEP


async def _ask(scene: Scene, ask: Callable[[], DemoStream]) -> Refusal:
    """Ask, and after each refusal again when it says so."""
    refusals: list[RefusedError] = []
    while True:
        stream = ask()
        await stream.follow(scene.client)
        again = f"asked again {refusals[-1].retry_after_s:.2f} s later: " if refusals else ""
        if not isinstance(stream.error, RefusedError):
            break
        refusals.append(stream.error)
        scene.stage.say(f"{again}refused: {_why(stream.error)}")
        if len(refusals) > MOST_ASKED or stream.error.retry_after_s is None:
            break
        await asyncio.sleep(stream.error.retry_after_s)
    served = stream.served()
    if served.achieved is not None:
        scene.stage.say(
            f"{again}{'promised' if served.promised else 'taken without a promise'}; the first token came after "
            f"{served.achieved.ttft_s:.2f} s of {served.targets.ttft_s:.2f} s: {'kept' if served.in_time else 'missed'}"
        )
    return Refusal(
        refused=bool(refusals),
        binding=refusals[0].binding if refusals else "",
        retry_after_s=refusals[0].retry_after_s if refusals else None,
        asked_again=max(0, len(refusals) - (not served.promised)),
        promised=served.promised,
        kept=served.in_time,
        error="" if served.promised or isinstance(stream.error, RefusedError) else served.error,
    )


def _why(error: RefusedError) -> str:
    binding = error.binding.lower().replace("_", " ")
    when = "" if error.retry_after_s is None else f"; it could be promised in {error.retry_after_s:.2f} s"
    return f"{binding} binds{when}"
