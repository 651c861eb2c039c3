"""The engine port and its adapters.

`protocol` is the port: what a worker asks of an inference engine. `vllm` embeds the real one; `emulated` has the same
behaviour with time from the performance model and made-up tokens. An engine belongs to one worker process and to one
event loop; nothing here is thread-safe.
"""
