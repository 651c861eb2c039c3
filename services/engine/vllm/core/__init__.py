"""The extensions that vLLM loads inside EngineCore and its workers, each by the name that `frontend.launch` gives it.

`scheduler` measures steps and keeps leases; `composed_scheduler` makes vLLM run what the step composer chose; `nixl` is
the KV connector; `draft_worker` and `penalties` extend the model runner.
"""
