from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.load.driving import Run, drive
from benchmarks.load.exchange import Answer, Claims, End, Exchange, Verdict
from benchmarks.load.report import markdown, remarks
from benchmarks.load.schedule import Planned, Schedule
from benchmarks.load.summary import Spread, record, summary
from benchmarks.load.wire import FailureError, RefusalError, Send, Server, TargetError, target_of
from benchmarks.requested_slo import RequestedSlo
from services.slo.contract import Contract, DecodeTarget, PrefillTarget

CONTRACT = Contract(PrefillTarget(ttft_s=1.0), (DecodeTarget(0.1),))


class Scripted:
    """A server that does what it is told to with every request."""

    def __init__(self, serve: Callable[[Exchange], Awaitable[None]]) -> None:
        self._serve = serve

    async def look(self, asks: tuple[RequestedSlo, ...]) -> Server:
        return Server("scripted")

    def prepare(self, planned: Planned) -> Send:
        return self._serve

    async def close(self) -> None:
        return


def every(gap_s: float, count: int) -> Schedule:
    planned = tuple(Planned(number, number * gap_s, RequestedSlo("chatbot"), 10, 3) for number in range(count))
    return Schedule(planned, count * gap_s)


async def driven(serve: Callable[[Exchange], Awaitable[None]], schedule: Schedule, patience_s: float = 5.0) -> Run:
    return await drive(Scripted(serve), schedule, patience_s=patience_s, stop=asyncio.Event())


async def test_nobody_waits_for_a_server_that_does_not_answer() -> None:
    async def hang(exchange: Exchange) -> None:
        await asyncio.sleep(60)

    run = await driven(hang, every(0.01, 30), patience_s=0.05)
    assert [exchange.end for exchange in run.exchanges] == [End.UNFINISHED] * 30
    sent = [exchange.sent_s - run.began_s for exchange in run.exchanges]
    assert sent == sorted(sent)
    assert sent[-1] >= 0.29, "none was sent before its time"
    overall = summary("all", run.exchanges, run.schedule.seconds)
    assert (overall.offered, overall.attained, overall.unfinished) == (30, 0, 30)


async def test_a_generator_that_is_held_up_says_so() -> None:
    async def block(exchange: Exchange) -> None:
        exchange.answered(Answer(Contract()))
        time.sleep(0.05)  # noqa: ASYNC251 - what must never happen
        exchange.tokens(1, "", time.monotonic())

    run = await driven(block, every(0.01, 10))
    figures = record(run, target="t", server="s", emulated=False, planned_rps=100.0, warm_up_s=0.0, seed=0)
    assert figures.generator.saturated
    assert figures.generator.lag_s.p99 is not None
    assert figures.generator.lag_s.p99 > 0.05
    assert any("its limit" in remark for remark in remarks([figures]))


async def test_stopping_gives_what_there_is() -> None:
    stop = asyncio.Event()

    async def serve(exchange: Exchange) -> None:
        exchange.answered(Answer(Contract()))
        if exchange.planned.number == 2:
            stop.set()
            await asyncio.sleep(60)

    run = await drive(Scripted(serve), every(0.01, 1000), patience_s=60, stop=stop)
    figures = record(run, target="t", server="s", emulated=False, planned_rps=100.0, warm_up_s=0.0, seed=0)
    assert figures.cut_short
    assert (figures.overall.offered, figures.overall.attained) == (2, 2), "what was under way counts for nothing"


async def test_a_fault_of_the_generator_is_not_a_figure() -> None:
    async def broken(exchange: Exchange) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await driven(broken, every(0.01, 3))


async def test_each_end_counts_as_what_it_is() -> None:
    async def serve(exchange: Exchange) -> None:
        number = exchange.planned.number
        if number == 0:
            raise RefusalError("decode_rate", "no")
        verdict = Verdict.GUARANTEED if number < 4 else Verdict.BEST_EFFORT
        exchange.answered(Answer(CONTRACT, verdict))
        if number == 1:
            raise FailureError("worker_lost", "gone")
        late_s = {2: 5.0}.get(number, 0.0)
        exchange.tokens(1, "", exchange.sent_s + 0.5 + late_s)
        exchange.tokens(2, "", exchange.sent_s + 0.55 + late_s)
        exchange.claims = Claims(number != 4, "", 0.4, 0.05, {"prefill": 0.3})

    run = await driven(serve, every(0.001, 6))
    figures = record(run, target="t", server="s", emulated=True, planned_rps=1000.0, warm_up_s=0.0, seed=0)
    overall = figures.overall
    assert overall.offered == 6
    assert overall.refused == {"decode_rate": 1}
    assert overall.errors == {"worker_lost": 1}
    # Request 1 was promised and failed, request 2 was late, whatever the server says of it.
    assert (overall.guaranteed, overall.kept, overall.missed) == (3, 1, 2)
    assert (overall.best_effort, overall.best_effort_attained) == (2, 2)
    assert overall.attainment == pytest.approx(3 / 6)
    assert overall.goodput_rps == pytest.approx(3 / 0.006)
    assert overall.tpot_required_s.p50 == pytest.approx(0.05)
    assert overall.tpot_mean_s.p50 == pytest.approx(0.025)
    assert overall.agreement.compared == 4
    assert overall.agreement.only_server_says_kept == 1
    assert overall.agreement.only_client_says_kept == 1
    assert overall.phases_s["prefill"].p50 == pytest.approx(0.3)
    text = markdown([figures], "heading")
    assert "emulated" in text
    assert "1 of 3" in text


async def test_the_warm_up_does_not_count() -> None:
    async def serve(exchange: Exchange) -> None:
        exchange.answered(Answer(Contract()))

    run = await driven(serve, every(0.01, 10))
    figures = record(run, target="t", server="s", emulated=False, planned_rps=100.0, warm_up_s=0.055, seed=0)
    assert figures.overall.offered == 4
    assert figures.overall.offered_rps == pytest.approx(4 / 0.045)


def test_stages_end_where_their_markers_do() -> None:
    contract = Contract(None, (DecodeTarget(0.1, ends_with="</think>"), DecodeTarget(1.0)))
    exchange = Exchange(Planned(0, 0.0, RequestedSlo("reasoning"), 1, 4), 0.0, sent_s=0.0)
    exchange.answered(Answer(contract))
    for text, now_s in (("a", 1.0), ("</thi", 1.1), ("nk>", 1.2), ("b", 2.1), ("c", 3.1)):
        exchange.tokens(1, text, now_s)
    exchange.end = End.COMPLETE
    attainment = exchange.attainment()
    assert attainment is not None
    assert [stage.tokens for stage in attainment.stages] == [2, 2]
    assert exchange.kept


def test_spreads() -> None:
    assert Spread.of([]) == Spread(0)
    spread = Spread.of(n / 100 for n in range(101))
    assert (spread.count, spread.p50, spread.p90, spread.p99) == (101, 0.5, 0.9, 0.99)


@pytest.mark.parametrize("text", ["localhost:1", "ftp://a:1", "grpc://", "grpc://host", "grpc://a:1,b", "grpc://a:x"])
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(TargetError):
        target_of(text)


def test_targets() -> None:
    assert target_of("grpc://a:1,b:2").rest == "a:1,b:2"
    assert str(target_of("http://a:1/v1/")) == "http://a:1/v1"
    assert target_of("https://example.org/v1").encrypted
