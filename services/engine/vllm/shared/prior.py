"""What is known of a model's step times before any step was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceCoefficients


def known_performance(model_config: Any) -> PerformanceCoefficients:
    """
    Args:
        model_config: the model's `config.json` as transformers reads it.
    """
    if (model_config.hidden_size, model_config.num_hidden_layers) == (576, 30):
        return SMOLLM2_135M_ONE_CORE
    return replace(SMOLLM2_135M_ONE_CORE, origin="placeholder")
