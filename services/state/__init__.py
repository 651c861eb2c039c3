"""State that the processes of a cluster share through Redis: the worker registry and the request journal.

Each process has one `StateConnection`, owned by its application; registry and journal borrow it. Everything runs on one
event loop. Redis may be away at any moment: calls raise `StateUnavailableError` within the configured timeout,
background tasks (heartbeat, journal flush) keep trying, and serving goes on from what each process knows itself.

Nothing here is on the path of a token: journal writes are coalesced and sent in batches.
"""
