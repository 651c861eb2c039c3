"""The scheduler's half of the NIXL connector: it starts pulls that are in time, and gives leases up early."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NixlConnectorMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import NixlPullConnectorScheduler
from vllm.v1.request import RequestStatus

from services.engine.kv.handle import KvPull, LeaseOutcome
from services.engine.kv.usability import too_late
from services.engine.vllm.core.nixl.reports import KvReport
from services.engine.vllm.shared.nixl_terms import DEADLINE_KEY, DIGEST_KEY, LEASE_DEADLINE_KEY, prefix_digest

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


log = logging.getLogger(__name__)

_PORT_ATTEMPTS = 5
_BIND_WAIT_S = 0.1


class FencedMetadata(NixlConnectorMetadata):
    """The metadata of a step for the KV workers: vLLM's own, with deadlines of pulls and leases given up."""

    def __init__(self, stock: NixlConnectorMetadata, pull_time_left_s: dict[str, float], released: set[str]) -> None:
        super().__init__()
        self.__dict__.update(stock.__dict__)
        self.pull_time_left_s = pull_time_left_s
        """Seconds left for each pull. Durations: workers of a tensor parallel group may run on hosts with other
        clocks."""
        self.released = released


class FencedConnectorScheduler(NixlPullConnectorScheduler):
    """Refuses pulls that are too late, reports what became of the others, and says what is exported.

    Leases last a fixed time: nothing here sends the heartbeats with which vLLM extends them, for the pulling side has
    to know their end.
    """

    def __init__(self, vllm_config: VllmConfig, engine_id: str, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, engine_id, kv_cache_config)
        self._nixl_handshake_listener_t: threading.Thread | None = None
        self._released: set[str] = set()
        self._outcomes: dict[str, LeaseOutcome] = {}
        self._pulls: dict[str, KvPull] = {}
        self._recomputes: dict[str, str] = {}

    def set_xfer_handshake_metadata(self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]) -> None:
        """Start answering handshakes, on a port that is free at this moment.

        vLLM's own is configured before the start, and when it is taken by then, the engine waits for ever.
        """
        for _ in range(_PORT_ATTEMPTS):
            self.side_channel_port = _free_port(self.side_channel_host)
            super().set_xfer_handshake_metadata(metadata)
            listener = self._nixl_handshake_listener_t
            if listener is not None:
                listener.join(_BIND_WAIT_S)
                if listener.is_alive():
                    return
            self._nixl_handshake_listener_t = None
        raise OSError(f"no port on {self.side_channel_host} could be bound for handshakes")

    @staticmethod
    def _nixl_handshake_listener(
        encoded_data: dict[tuple[int, int], Any], ready: threading.Event, stop: threading.Event, host: str, port: int
    ) -> None:
        while not stop.is_set():
            try:
                NixlPullConnectorScheduler._nixl_handshake_listener(encoded_data, ready, stop, host, port)
            except Exception:
                if not ready.is_set():
                    log.warning("handshake port %d was taken", port, exc_info=True)
                    ready.set()
                    return
                # Anybody can send garbage to this port; peers must go on being answered.
                log.warning("a handshake failed", exc_info=True)

    def release(self, request_id: str) -> None:
        """See `LeasingConnector.release`."""
        self._released.add(request_id)

    def take_news(self) -> tuple[dict[str, KvPull], dict[str, str]]:
        """See `LeasingConnector.take_news`."""
        news = (self._pulls, self._recomputes)
        self._pulls, self._recomputes = {}, {}
        return news

    def has_news(self) -> bool:
        """See `LeasingConnector.has_news`."""
        return bool(self._pulls or self._recomputes)

    def take_outcome(self, request_id: str) -> LeaseOutcome:
        """See `LeasingConnector.take_outcome`."""
        return self._outcomes.pop(request_id, LeaseOutcome.RELEASED)

    def on_new_request(self, request: Request) -> None:
        if not _wants_pull(request):
            super().on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        if not _wants_pull(request):
            count, load_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
            return count, load_async
        params: dict[str, Any] = request.kv_transfer_params
        if too_late(params[DEADLINE_KEY], time.monotonic()):
            params["do_remote_prefill"] = False
            self._recomputes[request.request_id] = "the lease ran out before the pull could start"
            return 0, False
        count = params["remote_num_tokens"] - num_computed_tokens
        return (count, True) if count > 0 else (0, False)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        if _wants_pull(request) and num_external_tokens == 0:
            # All of it is in the prefix cache here. The front end gives the lease back.
            request.kv_transfer_params["do_remote_prefill"] = False
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def request_finished(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        params = request.kv_transfer_params
        if _wants_pull(request):
            # Ended before its pull began. The front end gives the lease back.
            params["do_remote_prefill"] = False
            return False, None
        if params and params.get("do_remote_decode") and request.status == RequestStatus.FINISHED_STOPPED:
            # The output is complete: nobody will pull.
            self._reqs_not_processed.add(request.request_id)
            self._reqs_need_save.pop(request.request_id, None)
            return False, None
        delay_free, exported = super().request_finished(request, block_ids)
        if exported and exported.get("do_remote_prefill"):
            exported[LEASE_DEADLINE_KEY] = time.monotonic() + self._kv_lease_duration
            exported[DIGEST_KEY] = prefix_digest(request.prompt_token_ids[: exported["remote_num_tokens"]])
        return delay_free, exported

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> FencedMetadata:
        now_s = time.monotonic()
        time_left_s = {
            request_id: request.kv_transfer_params.get(DEADLINE_KEY, now_s) - now_s
            for request_id, (request, *_) in self._reqs_need_recv.items()
        }
        meta = FencedMetadata(super().build_connector_meta(scheduler_output), time_left_s, self._released)
        self._released = set()
        return meta

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        super().update_connector_output(connector_output)
        report = connector_output.kv_connector_worker_meta
        if isinstance(report, KvReport):
            self._pulls.update(report.pulls)
            self._recomputes.update(report.failures)
            self._outcomes.update(report.outcomes)


def _wants_pull(request: Request) -> bool:
    params = request.kv_transfer_params
    return bool(params and params.get("do_remote_prefill"))


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
