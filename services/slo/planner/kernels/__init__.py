"""Compiled kernels of the planner: everything that numba compiles, on plain arrays. They import nothing above them."""
