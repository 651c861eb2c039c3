"""An installed vLLM that is another than the adapter was written for is named, not run."""

from __future__ import annotations

import pytest

from services.engine.vllm.shared.support import UnsupportedVllmError, require_attributes, require_parameters


def test_missing_hook_names_the_supported_release() -> None:
    with pytest.raises(UnsupportedVllmError, match=r"supports vLLM 0\.32"):
        require_attributes(object(), "kv_holding_waiting")


def test_changed_hook_names_the_supported_release() -> None:
    def hook(request: object, tokens: int) -> int:
        return tokens if request else 0

    with pytest.raises(UnsupportedVllmError, match=r"hook takes \['request', 'tokens'\].*supports vLLM 0\.32"):
        require_parameters(hook, "request", "num_computed_tokens", "num_new_tokens")
