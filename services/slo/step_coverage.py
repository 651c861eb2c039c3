"""The share of steps that keep the bound on their time, for engines that compose by it and plans that promise by it."""

from __future__ import annotations

STEP_COVERAGE = 0.99
"""Share of steps that keep their bound (chosen). At overload a plan is tight at all times, and about as many promises
are kept as steps are within their bound; engines that compose by another bound do not keep what is promised by this."""
