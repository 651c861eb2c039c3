"""Pulls KV caches and emits every token but the first.

Ownership: `DecodePolicy` looks at each KV handle before the engine sees it, because engines read a KV cache of another
block size or type without an error and continue with wrong text. It also counts what was pulled and what was computed
again. Everything else of the process is `services.worker`.

Concurrency: touched by the hub's event loop only.

Lifecycle: it remembers a request whose handle it has set aside until the engine lets go of that request. No lease
outlives a request here, so a drain waits for requests only.
"""
