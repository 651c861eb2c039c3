"""The policy of a decode worker."""

from __future__ import annotations

from dataclasses import replace

from services.engine.kv.compatibility import foreign_model
from services.engine.kv.usability import unusable_handle
from services.engine.protocol import EngineFacts, EngineRequest, RequestOutput
from services.state.registry import WorkerRole
from services.worker.policy import Refusal, RolePolicy


class DecodePolicy(RolePolicy):
    """A decode worker takes prompts and continuations, with or without a KV cache to pull, and exports nothing."""

    role = WorkerRole.DECODE

    def __init__(self) -> None:
        self.pulls = 0
        """Number of KV caches that were pulled."""
        self.pulled_bytes = 0
        """Number of bytes that these pulls moved."""
        self.recomputes = 0
        """Number of KV caches that were computed again although a handle had come."""
        self._set_aside: dict[str, str] = {}
        """Why the handle of a request was set aside, by the engine's id of the request."""

    def admit(self, request: EngineRequest, facts: EngineFacts) -> EngineRequest | Refusal:
        if request.export_kv:
            return Refusal("a decode worker exports no KV cache", invalid=True)
        handle = request.kv_source
        if handle is None:
            return request
        foreign = foreign_model(facts.compatibility, handle.compatibility)
        if foreign:
            return Refusal(f"the request was begun by another model: {foreign}", invalid=False)
        reason = unusable_handle(handle, facts.compatibility, len(request.token_ids))
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
