"""The base of every policy, which makes engines and moves KV caches from prefill to decode workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cluster import PolicyContext
from simulator.engine import Composer, Engine
from simulator.request import SimRequest


@dataclass(frozen=True, slots=True)
class Source:
    """A KV cache that waits on one engine to be pulled by another."""

    engine: Engine
    blocks: int
    tokens: int
    since_s: float
    """When the first token came, in seconds of virtual time."""


def worker_name(index: int) -> str:
    """Return the id of the worker with that index."""
    return f"w{index}"


class BasePolicy:
    """A listener of engines that moves KV caches; a policy that inherits from it says where requests go."""

    def __init__(self, context: PolicyContext) -> None:
        self.context = context
        self.events = context.events
        self.machine = context.machine
        self.engines: Sequence[Engine] = ()
        self._sources: dict[str, Source] = {}

    def engine(self, index: int, composer: Composer, *, reserves_output: bool = True) -> Engine:
        """Make the engine of worker `index`, which reports to this policy."""
        seed = self.context.seed * 1000 + index
        return Engine(worker_name(index), self.machine, self.events, composer, self, seed, reserves_output)

    def decoder_of(self, request: SimRequest) -> Engine:
        """Choose the engine on which a request decodes whose first token came elsewhere.

        Raises:
            NotImplementedError: the policy has no workers that only prefill.
        """
        raise NotImplementedError(type(self).__name__)

    def first_token(self, engine: Engine, request: SimRequest) -> None:
        """Submit a request to the engine that decodes it, which pulls its KV cache once it has room."""
        decoder = self.decoder_of(request)
        request.export = False
        self._sources[request.request_id] = Source(
            engine, request.work.held_blocks, request.context_tokens - 1, self.events.now_s
        )
        if self.machine.relay_delay_s:
            self.events.at(self.events.now_s + self.machine.relay_delay_s, lambda: decoder.submit(request, pulls=True))
        else:
            decoder.submit(request, pulls=True)

    def pull(self, engine: Engine, request: SimRequest) -> None:
        """Send the KV cache of a request; if the engine that has it failed, the request is computed again instead."""
        source = self._sources.pop(request.request_id)
        if source.engine.failed:
            request.work.pulls_kv = False
            # The engine is applying a step that has nothing for this request.
            self.events.at(self.events.now_s, engine.begin)
            return
        now_s = self.events.now_s
        kv_bytes = source.tokens * self.machine.kv_bytes_per_token
        there_s = self.context.fabric.send(source.engine.worker_id, engine.worker_id, kv_bytes, now_s)

        def landed() -> None:
            source.engine.release(source.blocks)
            engine.landed(request)
            self.handed_over(source, engine, request, there_s - now_s)

        self.events.at(there_s, landed)

    def handed_over(self, source: Source, engine: Engine, request: SimRequest, transfer_s: float) -> None:
        """Take note of a KV cache that has arrived, for policies that learn from it."""

    def ended(self, engine: Engine, request: SimRequest) -> None:
        """Report that a request has all its output."""
        self.context.done(request)

    def prompt_done(self, engine: Engine, request: SimRequest) -> None:
        """Do nothing; a policy may want to know."""

    def step_ended(self, engine: Engine) -> None:
        """Do nothing; a policy may want to know."""

    def refuse(self, request: SimRequest) -> None:
        """Report that a request is not served at all, which counts as missed."""
        request.missed = True
        self.context.done(request)

    def alive(self, engines: Sequence[Engine]) -> Sequence[Engine]:
        """Return the engines that have not failed, or all if all have: requests then wait for one to come back."""
        return [engine for engine in engines if not engine.failed] or engines


def least_loaded(engines: Sequence[Engine], request: SimRequest) -> Engine:
    """Return the engine with least to compute until this prompt is done, what is cached there left out.

    A request counts as 8 tokens more, so that decodes count as well (chosen).
    """
    return min(
        engines,
        key=lambda engine: (
            sum([work.pending_tokens for work in engine.works])
            + 8 * len(engine.requests)
            - engine.prefixes.peek(request.offered)
        ),
    )


def fewest_requests(engines: Sequence[Engine]) -> Engine:
    """Return the engine that holds the fewest requests."""
    return min(engines, key=lambda engine: len(engine.requests))
