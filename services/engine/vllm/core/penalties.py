"""The presence and frequency penalties of output that came with the prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from services.engine.vllm.shared.carried_output import carried_tokens

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


@dataclass(slots=True)
class _Carried:
    """The output tokens at the end of a request's prompt, and what its penalties ask for them. Tensors have one row a
    token.
    """

    token_ids: torch.Tensor
    """Different tokens of the output, in no order."""
    counts: torch.Tensor
    """Number of times that each occurs."""
    unseen: torch.Tensor
    """Flag of each token: 1 if it has not been generated here, 0 if it has; vLLM then applies the presence penalty."""
    rows: dict[int, int]
    """Row of each token."""
    presence: float
    frequency: float
    repetition: float
    output: list[int] = field(default_factory=list)
    """Tokens generated here: vLLM's own list, which grows."""
    looked_at: int = 0
    """Number of tokens of that list that `unseen` takes account of."""

    def look(self) -> None:
        """Take account of what has been generated since the last call."""
        while self.looked_at < len(self.output) and self.output[self.looked_at] >= 0:
            row = self.rows.get(self.output[self.looked_at])
            if row is not None:
                self.unseen[row] = 0.0
            self.looked_at += 1

    def apply(self, logits: torch.Tensor) -> None:
        """Subtract the penalties from one request's logits, shape (vocabulary,)."""
        # vLLM divides or multiplies by the repetition penalty after this and subtracts last; so this subtracts from the
        # value that will come out of it, and goes back.
        values = logits[self.token_ids]
        values = torch.where(values > 0, values / self.repetition, values * self.repetition)
        values = values - self.frequency * self.counts - self.presence * self.unseen
        logits[self.token_ids] = torch.where(values > 0, values * self.repetition, values / self.repetition)


class CarriedPenalties(LogitsProcessor):
    """Counts the output tokens that a continued request carries in its prompt as output.

    vLLM applies these penalties to tokens it generated itself only, so without this a request would lose them with each
    change of engine. The repetition penalty counts prompt tokens anyway.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._requests: dict[int, _Carried] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._requests.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            carried = self._carried(params, prompt or [], output)
            if carried is None:
                self._requests.pop(index, None)
            else:
                self._requests[index] = carried
        for source, target, direction in batch_update.moved:
            moved = self._requests.pop(source, None)
            replaced = self._requests.pop(target, None)
            if moved is not None:
                self._requests[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._requests[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for index, carried in self._requests.items():
            carried.look()
            carried.apply(logits[index])
        return logits

    def _carried(self, params: SamplingParams, prompt: list[int], output: list[int]) -> _Carried | None:
        tokens = carried_tokens(params)
        if not tokens or (params.presence_penalty == 0 and params.frequency_penalty == 0):
            return None
        counts = Counter(prompt[-tokens:])
        return _Carried(
            token_ids=torch.tensor(list(counts), dtype=torch.long, device=self._device),
            counts=torch.tensor(list(counts.values()), dtype=torch.float32, device=self._device),
            unseen=torch.ones(len(counts), dtype=torch.float32, device=self._device),
            rows={token_id: row for row, token_id in enumerate(counts)},
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
            repetition=params.repetition_penalty,
            output=output,
        )
