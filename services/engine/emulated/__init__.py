"""The emulated engine takes the time of the performance model, makes its tokens up, and does the rest for real.

`engine` is the asyncio shell and the adapter; `core` knows which request is where and who holds which KV block;
`pacing` has steps composed and learns what they take; `stock` is the baseline that knows no promises; `tokens` makes
the tokens up; `kv_backend` and `link` carry KV caches from process to process for `services.engine.kv`. One event loop
owns all of it: the engine lives from `start` to `shutdown` inside that loop, takes its time from the loop's clock, and
does not wake while there is nothing to do.
"""
