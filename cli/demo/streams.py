"""The requests of the demo: what was asked, and everything that their streams said."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cli.demo.targets import Targets
from cli.status_details import explain
from slos_serve import (
    Achieved,
    Admission,
    AsyncClient,
    Contract,
    Finished,
    FinishReason,
    Message,
    Prediction,
    Quote,
    Sampling,
    SlosServeError,
    Tokens,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class Served:
    """The outcome of one request beside the targets that it is measured against."""

    name: str
    profile: str
    targets: Targets
    promised: bool
    """Whether the targets were guaranteed before the first token."""
    expected: Prediction | None
    """The latency that the router expected; None if it said nothing."""
    achieved: Achieved | None
    """The latency that came; None if the stream broke off."""
    binding: str = ""
    """Resource that kept the targets from being promised, in words; empty if they were, or were not asked for."""
    error: str = ""
    """What ended the stream, in words; empty if it is complete."""

    @property
    def in_time(self) -> bool:
        """Whether every token came within the targets, promised or not."""
        return self.achieved is not None and self.targets.kept_by(self.achieved)


@dataclass(slots=True)
class DemoStream:
    """One request, and what its stream has said so far."""

    name: str
    prompt: str
    profile: str
    targets: Targets
    contract: Contract | None
    """The contract that is asked for; None asks for no promise."""
    max_tokens: int
    admission: Admission | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    """When each token came, on the monotonic clock."""
    gapless: bool = True
    """Whether every token came at the position after the one before."""
    finished: Finished | None = None
    error: SlosServeError | None = None

    @property
    def complete(self) -> bool:
        """Whether the stream came to its natural end."""
        reasons = (FinishReason.STOP, FinishReason.LENGTH)
        return self.finished is not None and self.finished.reason in reasons

    @property
    def promised(self) -> bool:
        """Whether the contract was guaranteed."""
        return self.admission is not None and self.admission.verdict is Verdict.GUARANTEED

    def sampling(self) -> Sampling:
        """Return greedy sampling, which gives the same text each time."""
        return Sampling(max_tokens=self.max_tokens, temperature=0.0)

    def messages(self) -> list[Message]:
        """Return the prompt as a conversation."""
        return [Message("user", self.prompt)]

    async def quote(self, client: AsyncClient) -> Quote:
        """Return what the router would answer to the request now.

        Raises:
            SlosServeError
        """
        return await client.quote(self.messages(), sampling=self.sampling(), contract=self.contract)

    async def follow(
        self,
        client: AsyncClient,
        *,
        on_admission: Callable[[], None] = lambda: None,
        on_tokens: Callable[[], None] = lambda: None,
    ) -> None:
        """Send the request and read its stream to the end; an error of the call is kept, not raised.

        Args:
            on_admission: called after the verdict.
            on_tokens: called after each event that brought tokens.
        """
        stream = client.generate(
            self.messages(), sampling=self.sampling(), contract=self.contract, application=f"demo-{self.profile}"
        )
        try:
            async for event in stream:
                match event:
                    case Admission():
                        self.admission = event
                        on_admission()
                    case Tokens():
                        self._take(event)
                        on_tokens()
                    case Finished():
                        self.finished = event
        except SlosServeError as error:
            self.error = error

    def _take(self, tokens: Tokens) -> None:
        self.gapless = self.gapless and (not tokens.token_ids or tokens.index == len(self.token_ids))
        self.text += tokens.text
        self.token_ids.extend(tokens.token_ids)
        self.token_times_s.extend([time.monotonic()] * len(tokens.token_ids))

    def served(self) -> Served:
        """Return the outcome; call it after the end of the stream."""
        error = ""
        if self.error is not None:
            error = explain(self.error)
        elif not self.complete:
            error = "ended early" if self.finished is None else self.finished.reason.name.lower()
        return Served(
            name=self.name,
            profile=self.profile,
            targets=self.targets,
            promised=self.promised,
            expected=None if self.admission is None else self.admission.predicted,
            achieved=self.finished.achieved if self.finished is not None and self.complete else None,
            binding=self._binding(),
            error=error,
        )

    def _binding(self) -> str:
        if self.admission is None or self.promised or self.contract is None:
            return ""
        return self.admission.binding.name.lower().replace("_", " ")
