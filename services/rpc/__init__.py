"""gRPC as every process uses it: servers, channels, and the table of errors.

Servers and channels belong to the event loop that built them. A process that forks (an engine may) does so before it
builds its first server or channel: gRPC's threads do not survive a fork.
"""
