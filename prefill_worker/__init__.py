"""Computes prompts, emits the first token, and owns the KV cache until it is pulled.

Ownership: `PrefillPolicy` keeps the lease book: which router holds which of the KV caches that the engine keeps for
decode workers. The engine owns the blocks and decides when a lease ends; the book follows its events. Everything else
of the process is `services.worker`.

Concurrency: the book is touched by the hub's event loop only.

Lifecycle: a lease is opened with the output that ends an exporting prefill and closed by the engine's event (pulled,
released or expired). A router that is lost has its leases released. A drain waits for open leases, because the decode
workers that were promised those KV caches are still to come.
"""
