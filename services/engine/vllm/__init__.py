"""The `Engine` adapter for vLLM 0.32.

An engine is two processes: the worker, in whose event loop `frontend` runs, and EngineCore, which loads `core` as
extensions of vLLM. The two packages never import each other; what both need is in `shared`. `config` holds the options
and `plugin` is vLLM's entry point into every process. Importing `config`, `shared` and `frontend` needs neither torch
nor vLLM.
"""
