"""gRPC options that both ends must agree on."""

from __future__ import annotations

KEEPALIVE_INTERVAL_S = 10.0
"""Seconds without traffic after which an end asks whether the other one is alive."""
KEEPALIVE_TIMEOUT_S = 5.0
"""Seconds that it waits for the answer before it takes the connection for dead."""
MAX_RECONNECT_BACKOFF_S = 2.0
"""Seconds between two attempts to connect at most, so that a restarted peer is found soon."""
CONNECT_TIMEOUT_S = 2.0
"""Seconds that one attempt to connect may take. Busy machines take longer than a round trip to answer."""

Options = tuple[tuple[str, int], ...]


def _common(max_message_bytes: int) -> Options:
    return (
        ("grpc.keepalive_time_ms", round(KEEPALIVE_INTERVAL_S * 1000)),
        ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    )


def channelz_options(*, on: bool) -> Options:
    """Switch channelz counting on or off; gRPC counts by default, which costs a little."""
    return (("grpc.enable_channelz", int(on)),)


def server_options(max_message_bytes: int, *, share_port: bool = False) -> Options:
    """Build the options of a server."""
    return (
        *_common(max_message_bytes),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", round(KEEPALIVE_INTERVAL_S * 1000)),
        # Without this, a second process on the port would get half of the connections instead of an error.
        ("grpc.so_reuseport", int(share_port)),
    )


def channel_options(max_message_bytes: int) -> Options:
    """Build the options of a channel to a server of this cluster."""
    return (
        *_common(max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name this is the limit of one attempt; a refused one is repeated after the backoff.
        ("grpc.min_reconnect_backoff_ms", round(CONNECT_TIMEOUT_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(MAX_RECONNECT_BACKOFF_S * 1000)),
        # Workers are reached directly, whatever proxy the environment names for the outside.
        ("grpc.enable_http_proxy", 0),
        # One connection per channel: a lost one is one lost peer.
        ("grpc.use_local_subchannel_pool", 1),
    )
