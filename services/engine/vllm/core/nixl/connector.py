"""The NIXL connector that vLLM loads by name in EngineCore and in every KV worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlBaseConnector, NixlPullConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NixlConnectorMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import NixlPullConnectorScheduler
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker

from services.engine.vllm import plugin
from services.engine.vllm.core.nixl.connector_scheduler import FencedConnectorScheduler, FencedMetadata
from services.engine.vllm.core.nixl.connector_worker import FencedConnectorWorker
from services.engine.vllm.shared.support import require_attributes, require_parameters, require_supported_vllm

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from services.engine.vllm.core.nixl.reports import KvReport


class FencedNixlConnector(NixlPullConnector):
    """A NIXL pull connector that never lets a stale KV cache through.

    The stock one reads blocks whose lease ran out, dies of a short block list, moves the engine to the host's last core
    and keeps a core busy while idle.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        plugin.register()
        _require_known_connector()
        # NixlPullConnector's own constructor would make the stock halves.
        NixlBaseConnector.__init__(self, vllm_config, role, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            self.connector_scheduler = FencedConnectorScheduler(vllm_config, self.engine_id, kv_cache_config)
        else:
            self.connector_worker = FencedConnectorWorker(vllm_config, self.engine_id, kv_cache_config)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: object) -> None:
        metadata = self._connector_metadata
        if not isinstance(metadata, FencedMetadata):
            raise TypeError(f"expected FencedMetadata, got {type(metadata).__name__}")
        self.connector_worker.start_load_kv(metadata)

    def build_connector_worker_meta(self) -> KvReport | None:
        report: KvReport | None = self.connector_worker.take_report()
        return report


def _require_known_connector() -> None:
    require_supported_vllm()
    require_parameters(NixlPullConnectorWorker._read_blocks_for_req, "req_id", "meta")
    require_parameters(NixlPullConnectorWorker._pop_done_transfers, "transfers")
    require_parameters(NixlPullConnectorWorker._reap_expired_send_leases, "done_sending")
    require_parameters(NixlPullConnectorScheduler.get_num_new_matched_tokens, "request", "num_computed_tokens")
    require_parameters(NixlPullConnectorScheduler.request_finished, "request", "block_ids")
    require_attributes(NixlConnectorMetadata(), "reqs_to_recv", "reqs_to_send", "scheduler_clock")
