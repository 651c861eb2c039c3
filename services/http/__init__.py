"""Streams of server-sent events, which the gateway and the router's console share."""
