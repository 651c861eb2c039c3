"""Logs, metrics and traces of a process. `logs` is configured once per process, before anything else is built."""
