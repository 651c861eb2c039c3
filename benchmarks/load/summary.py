"""What became of a rate: every request that was offered counts, whatever became of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.load.driving import Run
from benchmarks.load.exchange import End, Exchange, Verdict
from services.slo.attainment import Attainment

EVERYTHING = "all"
LATE_GENERATOR_S = 0.010
"""A generator that is later than this with one request in a hundred is part of what it measures."""
BUSY_GENERATOR = 0.9
"""Share of a core above which the generator itself is too busy to be believed."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a time in seconds, over requests or tokens; None without any."""

    count: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        array = np.fromiter(values, float)
        if not array.size:
            return cls(0)
        return cls(int(array.size), *(float(value) for value in np.percentile(array, (50, 90, 99))))


@dataclass(frozen=True, slots=True)
class Agreement:
    """The server's own account beside what its clients measured. Seconds."""

    compared: int
    both_kept: int
    only_server_says_kept: int
    only_client_says_kept: int
    ttft_later: Spread
    """At the client than the server says."""
    tpot_wider: Spread
    """The rate that every token kept, at the client beyond what the server says; negative where it was narrower."""


@dataclass(frozen=True, slots=True)
class Generator:
    """Whether the figures are the server's, or this program's."""

    lag_s: Spread
    """Seconds after the planned time at which requests were sent."""
    pauses_s: Spread
    """Pauses of the event loop in seconds: a token may have been seen this much late."""
    cpu_cores: float
    saturated: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """One rate, all of it or one kind of contract. Times in seconds."""

    ask: str
    offered: int
    offered_rps: float
    """While requests came, warm-up left out."""
    attained: int
    """Contracts kept, promised or not, as measured here; a request without a contract that was served to its end."""
    attainment: float
    """Attained of offered."""
    goodput_rps: float
    """Attained per second of offering."""
    complete: int
    guaranteed: int
    kept: int
    """Number of guarantees kept."""
    missed: int
    """Number of guarantees missed."""
    best_effort: int
    best_effort_attained: int
    unpromised: int
    """Served by a server that makes no promises."""
    refused: Mapping[str, int]
    """Number of refusals by binding resource."""
    errors: Mapping[str, int]
    """Number of errors by type."""
    unfinished: int
    ttft_s: Spread
    tpot_mean_s: Spread
    """(last token - first) / tokens after the first, by request."""
    tpot_required_s: Spread
    """The smallest constant rate that every token kept, by request."""
    itl_s: Spread
    """Between two messages with tokens, over all of them."""
    e2e_s: Spread
    tokens_per_s: float
    """Tokens per second of all answers, while requests came and were served."""
    prompt_tokens: int
    """Prompt tokens of what was served."""
    cached_tokens: int
    """Prompt tokens found in the server's caches, by its own account."""
    hidden_tokens: int
    """Counted by the server, but in no message that tells when they came."""
    phases_s: Mapping[str, Spread]
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class RateRecord:
    """One rate."""

    target: str
    server: str
    emulated: bool
    planned_rps: float
    """What was asked for; what came is in `overall`."""
    seconds: float
    warm_up_s: float
    cut_short: bool
    clipped_prompts: int
    seed: int
    overall: Summary
    by_ask: tuple[Summary, ...]
    generator: Generator
    details: Sequence[str] = field(default=())
    """The first of each kind of error, in the server's words."""


def measured(run: Run, warm_up_s: float) -> list[Exchange]:
    """Those that count: sent after the warm-up, and not interrupted from outside."""
    ended = {End.COMPLETE, End.REFUSED, End.ERROR} | (set() if run.cut_short else {End.UNFINISHED})
    return [e for e in run.exchanges if e.planned.at_s >= warm_up_s and e.end in ended]


def record(
    run: Run, *, target: str, server: str, emulated: bool, planned_rps: float, warm_up_s: float, seed: int
) -> RateRecord:
    exchanges = measured(run, warm_up_s)
    end_s = run.schedule.seconds
    if run.cut_short:
        end_s = min(end_s, max((e.planned.at_s for e in run.exchanges), default=0.0))
    seconds = max(1e-9, end_s - warm_up_s)
    names = sorted({exchange.planned.slo.name for exchange in exchanges})
    kinds = [[e for e in exchanges if e.planned.slo.name == name] for name in names] if len(names) > 1 else []
    first: dict[str, str] = {}
    for exchange in exchanges:
        if exchange.end is End.ERROR:
            first.setdefault(exchange.reason, f"{exchange.reason}: {exchange.detail[:200]}")
    return RateRecord(
        target=target,
        server=server,
        emulated=emulated,
        planned_rps=planned_rps,
        seconds=seconds,
        warm_up_s=warm_up_s,
        cut_short=run.cut_short,
        clipped_prompts=run.schedule.clipped,
        seed=seed,
        overall=summary(EVERYTHING, exchanges, seconds),
        by_ask=tuple(summary(name, some, seconds) for name, some in zip(names, kinds, strict=False)),
        generator=_generator(run),
        details=tuple(first.values()),
    )


