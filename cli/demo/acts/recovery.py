"""Act 4: the worker of a stream is killed, and the text goes on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from cli.demo.prompts import COUNTING_PROMPT
from cli.demo.scene import Scene
from cli.demo.streams import DemoStream
from cli.demo.tables import head, tail
from slos_serve import WorkerHealth, WorkerRole

TITLE = "4  kill -9 of the decode worker in mid-stream"
MAX_TOKENS = 72
KILL_AFTER_TOKENS = 24
"""Tokens after which the worker is killed: a third of the text."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """A stream whose worker was killed, beside an undisturbed one of the same prompt."""

    undisturbed: tuple[int, ...]
    """Token ids of the undisturbed stream."""
    disturbed: tuple[int, ...]
    gapless: bool
    """Whether each token came at the position after the one before."""
    restarts: int
    """Times that the request was started again because a worker was lost."""
    error: str = ""
    """What ended one of the streams too early, in words; empty if both are complete."""


@dataclass(slots=True)
class _Killing:
    """Kills the worker of a stream when it has so many tokens, once."""

    scene: Scene
    stream: DemoStream
    others: bool
    """Whether another decode worker can go on; otherwise the killed one is started again at once."""
    worker_id: str = ""
    pid: int = 0
    after_tokens: int = 0
    after_characters: int = 0

    def look(self) -> None:
        """Kill the worker if it is time to."""
        if self.pid or len(self.stream.token_ids) < KILL_AFTER_TOKENS or self.stream.admission is None:
            return
        self.worker_id = self.stream.admission.decode_worker_id
        self.pid = self.scene.workers.kill(self.worker_id)
        self.after_tokens, self.after_characters = len(self.stream.token_ids), len(self.stream.text)
        if not self.others:
            self.scene.workers.start_again(self.worker_id)

    def picture(self) -> Text:
        """Return the text so far, with a mark where the worker was killed."""
        if not self.pid:
            return Text(self.stream.text)
        before, after = self.stream.text[: self.after_characters], self.stream.text[self.after_characters :]
        return Text.assemble(before, (f" [kill -9 {self.worker_id}] ", "bold red"), (after, "green"))


async def play(scene: Scene) -> tuple[str, str]:
    """Stream a text undisturbed, stream it again and kill its worker, and compare.

    Returns:
        Id of the worker that was killed, and why the act did not show its point; both may be empty.
    """
    state = await scene.client.cluster_state()
    decoders = [
        worker.worker_id
        for worker in state.workers
        if worker.role is WorkerRole.DECODE and worker.health is WorkerHealth.READY
    ]
    undisturbed, disturbed = _count(scene), _count(scene)
    await scene.stage.during(undisturbed.follow(scene.client), lambda: Text(undisturbed.text))
    scene.stage.say(f"undisturbed: {head(undisturbed.text)}")
    killing = _Killing(scene, disturbed, others=len(decoders) > 1)
    await scene.stage.during(disturbed.follow(scene.client, on_tokens=killing.look), killing.picture)
    if killing.pid:
        _tell(scene, killing, [decoder for decoder in decoders if decoder != killing.worker_id])
    return killing.worker_id, failure(_recovery(undisturbed, disturbed))


def failure(story: Recovery) -> str:
    """Return why this story does not show that no token is lost; empty if it does."""
    if story.error:
        return story.error
    if story.restarts == 0:
        return "the stream ended before the worker was killed"
    if not story.gapless:
        return "tokens were lost or repeated"
    if story.disturbed != story.undisturbed:
        pairs = itertools.zip_longest(story.disturbed, story.undisturbed)
        place = next(position for position, (one, other) in enumerate(pairs, start=1) if one != other)
        return f"the text differs from the undisturbed one from token {place} on"
    return ""


def longest_gap_s(times_s: Sequence[float], since: int) -> float:
    """Return the longest time between two tokens from token number `since` on, in seconds; 0 without any.

    Args:
        times_s: when each token came, in order.
    """
    return max((later - earlier for earlier, later in itertools.pairwise(times_s[max(0, since - 1) :])), default=0.0)


def _count(scene: Scene) -> DemoStream:
    targets = scene.targets["chatbot-1"]
    return DemoStream("count", COUNTING_PROMPT, "chatbot", targets, targets.contract("chatbot"), MAX_TOKENS)


def _tell(scene: Scene, killing: _Killing, others: Sequence[str]) -> None:
    stream, stage = killing.stream, scene.stage
    before, after = stream.text[: killing.after_characters], stream.text[killing.after_characters :]
    stage.say(f"kill -9 {killing.pid} ({killing.worker_id}) after {killing.after_tokens} tokens: {tail(before)}")
    pause_s = longest_gap_s(stream.token_times_s, killing.after_tokens)
    heir = " or ".join(others) or f"{killing.worker_id}, started again,"
    stage.say(f"{heir} goes on after {pause_s:.2f} s: {head(after)}")
    served = stream.served()
    promise = "" if not served.promised else f"; its promise was {'kept' if served.in_time else 'missed'}"
    words = "none lost and none repeated" if stream.gapless and stream.complete else "not all of them"
    stage.say(f"{len(stream.token_ids)} tokens, {words}{promise}")


def _recovery(undisturbed: DemoStream, disturbed: DemoStream) -> Recovery:
    outcome = disturbed.served()
    return Recovery(
        undisturbed=tuple(undisturbed.token_ids),
        disturbed=tuple(disturbed.token_ids),
        gapless=disturbed.gapless,
        restarts=0 if disturbed.finished is None else disturbed.finished.restarts,
        error=undisturbed.served().error or outcome.error,
    )
