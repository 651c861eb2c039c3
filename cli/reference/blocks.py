"""All generated blocks, by the name that they have in pages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from cli.reference.client import client_sections
from cli.reference.commands import command_tables
from cli.reference.configuration import option_tables
from cli.reference.errors import error_table, http_only_table
from cli.reference.http import contract_fields, request_fields
from cli.reference.limits import limit_table
from cli.reference.page import Writer
from cli.reference.profiles import profile_table
from cli.reference.protocol import protocol_tables
from services.telemetry.catalogue import table as metric_tables

BLOCKS: Mapping[str, Writer] = {
    "profiles": profile_table,
    "errors": error_table,
    "http-errors": http_only_table,
    "limits": limit_table,
    "http-fields": request_fields,
    "http-contract": contract_fields,
    "options": option_tables,
    "commands": command_tables,
    "metrics": metric_tables,
    "grpc-inference": partial(protocol_tables, "inference"),
    "grpc-contract": partial(protocol_tables, "contract"),
    "grpc-sampling": partial(protocol_tables, "sampling"),
    "grpc-worker": partial(protocol_tables, "worker"),
    "python-client": client_sections,
}
