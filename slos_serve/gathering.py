"""The collection of a stream's events into one completion."""

from __future__ import annotations

from slos_serve.events import Admission, Completion, Event, Finished, TokenLogprob, Tokens


class Gathering:
    """Collects the events of one stream, in order."""

    def __init__(self) -> None:
        self._admission: Admission | None = None
        self._finished: Finished | None = None
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[tuple[TokenLogprob, ...]] = []

    def take(self, event: Event) -> None:
        """Add the next event of the stream."""
        match event:
            case Tokens():
                self._text.append(event.text)
                self._token_ids.extend(event.token_ids)
                self._logprobs.extend(event.logprobs)
            case Admission():
                self._admission = event
            case Finished():
                self._finished = event

    def completion(self) -> Completion:
        """Return everything that was taken, once the stream has ended.

        Raises:
            RuntimeError: the stream was cancelled here before its end.
        """
        if self._admission is None or self._finished is None:
            raise RuntimeError("the stream was cancelled before its end")
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            admission=self._admission,
            finished=self._finished,
        )
