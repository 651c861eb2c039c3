"""What every program that writes to a terminal shares: the command line and the benchmarks."""
