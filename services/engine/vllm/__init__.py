"""The `Engine` adapter for vLLM 0.32.

Two processes: the front-end (`engine`, in the worker's event loop) and vLLM's EngineCore, where `scheduler`,
`connector` and `penalties` run as vLLM extensions. Importing this package, `config` and `core_report` needs neither
torch nor vLLM.
"""
