"""The decisions of the cluster: contracts, step times, admission, the composition of steps, and attainment.

They are pure functions on frozen dataclasses. Nothing here does I/O, reads a clock or imports more than numpy, numba
and the standard library. The router, the workers, the emulated engine and the simulator all call these functions; a
decision that exists twice is a bug.
"""
