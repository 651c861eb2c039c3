"""The gateway's observer: what it records of requests, and under which names."""

from __future__ import annotations

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from starlette.types import Receive, Scope, Send

from gateway.observer import Observer
from services.telemetry.catalogue import gateway as catalogue
from services.telemetry.meters import Meters
from services.telemetry.traces import Traces


class Watched:
    """An observed application that takes 1.5 s by the observer's clock and gives the answer it is told to give."""

    def __init__(self, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        self.reader = InMemoryMetricReader()
        self.now_s = 700.0
        self.active: list[int] = []
        self._headers = list(headers)
        self._status = status
        meters = Meters(MeterProvider(metric_readers=[self.reader]))
        traces = Traces(Resource.get_empty(), 0.0, None)
        self.observer = Observer(self._app, meters, traces, frozenset({"/served"}), clock=lambda: self.now_s)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.now_s += 1.5
        self.active.append(int(self.value(catalogue.HTTP_ACTIVE.name)))
        if not self._status:
            raise ConnectionError
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def ask(self, method: str = "POST", path: str = "/served", **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.observer), base_url="http://door") as client:
            return await client.request(method, path, headers=headers)

    def points(self, name: str) -> list[HistogramDataPoint]:
        data = self.reader.get_metrics_data()
        assert data is not None
        metrics = [m for r in data.resource_metrics for scope in r.scope_metrics for m in scope.metrics]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]  # type: ignore[misc]

    def value(self, name: str) -> float:
        (point,) = self.points(name)
        return float(point.value)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "path", "labelled"),
    [
        ("POST", "/served", ("POST", "/served")),
        ("GET", "/made-up", ("GET", "other")),
        ("BREW", "/served", ("other", "/served")),
    ],
)
async def test_durations_are_told_apart_by_what_is_served_and_not_by_what_clients_make_up(
    method: str, path: str, labelled: tuple[str, str]
) -> None:
    watched = Watched(status=418)
    await watched.ask(method, path)
    (point,) = watched.points(catalogue.HTTP_DURATION.name)
    assert (point.count, point.sum) == pytest.approx((1, 1.5))
    attributes = dict(point.attributes or {})
    assert (attributes[catalogue.METHOD], attributes[catalogue.ROUTE]) == labelled
    assert attributes[catalogue.STATUS] == "418"


async def test_a_request_is_active_until_it_ends_however_it_ends() -> None:
    watched = Watched()
    await watched.ask()
    assert watched.active == [1]
    assert watched.value(catalogue.HTTP_ACTIVE.name) == 0
    failing = Watched(status=0)
    with pytest.raises(ConnectionError):
        await failing.ask()
    assert failing.value(catalogue.HTTP_ACTIVE.name) == 0
    (point,) = failing.points(catalogue.HTTP_DURATION.name)
    assert dict(point.attributes or {})[catalogue.STATUS] == "499"


async def test_an_answer_that_names_its_request_is_not_named_again() -> None:
    answer = await Watched((b"X-Request-Id", b"theirs")).ask(**{"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["theirs"]
    assert (await Watched().ask(**{"x-request-id": "mine"})).headers.get_list("x-request-id") == ["mine"]


async def test_an_id_with_blanks_is_replaced() -> None:
    answer = await Watched().ask(**{"x-request-id": "not an id"})
    assert answer.headers["x-request-id"].startswith("http-")
