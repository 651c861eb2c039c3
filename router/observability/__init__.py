"""The router as operators see it: metrics, spans, counters, history and the console."""
