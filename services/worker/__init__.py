"""The runtime of a worker process, which prefill and decode workers share.

Ownership: `WorkerProcess` owns the engine, the gRPC server, the registration and one `WorkerHub`; the hub owns the
sessions of the routers and the `RequestLedger`, and is the only consumer of the engine's events. What a prefill or a
decode worker does in its own way is a `RolePolicy`, which the hub asks.

Concurrency: one event loop, no threads, no locks. Changes to hub, ledger and policy happen between two awaits. Each
session has an `Outbox`, the only way to its router; one task writes it, because a gRPC call takes one write at a time.

Lifecycle: engine (it may fork, so nothing of gRPC exists before) -> server -> registration in Redis, retried for ever
-> serving -> drain: NOT_SERVING, `Draining` to the routers, no new requests, running requests and open leases end
within the grace -> deregistered, sessions closed, server and engine stopped. A dead or stuck engine skips the drain,
and the process ends with code 1, so that its supervisor starts it again.
"""
