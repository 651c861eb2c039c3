"""Figures that anyone can measure again. Each program starts its own cluster and takes `--json PATH`."""
