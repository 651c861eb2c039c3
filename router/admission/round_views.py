"""Workers as one round finds them where nothing is promised: what the round has placed already is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from router.admission.planning_view import PlanningView
from router.cluster.cluster_view import WorkerView
from services.slo.latency_forecast import DecodeView, Placement, PrefillView, QueuedPrefill


@dataclass(slots=True)
class RoundViews:
    """Each worker is looked at once. Without this all of a round would go where the first of them goes."""

    view: PlanningView
    now_s: float
    _prefill: dict[str, PrefillView] = field(default_factory=dict)
    _decode: dict[str, DecodeView] = field(default_factory=dict)

    def prefill(self, lanes: Iterable[WorkerView], decoders: Iterable[WorkerView]) -> list[PrefillView]:
        """Of prefill workers, and of those decode workers that may compute prompts."""
        views = []
        for worker in (*lanes, *(decoder for decoder in decoders if self.view.prefills_too(decoder))):
            seen = self._prefill.get(worker.worker_id)
            if seen is None:
                seen = self._prefill[worker.worker_id] = self.view.prefill_view(worker, self.now_s)
            views.append(seen)
        return views

    def decode(self, decoders: Iterable[WorkerView]) -> list[DecodeView]:
        views = []
        for worker in decoders:
            seen = self._decode.get(worker.worker_id)
            if seen is None:
                seen = self._decode[worker.worker_id] = self.view.decode_view(worker)
            views.append(seen)
        return views

    def place(self, placement: Placement, prompt_tokens: int, kv_tokens: int) -> None:
        """A request goes there, to workers that were looked at."""
        lane = self._prefill[placement.prefill_worker_id]
        prompt = QueuedPrefill(placement.due_s, prompt_tokens, guaranteed=False)
        queue = tuple(sorted((*lane.queue, prompt), key=lambda queued: queued.due_s))
        self._prefill[placement.prefill_worker_id] = replace(lane, queue=queue)
        there = self._decode[placement.decode_worker_id]
        self._decode[placement.decode_worker_id] = replace(
            there,
            requests=there.requests + 1,
            context_tokens=there.context_tokens + prompt_tokens,
            kv_tokens_free=there.kv_tokens_free - kv_tokens,
        )
