"""Client channels that notice a dead peer."""

from __future__ import annotations

import grpc.aio

from services.rpc.options import channel_options


def open_channel(address: str, max_message_bytes: int) -> grpc.aio.Channel:
    """A channel to host:port. A peer that is gone without a word fails its calls within 15 s (keepalive 10 s + 5 s)."""
    return grpc.aio.insecure_channel(address, options=channel_options(max_message_bytes))
