"""The numbers of tokens that streams have been handed and that the journal has yet to write."""

from __future__ import annotations

from itertools import islice

PROGRESS_INTERVAL_S = 1.0
"""Seconds between two entries about a stream of which nothing has changed but the number of delivered tokens."""


class DeliveryProgress:
    """Spreads the writing of all streams' progress evenly over `PROGRESS_INTERVAL_S`.

    Writing about all streams at once would delay the tokens of all of them. Times are on one monotonic clock.
    """

    def __init__(self, now_s: float) -> None:
        self._tokens: dict[str, int] = {}
        """Numbers of delivered tokens by request id; the stream that has waited longest is first."""
        self._since_s = now_s
        """Time up to which streams have had their share."""

    def __bool__(self) -> bool:
        """Whether the progress of any stream has yet to be written."""
        return bool(self._tokens)

    def note(self, request_id: str, tokens: int) -> None:
        """Note the number of tokens that a stream has been handed in all."""
        self._tokens[request_id] = tokens

    def forget(self, request_id: str) -> None:
        """Drop the progress of a stream, because its entry is written for another reason."""
        self._tokens.pop(request_id, None)

    def due(self, now_s: float, live: int) -> list[tuple[str, int]]:
        """Take out the streams that are due, with their tokens: those that have waited longest, as many as is their
        share.

        Args:
            live: number of requests that have not ended, all of which are to be written once per interval.
        """
        share = min(1.0, (now_s - self._since_s) / PROGRESS_INTERVAL_S)
        due = list(islice(self._tokens.items(), int(share * max(1, live))))
        if due or not self._tokens:
            self._since_s = now_s
        for request_id, _ in due:
            del self._tokens[request_id]
        return due
