"""What every policy needs: engines, and KV caches moved from the one that prefilled to the one that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cluster import Site
from simulator.engine import Composer, Engine
from simulator.request import Live


@dataclass(frozen=True, slots=True)
class Source:
    """Where a KV cache is to be pulled from."""

    engine: Engine
    blocks: int
    tokens: int
    since_s: float


class Serving:
    """Listens to engines. A policy says where requests go."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.events = site.events
        self.machine = site.machine
        self.engines: Sequence[Engine] = ()
        self._sources: dict[str, Source] = {}

    def engine(self, index: int, composer: Composer, *, reserves_output: bool = True) -> Engine:
        return Engine(
            f"w{index}", self.machine, self.events, composer, self, self.site.seed * 1000 + index, reserves_output
        )

    def decoder_of(self, live: Live) -> Engine:
        """Where a request goes on whose first token has come elsewhere."""
        raise NotImplementedError(type(self).__name__)

    def first_token(self, engine: Engine, live: Live) -> None:
        decoder = self.decoder_of(live)
        live.export = False
        self._sources[live.request_id] = Source(
            engine, live.work.held_blocks, live.context_tokens - 1, self.events.now_s
        )
        if self.machine.relay_delay_s:
            self.events.at(self.events.now_s + self.machine.relay_delay_s, lambda: decoder.submit(live, pulls=True))
        else:
            decoder.submit(live, pulls=True)

    def pull(self, engine: Engine, live: Live) -> None:
        source = self._sources.pop(live.request_id)
        if source.engine.failed:
            live.work.pulls_kv = False
            return
        now_s = self.events.now_s
        kv_bytes = source.tokens * self.machine.kv_bytes_per_token
        there_s = self.site.fabric.send(source.engine.worker_id, engine.worker_id, kv_bytes, now_s)

        def landed() -> None:
            source.engine.release(source.blocks)
            engine.landed(live)
            self.handed_over(source, engine, live, there_s - now_s)

        self.events.at(there_s, landed)

    def handed_over(self, source: Source, engine: Engine, live: Live, transfer_s: float) -> None:
        """The KV cache is there; for policies that learn from it."""

    def ended(self, engine: Engine, live: Live) -> None:
        self.site.done(live)

    def prompt_done(self, engine: Engine, live: Live) -> None:
        """Nothing: a policy may want to know."""

    def step_ended(self, engine: Engine) -> None:
        """Nothing: a policy may want to know."""

    def refuse(self, live: Live) -> None:
        """It is not served at all."""
        live.missed = True
        self.site.done(live)

    def alive(self, engines: Sequence[Engine]) -> Sequence[Engine]:
        """Without those that failed; all of them, if none is left: requests then wait for one to come back."""
        return [engine for engine in engines if not engine.failed] or engines


def least_loaded(engines: Sequence[Engine], live: Live) -> Engine:
    """Where least is to be computed before it, its own prompt included but for what is cached there."""
    return min(
        engines,
        key=lambda engine: (
            sum([work.pending_tokens for work in engine.works])
            + 8 * len(engine.lives)
            - engine.prefixes.peek(live.offered)
        ),
    )


def fewest_requests(engines: Sequence[Engine]) -> Engine:
    return min(engines, key=lambda engine: len(engine.lives))
