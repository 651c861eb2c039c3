"""A prefill worker computes prompts, emits the first token, and holds the KV cache until it is pulled.

Ownership: `PrefillPolicy` knows for which router each KV cache is held that the engine keeps for decode workers. The
engine owns the blocks and decides when a lease ends; `LeaseOwners` follows its events. Everything else of the process
is `services.worker`.

Concurrency: `LeaseOwners` is changed by the hub's event loop only.

Lifecycle: a lease is opened with the output that ends an exporting prefill and closed by the engine's event (pulled,
released or expired). A router that is lost has its leases released. A drain waits for open leases, because the decode
workers that were promised those KV caches are still to come.
"""
