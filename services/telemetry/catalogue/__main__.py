"""Prints the tables of `docs/reference/telemetry.md`."""

from services.telemetry.catalogue import table

print(table(), end="")  # noqa: T201
