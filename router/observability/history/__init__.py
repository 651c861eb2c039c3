"""The router's memory of recent requests: bounded, in constant time for a request, without work for a token."""

from router.observability.history.history import History
from router.observability.history.windows import Tally, Window, Windows

__all__ = ["History", "Tally", "Window", "Windows"]
