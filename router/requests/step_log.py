"""The latest engine steps of every worker, and whose tokens were in them: who kept a late request waiting?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from router.requests.live_request import LiveRequest
from services.state.journal_entry import RequestState
from slos_serve.v1 import worker_pb2

KEPT_STEPS = 2048
"""Number of steps that are kept of a worker: a minute of them at thirty a second."""
KEPT_WORKERS = 64
"""Number of workers whose steps are kept; one that starts again may come under another name."""
KEPT_MEMBERS = 16
"""Number of decoding requests that are kept of a step, which bounds its memory and the time that it costs; the others,
with a token each, only count.
"""


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One engine step, without any token of a prompt or an output. Times are on the router's clock, in seconds."""

    ended_s: float
    """When the router was told of the step."""
    duration_s: float
    prompts: tuple[tuple[str, int], ...]
    """Requests of this router whose prompts were computed, each with the number of tokens computed in the step."""
    decodes: tuple[str, ...]
    """Requests of this router that got output tokens, at most `KEPT_MEMBERS`."""
    tokens: int
    """Number of tokens in the step, those of other routers' requests included."""

    @property
    def began_s(self) -> float:
        return self.ended_s - self.duration_s


@dataclass(slots=True)
class StepLog:
    """Remembers the latest steps of every worker, in bounded memory. Owned by the router's event loop."""

    kept_steps: int = KEPT_STEPS
    _by_worker: dict[str, deque[LoggedStep]] = field(default_factory=dict)

    def add(self, worker_id: str, step: LoggedStep) -> None:
        """Remember one step of a worker."""
        steps = self._by_worker.get(worker_id)
        if steps is None:
            if len(self._by_worker) >= KEPT_WORKERS:
                del self._by_worker[min(self._by_worker, key=lambda known: self._by_worker[known][-1].ended_s)]
            steps = self._by_worker[worker_id] = deque(maxlen=self.kept_steps)
        steps.append(step)

    def between(self, worker_id: str, from_s: float, to_s: float) -> list[LoggedStep]:
        """Return the steps of a worker that ran within a stretch of time, at least in part, the oldest first."""
        found = []
        for step in reversed(self._by_worker.get(worker_id, ())):
            if step.ended_s <= from_s:
                break
            if step.began_s < to_s:
                found.append(step)
        return found[::-1]

    def kept_since_s(self, worker_id: str) -> float:
        """Return the time since which all steps of a worker are remembered; infinite if none is."""
        steps = self._by_worker.get(worker_id)
        if not steps:
            return math.inf
        return steps[0].began_s if len(steps) == self.kept_steps else -math.inf


def logged_step(
    report: worker_pb2.StepReport, find: Callable[[str], LiveRequest | None], now_s: float
) -> LoggedStep | None:
    """Return a step as it is remembered; None if its report makes no sense.

    It must be called before the outputs of the report are taken, which change how far prompts have come.

    Args:
        find: returns the request of this router that has an id; None if none has.
    """
    if not 0 <= report.duration_s < math.inf:
        return None
    prompts: list[tuple[str, int]] = []
    decodes: list[str] = []
    shape, prefilling = report.shape, RequestState.PREFILLING
    for output in report.outputs:
        request = find(output.request_id)
        if request is None or request.attempt != output.attempt:
            continue
        if request.state is prefilling:
            computed = (output.prefilled_tokens or request.context_tokens) - request.prefilled_tokens
            prompts.append((request.request_id, max(1, computed)))
        elif len(decodes) < KEPT_MEMBERS:
            decodes.append(request.request_id)
        elif not shape.prefill_tokens:
            # Most steps only decode, and of these nothing more is to be learnt.
            break
    tokens = max(shape.prefill_tokens + shape.decode_tokens, sum(count for _, count in prompts) + len(decodes))
    return LoggedStep(now_s, report.duration_s, tuple(prompts), tuple(decodes), tokens)
