"""Terminal output, as the command line and the benchmarks share it."""
