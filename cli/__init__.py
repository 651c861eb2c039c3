"""The command `slos-serve`: single services, a whole cluster on this machine, clients and benchmarks."""
