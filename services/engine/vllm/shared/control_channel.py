"""The names by which the front end reaches what runs inside EngineCore and its workers."""

from __future__ import annotations

CONFIG_KEY = "slos_serve"
"""Key in vLLM's `additional_config` under which the scheduler finds its own options."""
CORE_CALL = "slos_serve"
"""Name of the method that `plugin` adds to EngineCore: `call_utility_async(CORE_CALL, method, arguments)` calls a
remote method of the scheduler."""
PREPARE_FOR_DRAFTS = "prepare_for_drafts"
"""Name of the method of every worker that must be called before the first request where speculation is on."""
