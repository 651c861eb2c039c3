"""What a decode worker does in its own way."""

from __future__ import annotations

from dataclasses import replace

from decode_worker.handle import foreign_model, unusable
from services.engine.protocol import EngineFacts, EngineRequest, RequestOutput
from services.state.registry import WorkerRole
from services.worker.policy import Refusal, RolePolicy


class DecodePolicy(RolePolicy):
    """Takes continuations, with or without a KV cache to pull, and plain prompts; exports no KV cache."""

    role = WorkerRole.DECODE

    def __init__(self) -> None:
        self.pulls = 0
        self.pulled_bytes = 0
        self.recomputes = 0
        self._set_aside: dict[str, str] = {}

    def admit(self, request: EngineRequest, facts: EngineFacts) -> EngineRequest | Refusal:
        if request.export_kv:
            return Refusal("a decode worker exports no KV cache", invalid=True)
        handle = request.kv_source
        if handle is None:
            return request
        foreign = foreign_model(handle, facts)
        if foreign:
            return Refusal(f"the request was begun by another model: {foreign}", invalid=False)
        reason = unusable(request, handle, facts)
        if not reason:
            return request
        self._set_aside[request.request_id] = reason
        return replace(request, kv_source=None)

    def annotate(self, output: RequestOutput) -> RequestOutput:
        if output.timings is None:
            return output
        reason = self._set_aside.pop(output.request_id, "") or output.timings.kv_recompute_reason
        if reason:
            self.recomputes += 1
        elif output.timings.kv_pull is not None:
            self.pulls += 1
            self.pulled_bytes += output.timings.kv_pull.kv_bytes
        return replace(output, timings=replace(output.timings, kv_recompute_reason=reason))

    def finished(self, engine_request_id: str) -> None:
        self._set_aside.pop(engine_request_id, None)

    def summary(self) -> str:
        return f"KV caches pulled: {self.pulls} ({self.pulled_bytes} bytes), computed again: {self.recomputes}"
