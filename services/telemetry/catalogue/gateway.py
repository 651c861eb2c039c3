"""Metrics of a gateway."""

from __future__ import annotations

from services.telemetry.catalogue.metric import Kind, Metric, Process

METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)

HTTP_DURATION = Metric(
    "http.server.request.duration",
    Kind.HISTOGRAM,
    "s",
    "Time from an HTTP request to the last byte of its answer; of a stream, to its end. `http.route` is "
    "`other` for a path that is not served.",
    (Process.GATEWAY,),
    (METHOD, ROUTE, STATUS),
    BUCKETS,
)
HTTP_ACTIVE = Metric(
    "http.server.active_requests", Kind.GAUGE, "{request}", "HTTP requests being answered.", (Process.GATEWAY,)
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
