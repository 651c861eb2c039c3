"""Launcher of a whole cluster on this machine, as ordinary processes.

`LocalCluster` starts Redis, the workers and the router with the same commands and the same configuration as containers
do, waits until they serve, and stops them in order. What runs is written to the run directory, so that another process
can stop it.
"""
