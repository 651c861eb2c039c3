"""The HTTP gateway, which offers OpenAI's interface and calls the routers by gRPC.

A gateway holds no state but its open connections, so that any number of them may run. `requests` checks what a client
sent, `call_options` and `endpoints` turn it into a call, `answers` turns events into OpenAI's JSON, and `http_errors`
is the one table from errors to HTTP. A request lives as long as its connection: when the client leaves, the stream to
the router is cancelled, and the cluster frees what it held. Tokens that a slow client has not read wait in the router.
"""
