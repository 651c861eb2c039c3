"""What every policy needs: engines, and KV caches moved from the one that prefilled to the one that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cluster import PolicyContext
from simulator.engine import Composer, Engine
from simulator.request import SimRequest


@dataclass(frozen=True, slots=True)
class Source:
    """Where a KV cache is to be pulled from."""

    engine: Engine
    blocks: int
    tokens: int
    since_s: float


def worker_name(index: int) -> str:
    """Return the id of the worker with that index."""
    return f"w{index}"


class BasePolicy:
    """Listens to engines. A policy says where requests go."""

    def __init__(self, context: PolicyContext) -> None:
        self.context = context
        self.events = context.events
        self.machine = context.machine
        self.engines: Sequence[Engine] = ()
        self._sources: dict[str, Source] = {}

    def engine(self, index: int, composer: Composer, *, reserves_output: bool = True) -> Engine:
        seed = self.context.seed * 1000 + index
        return Engine(worker_name(index), self.machine, self.events, composer, self, seed, reserves_output)

    def decoder_of(self, request: SimRequest) -> Engine:
        """Where a request goes on whose first token has come elsewhere."""
        raise NotImplementedError(type(self).__name__)

    def first_token(self, engine: Engine, request: SimRequest) -> None:
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
        source = self._sources.pop(request.request_id)
        if source.engine.failed:
            request.work.pulls_kv = False
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
        """The KV cache is there; for policies that learn from it."""

    def ended(self, engine: Engine, request: SimRequest) -> None:
        self.context.done(request)

    def prompt_done(self, engine: Engine, request: SimRequest) -> None:
        """Nothing: a policy may want to know."""

    def step_ended(self, engine: Engine) -> None:
        """Nothing: a policy may want to know."""

    def refuse(self, request: SimRequest) -> None:
        """It is not served at all."""
        request.missed = True
        self.context.done(request)

    def alive(self, engines: Sequence[Engine]) -> Sequence[Engine]:
        """Without those that failed; all of them, if none is left: requests then wait for one to come back."""
        return [engine for engine in engines if not engine.failed] or engines


def least_loaded(engines: Sequence[Engine], request: SimRequest) -> Engine:
    """Where least is to be computed before it, its own prompt included but for what is cached there."""
    return min(
        engines,
        key=lambda engine: (
            sum([work.pending_tokens for work in engine.works])
            + 8 * len(engine.requests)
            - engine.prefixes.peek(request.offered)
        ),
    )


def fewest_requests(engines: Sequence[Engine]) -> Engine:
    return min(engines, key=lambda engine: len(engine.requests))
