"""What operators see of a router: metrics, spans, counters, history and the console."""
