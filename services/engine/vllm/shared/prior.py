"""The step times of models as far as they are known before any step was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceCoefficients


def known_performance(model_config: Any) -> PerformanceCoefficients:
    """Return the step times with which to begin, marked as a placeholder for a model that was never measured.

    Args:
        model_config: the model's `config.json` as transformers reads it.
    """
    if (model_config.hidden_size, model_config.num_hidden_layers) == (576, 30):
        return SMOLLM2_135M_ONE_CORE
    return replace(SMOLLM2_135M_ONE_CORE, origin="placeholder")
