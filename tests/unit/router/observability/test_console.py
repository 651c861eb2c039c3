"""The console's API: what it says is JSON whatever clients call themselves, and slow readers cost nothing."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette

from router.observability.console import app as console_app
from router.observability.console.app import build_app, live_feed
from router.observability.console.feed import Feed
from router.observability.console.server import ConsoleServer
from router.observability.console.view import RouterView
from router.observability.history import History
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.phases import Phase
from router.requests.planning_log import PlanningLog, PlanningNote, PlanningRound
from router.requests.request_record import Ending, RequestRecord
from router.requests.step_log import LoggedStep, StepLog
from services.config.settings import ConsoleSettings
from services.slo.admission import Outcome
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, PrefillTarget
from services.slo.latency_forecast import Forecast, Placement
from services.slo.planner import Binding
from services.state.connection import StateUnavailableError
from services.state.journal import RequestJournal
from services.state.journal_entry import JournalEntry, RequestState
from slos_serve.v1 import inference_pb2
from tests.support.eventually import eventually
from tests.unit.router.observability.test_history import record

HOSTILE = [
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "a/b?c=d#e",
    "%2e%2e%2f",
    '"><img/src=x>',
    "{{7*7}}",
    "data:\\n\\nevent:",
]


@dataclass(slots=True)
class Bench:
    """A console over a made-up router."""

    history: History = field(default_factory=History)
    now_s: float = 1000.0
    warnings: list[str] = field(default_factory=list)

    @property
    def view(self) -> RouterView:
        return RouterView(self.state, self.history, LiveRequests(), lambda: self.now_s, "http://traces/{trace_id}")

    @property
    def app(self) -> Starlette:
        return build_app(self.view, live_feed(self.view, 0.01), ("console",))

    def state(self) -> inference_pb2.ClusterState:
        worker = inference_pb2.WorkerState(worker_id="d1", steps=7, kv_blocks_used=3, kv_blocks_total=9)
        return inference_pb2.ClusterState(
            router_id="r", model="m", workers=[worker], queued_requests=2, warnings=self.warnings
        )

    async def get(self, path: str, host: str = "console") -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.get(path)


def planned(request_id: str) -> RequestRecord:
    log = PlanningLog()
    nowhere = Placement("p1", "d1", math.inf, Forecast(0.1, math.inf), Forecast(0.01, 0.02))
    log.add(PlanningNote(PlanningRound(7, 999.25, 3, 0.002), Outcome.HELD, nowhere, Binding.KV_MEMORY, 0.5))
    log.add(PlanningNote(PlanningRound(8, 999.5, 1, 0.001), Outcome.GUARANTEED, nowhere))
    return replace(
        record(request_id, Ending.MISSED, 1000.0),
        planning=log,
        changes=((Phase.PLAN, 999.5), (Phase.PREFILL, 999.75)),
        phase=Phase.DECODE,
    )


@pytest.mark.parametrize("request_id", HOSTILE)
async def test_a_request_is_found_by_whatever_id_it_has(request_id: str) -> None:
    bench = Bench()
    bench.history.add(replace(planned(request_id), tenant="<b>", application="</script>"))
    answer = await bench.get(f"/api/requests/{quote(request_id, safe='')}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["request_id"] == request_id
    assert answer.json()["tenant"] == "<b>"


async def test_a_request_tells_its_phases_and_its_rounds_from_its_arrival_on() -> None:
    bench = Bench()
    bench.history.add(planned("r"))
    found = (await bench.get("/api/requests/r")).json()
    assert [(stay["phase"], stay["from_s"], stay["to_s"]) for stay in found["timeline"]] == [
        ("plan", 0.0, 0.5),
        ("prefill", 0.5, 0.75),
        ("decode", 0.75, 1.0),
    ]
    held, settled = found["rounds"]
    assert (held["number"], held["at_s"], held["candidates"], held["outcome"]) == (7, 0.25, 3, "held")
    assert (held["binding"], held["earliest_guarantee_s"]) == ("KV memory", 0.5)
    assert settled["placement"]["due_s"] is None, "infinity is no JSON"
    assert found["predicted"]["ttft_bound_s"] is None


async def test_a_late_request_names_who_was_in_the_steps_before() -> None:
    bench = Bench()
    meter = AttainmentMeter(Contract(prefill=PrefillTarget(ttft_s=0.25)), 100.0)
    meter.note_tokens(1, 100.5)
    late = replace(
        planned("late"), arrival_s=100.0, ended_s=101.0, prefill_worker_id="p-0", attainment=meter.attainment()
    )
    bench.history.on_stepped("p-0", LoggedStep(100.5, 0.5, (("known", 60), ("late", 20), ("gone", 20)), (), 100))
    bench.history.add(replace(record("known", Ending.KEPT, 100.4, "coder"), guaranteed=True))
    bench.history.add(late)
    (found,) = (await bench.get("/api/requests/late")).json()["late"]
    assert (found["stage"], found["token"], found["worker_id"], found["steps"]) == (0, 1, "p-0", 1)
    assert [found[name] for name in ("due_s", "came_s", "from_s", "own_s")] == pytest.approx([0.25, 0.5, 0.0, 0.1])
    assert [(one["request_id"], one["profile"], one["guaranteed"]) for one in found["sharers"]] == [
        ("known", "coder", True),
        ("gone", "", None),
    ]


async def test_who_broke_a_guarantee_is_remembered_when_the_steps_are_forgotten() -> None:
    history = History(steps=StepLog(kept_steps=1))
    meter = AttainmentMeter(Contract(prefill=PrefillTarget(ttft_s=0.25)), 100.0)
    meter.note_tokens(1, 100.5)

    def ended(name: str, ending: Ending) -> RequestRecord:
        return replace(
            record(name, ending, 101.0), arrival_s=100.0, prefill_worker_id="p-0", attainment=meter.attainment()
        )

    history.on_stepped("p-0", LoggedStep(100.5, 0.5, (("other", 60),), (), 60))
    for one in (ended("broken", Ending.MISSED), ended("late", Ending.UNPROMISED)):
        history.on_ended(cast("LiveRequest", None), one, None)
    history.on_stepped("p-0", LoggedStep(200.5, 0.5, (), (), 0))
    broken, late = history.find("broken"), history.find("late")
    assert broken is not None
    assert late is not None
    assert [sharer.request_id for sharer in history.latenesses(broken)[0].sharers] == ["other"]
    assert history.latenesses(late)[0].sharers == ()


@dataclass(slots=True)
class Journal:
    """A journal with one entry, or one that cannot be read."""

    entry: JournalEntry | None = None
    broken: bool = False

    async def read(self, _request_id: str) -> JournalEntry | None:
        if self.broken:
            raise StateUnavailableError("redis://nowhere", "away")
        return self.entry


@pytest.mark.parametrize(
    ("journal", "said"),
    [
        (Journal(), "the journal does not know it, or not any more"),
        (Journal(JournalEntry("x", "r", RequestState.DONE)), "it is done, and this router has forgotten more"),
        (Journal(JournalEntry("x", "other", RequestState.DECODING)), "it is decoding on router other, whose console"),
        (Journal(broken=True), "the journal cannot be read"),
    ],
)
async def test_what_has_become_of_a_forgotten_request(journal: Journal, said: str) -> None:
    view = replace(Bench().view, journal=cast("RequestJournal", journal))
    assert said in await view.whereabouts("x")


async def test_what_is_not_known_is_a_404_and_not_a_page() -> None:
    answer = await Bench().get("/api/requests/never")
    assert answer.status_code == 404
    assert "error" in answer.json()
    for path in ("/static/server.py", "/static/..%2Fapp.py", "/static/", "/nothing"):
        assert (await Bench().get(path)).status_code == 404


async def test_the_state_is_the_wire_message_as_json() -> None:
    found = (await Bench(warnings=["<i>"]).get("/api/state")).json()
    cluster = found["cluster"]
    assert (cluster["router_id"], cluster["warnings"], cluster["queued_requests"]) == ("r", ["<i>"], 2)
    assert (cluster["workers"][0]["steps"], cluster["workers"][0]["running_requests"]) == ("7", 0)


async def test_history_goes_back_as_far_as_it_is_asked_to() -> None:
    bench = Bench()
    for ended_s in (100.0, 940.0, 999.0):
        bench.history.add(record(f"r{ended_s}", Ending.KEPT, ended_s))
    windows = (await bench.get("/api/history?past_s=65")).json()["windows"]
    assert [window["profiles"]["chatbot"]["ended"] for window in windows] == [{"kept": 1}, {"kept": 1}]
    everything = (await bench.get("/api/history")).json()
    assert len(everything["windows"]) == 3
    assert [one["request_id"] for one in everything["latest"]] == ["r999.0", "r940.0", "r100.0"]
    for nonsense in ("-1", "nan", "inf", "x"):
        assert (await bench.get(f"/api/history?past_s={nonsense}")).status_code == 400


async def test_pages_of_others_cannot_ask_under_a_name_of_theirs() -> None:
    assert (await Bench().get("/api/state", host="attacker.example")).status_code == 400


async def test_the_page_takes_nothing_from_outside_and_runs_no_script_but_its_own() -> None:
    page = await Bench().get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert set(re.findall(r'(?:src|href)="(.)', page.text)) == {"/", "#"}
    for name in ("main.js", "overview.js", "request.js", "charts.js", "dom.js"):
        script = (await Bench().get(f"/static/{name}")).text
        assert all(origin.startswith("/static/") for origin in re.findall(r'from "([^"]*)"', script))
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    assert not re.search(r"@import|url\(", (await Bench().get("/static/style.css")).text)


async def test_samples_are_taken_once_in_a_window() -> None:
    bench = Bench()
    bench.view.sample()
    (window,) = bench.history.windows.since(0.0, bench.now_s)
    assert window.sample is not None
    assert (window.sample.queued, window.sample.kv_blocks_used) == (2, 3)
    first = window.sample
    bench.view.sample()
    assert window.sample is first


async def test_a_feed_makes_frames_only_while_somebody_reads() -> None:
    feed = Feed(lambda: b"x", 0.005)
    one, other = feed.frames(), feed.frames()
    assert await anext(one) == b"x"
    await anext(other)
    assert feed.readers == 2
    await one.aclose()
    await anext(other)
    await other.aclose()
    made = feed.made
    await asyncio.sleep(0.05)
    assert feed.made == made


async def test_a_slow_reader_misses_frames_and_holds_up_nobody() -> None:
    numbers = iter(range(10**9))
    feed = Feed(lambda: str(next(numbers)).encode(), 0.001)
    slow, quick = feed.frames(), feed.frames()
    first = int(await anext(slow))
    for _ in range(20):
        await anext(quick)
    assert int(await anext(slow)) >= first + 19, "the newest, not the next"
    await feed.close()
    assert [frame async for frame in quick] == []
    await slow.aclose()


@asynccontextmanager
async def served(bench: Bench) -> AsyncIterator[tuple[ConsoleServer, str, int]]:
    server = ConsoleServer(ConsoleSettings(port=0), bench.view)
    url = await server.start()
    try:
        yield server, url, int(url.rstrip("/").rpartition(":")[2])
    finally:
        await server.stop()


async def test_the_server_listens_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_app, "INTERVAL_S", 0.01)
    async with served(Bench()) as (_, url, _), httpx.AsyncClient() as client:
        assert (await client.get(url)).status_code == 200
        async with client.stream("GET", f"{url}api/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.aiter_lines()
            assert [
                await anext(lines),
                json.loads((await anext(lines)).removeprefix("data: "))["cluster"]["model"],
            ] == [
                "event: state",
                "m",
            ]


async def test_a_port_that_is_taken_is_replaced_by_a_free_one() -> None:
    async with served(Bench()) as (_, _, port):
        second = ConsoleServer(ConsoleSettings(port=port), Bench().view)
        url = await second.start()
        assert url
        assert not url.endswith(f":{port}/")
        await second.stop()


@asynccontextmanager
async def reading_nothing(bench: Bench) -> AsyncIterator[ConsoleServer]:
    """A console with one reader that asked for events and takes none."""
    async with served(bench) as (server, _, port):
        server._feed._interval_s = 0.002
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", port))
            reader.sendall(b"GET /api/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            yield server


async def test_a_reader_that_reads_nothing_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_app, "SEND_PATIENCE_S", math.inf)
    async with reading_nothing(Bench(warnings=["w" * 20_000])) as server:
        assert server._server is not None
        await eventually(lambda: server._feed.made >= 300)
        (connection,) = server._server.server_state.connections
        waiting: Callable[[], int] = connection.transport.get_write_buffer_size
        assert waiting() < 200_000, "of 6 MB"


async def test_a_reader_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_app, "SEND_PATIENCE_S", 0.1)
    async with reading_nothing(Bench(warnings=["w" * 20_000])) as server:
        await eventually(lambda: server._feed.made > 0)
        await eventually(lambda: server._feed.readers == 0)
