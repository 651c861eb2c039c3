"""The KV worker's half of the NIXL connector: it reads blocks, fences the reads, and keeps leases on its own blocks."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_worker
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker

from services.engine.kv.handle import KvPull, LeaseOutcome
from services.engine.kv.usability import too_late
from services.engine.vllm.core.nixl.connector_scheduler import FencedMetadata
from services.engine.vllm.core.nixl.reports import KvReport

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import ReqMeta
    from vllm.v1.kv_cache_interface import KVCacheConfig


@contextlib.contextmanager
def kept_affinity() -> Iterator[None]:
    """Keep the engine on its cores, where vLLM's NIXL worker moves it to the host's last core on a CPU."""
    cores = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class _PacedBindings:
    """The bindings of NIXL with a pause between two looks of the progress thread; its Python API has no option for
    it.
    """

    def __init__(self, bindings: Any, poll_us: int) -> None:
        self._bindings = bindings
        self._poll_us = poll_us

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)

    def nixlAgent(self, name: str, config: Any) -> Any:
        config.pthrDelay = self._poll_us
        return self._bindings.nixlAgent(name, config)


@contextlib.contextmanager
def paced_progress_thread(poll_us: int) -> Iterator[None]:
    """Have NIXL agents that are made inside poll every `poll_us` microseconds, where they would spin on a core."""
    api: Any = importlib.import_module(base_worker.NixlWrapper.__module__)
    bindings = api.nixlBind
    api.nixlBind = _PacedBindings(bindings, poll_us)
    try:
        yield
    finally:
        api.nixlBind = bindings


class FencedConnectorWorker(NixlPullConnectorWorker):
    """Counts a read as failed unless it ended before its lease, and lets leases end early."""

    def __init__(self, vllm_config: VllmConfig, engine_id: str, kv_cache_config: KVCacheConfig) -> None:
        poll_us = int(vllm_config.kv_transfer_config.get_from_extra_config("nixl_poll_us", 4000))
        with kept_affinity(), paced_progress_thread(poll_us):
            super().__init__(vllm_config, engine_id, kv_cache_config)
        self._deadlines_s: dict[str, float] = {}
        self._reads: dict[str, KvPull] = {}
        self._causes: dict[str, str] = {}
        self._released: set[str] = set()
        self._report = KvReport()

    def take_report(self) -> KvReport | None:
        """Return what happened since the last call; None if nothing did."""
        if not self._report:
            return None
        report, self._report = self._report, KvReport()
        return report

    def start_load_kv(self, metadata: FencedMetadata) -> None:
        now_s = time.monotonic()
        for request_id, time_left_s in metadata.pull_time_left_s.items():
            self._deadlines_s[request_id] = now_s + time_left_s
        super().start_load_kv(metadata)
        for request_id in metadata.released:
            if self._reqs_to_send.pop(request_id, None) is not None:
                self._reqs_to_process.discard(request_id)
                self._released.add(request_id)

    def _read_blocks_for_req(self, req_id: str, meta: ReqMeta) -> None:
        if meta.awaiting_kvs and self._is_late(req_id):
            self._causes[req_id] = "the lease ran out before the pull could start"
            self._handle_failed_transfer(req_id, None, self._recv_failures, record_failed_transfer=False)
            return
        super()._read_blocks_for_req(req_id, meta)

    def _is_late(self, request_id: str) -> bool:
        return too_late(self._deadlines_s.get(request_id, 0.0), time.monotonic())

    def _pop_done_transfers(self, transfers: dict[str, list[int]]) -> tuple[set[str], set[str]]:
        done: set[str] = set()
        failed: set[str] = set()
        for request_id in list(transfers):
            one = {request_id: transfers.pop(request_id)}
            known = len(self.xfer_stats.data["bytes_transferred"])
            one_done, one_failed = super()._pop_done_transfers(one)
            transfers.update(one)
            self._add_read(request_id, known)
            if one_done and not one_failed and self._is_late(request_id):
                self._causes[request_id] = "the pull ended after its lease"
                one_failed = {request_id}
            done |= one_done
            failed |= one_failed
        return done, failed

    def _add_read(self, request_id: str, known: int) -> None:
        read = self._reads.get(request_id, KvPull(0, 0.0))
        data = self.xfer_stats.data
        self._reads[request_id] = KvPull(
            read.kv_bytes + int(sum(data["bytes_transferred"][known:])),
            max([read.transfer_s, *data["transfer_duration"][known:]]),
        )

    def get_transfer_results(self) -> KVConnectorTransferResults:
        results = super().get_transfer_results()
        for request_id in results.finished_recving:
            read = self._reads.pop(request_id, None)
            cause = self._causes.pop(request_id, None)
            self._deadlines_s.pop(request_id, None)
            if request_id in results.failed_recving:
                self._report.failures[request_id] = cause or "the transfer failed"
            elif read is not None:
                self._report.pulls[request_id] = read
        results.finished_sending.update(self._released)
        for request_id in self._released:
            self._report.outcomes[request_id] = LeaseOutcome.RELEASED
        self._released = set()
        return results

    def _get_new_notifs(self) -> set[str]:
        pulled: set[str] = super()._get_new_notifs()
        for request_id in pulled:
            self._report.outcomes[request_id] = LeaseOutcome.PULLED
        return pulled

    def _reap_expired_send_leases(self, done_sending: set[str]) -> None:
        before = set(done_sending)
        super()._reap_expired_send_leases(done_sending)
        for request_id in done_sending - before:
            self._report.outcomes[request_id] = LeaseOutcome.EXPIRED

    def _log_failure(
        self, failure_type: str, req_id: str | None, msg: str = "", error: BaseException | None = None, **context: Any
    ) -> None:
        super()._log_failure(failure_type, req_id, msg, error, **context)
        # Called from the handshake thread too; a plain dict write is all that is shared.
        if req_id is not None and req_id in self._recving_metadata:
            self._causes[req_id] = f"{failure_type}: {error}" if error else failure_type
