"""The worker's side of a vLLM engine: it starts EngineCore, gives it requests and turns its messages into events.

Everything here runs in the worker's event loop. vLLM and torch are imported only while an engine starts.
"""
