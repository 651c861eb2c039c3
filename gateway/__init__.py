"""The OpenAI-compatible HTTP door: a translator between HTTP clients and the routers' gRPC.

It holds no state but the connections it has open: any number may run. `requests` and `contract` turn what a client sent
into a call, `answers` turns events into OpenAI's JSON, `failures` is the one table from errors to HTTP, `sse` streams.
A request lives as long as its connection: when the client goes, the stream to the router is cancelled, and the cluster
frees what it held. A client that reads slowly is not read for: its events wait in the router.
"""
