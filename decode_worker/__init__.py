"""A decode worker pulls KV caches and emits every token but the first.

Ownership: `DecodePolicy` sets aside each KV handle that `services.engine.kv.usability` finds unusable, so that the
engine computes that prompt from the start and need not ask anybody. It counts the KV caches that were pulled and those
that were computed again. Everything else of the process is `services.worker`.

Concurrency: touched by the hub's event loop only.

Lifecycle: it remembers a request whose handle it has set aside until the engine lets go of that request. No lease
outlives a request here, so a drain waits for requests only.
"""
