"""The front door: validation, admission, placement, dispatch, streaming, recovery.

One process, one event loop, no threads. `frontend` speaks gRPC to clients; `parsing` turns what they sent into a
`ParsedRequest`; `admission` decides; `dispatch` moves each `LiveRequest` from worker to worker; `links` holds one
session per worker; `cluster_view` is the router's virtual copy of each worker, fed by StepReports. A request belongs to
the router that took it and ends with it.
"""
