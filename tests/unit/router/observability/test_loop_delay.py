"""The delay of the event loop is measured while something holds it."""

from __future__ import annotations

import asyncio
import time

import prometheus_client
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from router.observability import loop_delay
from services.telemetry.meters import Meters
from tests.support.eventually import eventually


async def test_who_holds_the_loop_is_seen() -> None:
    registry = CollectorRegistry()
    meters = Meters(MeterProvider([PrometheusMetricReader(scope_info_enabled=False, registry=registry)]))
    watching = asyncio.create_task(loop_delay.watch(meters))
    await asyncio.sleep(0)
    time.sleep(3 * loop_delay.INTERVAL_S)  # noqa: ASYNC251 - holding the loop is the point

    def total_s() -> float:
        page = prometheus_client.generate_latest(registry).decode()
        return sum(
            float(line.split()[-1])
            for line in page.splitlines()
            if line.startswith("slos_router_loop_delay_seconds_sum")
        )

    await eventually(lambda: total_s() > 1.9 * loop_delay.INTERVAL_S)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
