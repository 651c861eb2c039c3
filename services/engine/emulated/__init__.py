"""An engine that takes the performance model's time and makes its tokens up.

`engine` is the asyncio shell and the adapter; `core` knows which request is where and who holds which KV block;
`pacing` has steps composed and learns what they take; `stock` is the baseline that knows no promises; `tokens` makes
the tokens up; `leases`, `link`, `transfer` and `pull` hand KV caches from process to process. One event loop owns all
of it: the engine lives from `start` to `shutdown` inside that loop, takes its time from the loop's clock, and does
not wake while there is nothing to do.
"""