def summary(name: str, exchanges: Sequence[Exchange], seconds: float) -> Summary:
    """
    Args:
        seconds: for which they came.
    """
    complete = [exchange for exchange in exchanges if exchange.end is End.COMPLETE]
    attained = [exchange for exchange in complete if exchange.kept]
    served = [(exchange, attainment) for exchange in complete if (attainment := exchange.attainment()) is not None]
    # What was admitted and then failed or was given up has broken its promise.
    verdicts = Counter(exchange.answer.verdict for exchange in exchanges if exchange.answer is not None)
    kept = Counter(exchange.answer.verdict for exchange in attained if exchange.answer is not None)
    last_s = max((e.ended_s for e in exchanges), default=0.0)
    busy_s = max(seconds, last_s - min((e.sent_s for e in exchanges), default=0.0))
    return Summary(
        ask=name,
        offered=len(exchanges),
        offered_rps=len(exchanges) / seconds,
        attained=len(attained),
        attainment=len(attained) / len(exchanges) if exchanges else 0.0,
        goodput_rps=len(attained) / seconds,
        complete=len(complete),
        guaranteed=verdicts[Verdict.GUARANTEED],
        kept=kept[Verdict.GUARANTEED],
        missed=verdicts[Verdict.GUARANTEED] - kept[Verdict.GUARANTEED],
        best_effort=verdicts[Verdict.BEST_EFFORT],
        best_effort_attained=kept[Verdict.BEST_EFFORT],
        unpromised=verdicts[Verdict.NONE],
        refused=dict(Counter(e.reason for e in exchanges if e.end is End.REFUSED)),
        errors=dict(Counter(e.reason for e in exchanges if e.end is End.ERROR)),
        unfinished=sum(exchange.end is End.UNFINISHED for exchange in exchanges),
        ttft_s=Spread.of(a.ttft_s for _, a in served if a.ttft_s is not None),
        tpot_mean_s=Spread.of(_mean_tpot_s(e) for e, _ in served if e.token_count > 1),
        tpot_required_s=Spread.of(_required_tpot_s(a) for e, a in served if e.token_count > 1),
        itl_s=Spread.of(gap_s for exchange in complete for gap_s in _gaps_s(exchange)),
        e2e_s=Spread.of(exchange.ended_s - exchange.sent_s for exchange in complete),
        tokens_per_s=sum(exchange.token_count for exchange in exchanges) / busy_s,
        prompt_tokens=sum(exchange.planned.prompt_tokens for exchange in complete),
        cached_tokens=sum(exchange.cached_tokens for exchange in complete),
        hidden_tokens=sum(exchange.hidden_tokens for exchange in exchanges),
        phases_s=_phases(complete),
        agreement=_agreement(served),
    )


def _gaps_s(exchange: Exchange) -> list[float]:
    return [after - before for (before, _), (after, _) in itertools.pairwise(exchange.arrivals)]


def _mean_tpot_s(exchange: Exchange) -> float:
    return (exchange.arrivals[-1][0] - exchange.arrivals[0][0]) / (exchange.token_count - 1)


def _required_tpot_s(attainment: Attainment) -> float:
    return max((stage.required_tpot_s for stage in attainment.stages), default=0.0)


def _phases(complete: Sequence[Exchange]) -> dict[str, Spread]:
    claimed = [exchange.claims.phases_s for exchange in complete if exchange.claims is not None]
    names = dict.fromkeys(name for phases in claimed for name in phases)
    return {name: Spread.of(phases[name] for phases in claimed if name in phases) for name in names}


def _agreement(served: Sequence[tuple[Exchange, Attainment]]) -> Agreement:
    both = [(e.kept, e.claims, a) for e, a in served if e.claims is not None]
    verdicts = Counter((kept, claims.kept) for kept, claims, _ in both)
    return Agreement(
        compared=len(both),
        both_kept=verdicts[True, True],
        only_server_says_kept=verdicts[False, True],
        only_client_says_kept=verdicts[True, False],
        ttft_later=Spread.of(a.ttft_s - claims.ttft_s for _, claims, a in both if a.ttft_s is not None),
        tpot_wider=Spread.of(_required_tpot_s(a) - claims.tpot_s for _, claims, a in both if claims.tpot_s),
    )


def _generator(run: Run) -> Generator:
    lag_s = Spread.of(exchange.lag_s for exchange in run.exchanges if exchange.end is not End.RUNNING)
    pauses_s = Spread.of(run.pauses_s)
    cores = run.cpu_s / max(run.wall_s, 1e-9)
    late = max(lag_s.p99 or 0.0, pauses_s.p99 or 0.0)
    return Generator(lag_s, pauses_s, cores, saturated=late > LATE_GENERATOR_S or cores > BUSY_GENERATOR)
