"""The front door of a cluster: validation, admission, placement, dispatch, streaming and recovery of requests.

A router is one process with one event loop and no threads. `api` speaks to clients, `admission` decides about requests,
`requests` knows each of them, `dispatch` moves each from worker to worker, `cluster` knows the workers and holds the
sessions to them, and `observability` shows all that to operators. `wiring` builds the parts, `app` runs them. A request
belongs to the router that admitted it and ends with it.
"""
